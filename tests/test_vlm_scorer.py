"""A vision-language model as a scorer and as a reward, on an endpoint that answers by the pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from refiner_core.scoring.vlm_answers import (
    Form,
    edit_scores,
    expected_score,
    probability_of,
    win_rates,
)
from refiner_core.scoring.vlm_client import Question, Reply, VlmClient
from refiner_core.scoring.vlm_scorer import VlmScorer
from tests.vlm_endpoint import endpoint, said, said_with_tokens


def tokens(*positions: dict[str, float]) -> tuple[dict[str, float], ...]:
    return tuple({k: math.log(p) for k, p in position.items()} for position in positions)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (Reply("4", tokens({"4": 1.0})), 0.8),
        (Reply("4", tokens({"4": 0.5, "5": 0.25, "x": 0.25})), (4 * 2 + 5) / 3 / 5),
        (Reply("4", tokens({" 4": 0.3, "4": 0.3, "0": 0.2})), 0.6 * 4 / 0.8 / 5),
        (Reply("\n4", tokens({"\n": 0.9, "5": 0.1}, {"4": 1.0})), 0.8),
        (Reply("score: 3"), 0.6),
        (Reply("3 of 5", tokens({"It": 1.0})), 0.6),
        (Reply("9"), None),
        (Reply("42"), None),
        (Reply("3.5"), None),
        (Reply("good"), None),
    ],
)
def test_a_digit_is_its_expectation(reply: Reply, score: float | None) -> None:
    found = expected_score(reply)
    assert found == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (Reply("Yes", tokens({"Yes": 0.6, "No": 0.2, "Maybe": 0.2})), 0.75),
        (Reply("no", tokens({"no": 0.5, " No": 0.25, "YES": 0.25})), 0.25),
        (Reply("Yes.", tokens({"yes": 1.0})), 1.0),
        (Reply("Yes."), 1.0),
        (Reply("No, since yes would be wrong"), 0.0),
        (Reply("Yes it does"), 1.0),
        (Reply("I would say yes"), None),
        (Reply("yesterday"), None),
        (Reply(""), None),
    ],
)
def test_the_probability_of_yes(reply: Reply, value: float | None) -> None:
    found = probability_of(reply, "yes", "no")
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("A", 1.0), ("**B**", 0.0), ("b.", 0.0), ("A, since", 1.0), ("A nice picture", None)],
)
def test_a_letter_is_no_article(text: str, value: float | None) -> None:
    assert probability_of(Reply(text), "A", "B") == value


@pytest.mark.parametrize(
    ("text", "count", "scores"),
    [
        ('{"reasoning": "...", "score": [20, 25]}', 2, [0.8, 1.0]),
        ('<think>{"score": [1, 1]}</think> {"score": [0, 5.0]}', 2, [0.0, 0.2]),
        ('{"score": 5}', 1, [0.2]),
        ('{"score": [20]}', 2, None),
        ('{"score": [20, 26]}', 2, None),
        ('{"score": [true, 2]}', 2, None),
        ("20 and 25", 2, None),
    ],
)
def test_the_published_form(text: str, count: int, scores: list[float] | None) -> None:
    found = edit_scores(Reply(text), count)
    assert found == (None if scores is None else pytest.approx(scores))


@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0, 0.4))
def test_win_rates_sum_to_half_of_the_group(count: int, seed: int, band: float) -> None:
    table = torch.rand(count, count, generator=torch.Generator().manual_seed(seed))
    rates = win_rates(table, band)
    assert float(rates.sum()) == pytest.approx(count / 2, abs=1e-5)
    assert win_rates(1 - table, band).tolist() == pytest.approx((1 - rates).tolist(), abs=1e-5)


def test_a_preference_for_a_position_cancels_and_near_ties_are_ties() -> None:
    always_first = torch.ones(3, 3)
    assert win_rates(always_first).tolist() == [0.5] * 3
    better = torch.tensor([[0.0, 0.9, math.nan], [0.3, 0.0, 0.53], [math.nan, 0.5, 0.0]])
    assert win_rates(better, 0.05).tolist() == pytest.approx([0.75, 0.25, 0.5])


# --- the scorer ------------------------------------------------------------------------------------


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()


def pictures_of(body: dict[str, Any]) -> list[str]:
    parts = body["messages"][0]["content"]
    return [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]


def by_picture(answers: dict[str, bytes]) -> Any:
    """An answer that depends on the last picture alone."""
    return lambda _, body: (200, answers[pictures_of(body)[-1]])


def url_of(picture: Tensor) -> str:
    from refiner_core.scoring import vlm_scorer

    return vlm_scorer._views(picture, None)[0]


@pytest.mark.parametrize("form", ["digit", "yes"])
def test_each_sample_is_shown_beside_the_truth(form: Form) -> None:
    good, bad, truth = grey(0.9), grey(0.2), grey(1.0)
    words = {"digit": ("5", "1"), "yes": ("Yes", "No")}[form]
    answers = {
        url_of(good): said_with_tokens(words[0], {words[0]: 1.0}),
        url_of(bad): said_with_tokens(words[1], {words[1]: 1.0}),
    }
    with endpoint(by_picture(answers)) as (url, asked):
        scorer = VlmScorer(VlmClient(url, "m"), form)
        distances = scorer.distance(torch.cat([good, bad]), truth)
    assert distances.tolist() == pytest.approx([0.0, 0.8 if form == "digit" else 1.0])
    assert all(pictures_of(body)[0] == url_of(truth) for _, _, body in asked)
    assert all(body["logprobs"] and body["top_logprobs"] == 20 for _, _, body in asked)
    assert scorer.client.usage.prompt_tokens == 14


def test_a_mask_shows_the_region_alone() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:8, 4:8] = 1
    with endpoint(lambda *_: (200, said("5"))) as (url, asked):
        inside, outside = grey(0.5), grey(0.5)
        outside[..., 20:, 20:] = 0
        distances = VlmScorer(VlmClient(url, "m")).distance(
            torch.cat([inside, outside]), grey(1.0), mask
        )
    shown = {pictures_of(body)[1] for _, _, body in asked}
    assert len(shown) == 1 and distances.tolist() == [0.0, 0.0]


def test_several_passes_differ_in_their_seed() -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return 200, said(str(body["seed"]))

    with endpoint(answer) as (url, asked):
        found = VlmScorer(VlmClient(url, "m"), "digit", passes=4).distance(grey(0.5), grey(1.0))
    assert float(found) == pytest.approx(1 - (0 + 1 + 2 + 3) / 4 / 5)
    assert {body["temperature"] for _, _, body in asked} == {0.7}


def test_the_two_questions_of_the_published_form() -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        scores = [20, 10] if len(pictures_of(body)) == 2 else [25, 5]
        return 200, said(json.dumps({"reasoning": "", "score": scores}))

    with endpoint(answer) as (url, asked):
        found = VlmScorer(VlmClient(url, "m"), "edit").distance(grey(0.5), grey(1.0))
    assert float(found) == pytest.approx(1 - math.sqrt(0.4 * 0.2)) and len(asked) == 2


def test_prose_and_refusals_are_nan() -> None:
    answers = {
        url_of(grey(0.1)): said("I cannot judge this."),
        url_of(grey(0.9)): said("5"),
    }
    with endpoint(by_picture(answers)) as (url, _):
        found = VlmScorer(VlmClient(url, "m")).distance(grey(0.1, 0.9), grey(1.0))
    assert math.isnan(float(found[0])) and float(found[1]) == 0


def test_pairs_are_asked_in_both_orders() -> None:
    levels = {url_of(grey(v)): v for v in (0.2, 0.5, 0.9)}

    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        _, first, second = (levels.get(u, 1.0) for u in pictures_of(body))
        # The brighter one, but with a strong preference for what is shown first.
        p = 0.5 + 0.3 + 0.2 * (first - second)
        return 200, said_with_tokens("A", {"A": p, "B": 1 - p})

    with endpoint(answer) as (url, asked):
        scorer = VlmScorer(VlmClient(url, "m"), "pairs")
        rates = scorer.compare(grey(0.2, 0.5, 0.9), grey(1.0))
    assert rates.tolist() == [0.0, 0.5, 1.0] and len(asked) == 6


def test_pairs_without_an_answer_are_nan() -> None:
    with endpoint(lambda *_: (200, said("Both are nice."))) as (url, _):
        rates = VlmScorer(VlmClient(url, "m"), "pairs").compare(grey(0.2, 0.5), grey(1.0))
    assert rates.isnan().all()


# --- the client ------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_and_the_next_one_helps() -> None:
    with (
        endpoint(lambda *_: (503, b"busy")) as (busy, asked_busy),
        endpoint(lambda *_: (200, said("4"))) as (free, asked_free),
    ):
        client = VlmClient(f"{busy}, {free}", "m", retries=2, back_off=0.0)
        assert client.ask("?", []) == "4" and client.ask("?!", []) == "4"
    assert len(asked_busy) >= 1 and len(asked_free) == 2
    assert client.usage.requests == len(asked_busy) + 2 and client.usage.failures == 0


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (429, 3), (400, 1), (401, 1)])
def test_a_refusal_for_good_is_not_repeated(status: int, attempts: int) -> None:
    with endpoint(lambda *_: (status, b"no")) as (url, asked):
        client = VlmClient(url, "m", retries=2, back_off=0.0)
        with pytest.raises(OSError, match=str(status)):
            client.ask("?", [])
    assert len(asked) == attempts and client.usage.failures == 1


def test_the_cache_answers_the_same_question_in_a_later_run(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    question = Question("?", ("data:a",), logprobs=True)
    with endpoint(lambda *_: (200, said_with_tokens("4\u2028", {"4": 1.0}))) as (url, asked):
        first = VlmClient(url, "m", cache=cache).reply(question)
        with cache.open("a") as stream:
            stream.write('{"key": "incomplete')
        again = VlmClient(url, "m", cache=cache)
        assert again.reply(question) == first and len(asked) == 1
        assert again.usage.cached == 1 and again.usage.requests == 0
        for _ in range(2):
            VlmClient(url, "another", cache=cache).reply(question)
    assert len(asked) == 2, "what is written after an incomplete line is found again"


def test_an_unanswered_question_is_not_cached(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    with endpoint(lambda i, _: (500, b"") if i == 0 else (200, said("5"))) as (url, _):
        client = VlmClient(url, "m", cache=cache)
        with pytest.raises(OSError, match="500"):
            client.ask("?", [])
        assert client.ask("?", []) == "5"


@pytest.mark.parametrize(
    "settings", [{"retries": -1}, {"parallel": 0}, {"back_off": -0.1}, {"url": "http://a,ftp://b"}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(settings.values()))).split(",")[-1]):
        VlmClient(**{"url": "http://a/v1", "model": "m", **settings})


@pytest.mark.parametrize("settings", [{"form": "prose"}, {"passes": 0}, {"tie_band": 0.5}])
def test_bad_scorer_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(settings.values())))):
        VlmScorer(VlmClient("http://a/v1", "m"), **settings)
