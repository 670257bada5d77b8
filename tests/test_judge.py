"""The judge over HTTP: a real local endpoint that answers well, badly, late or not at all."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from refiner_core.evaluation.judge import ORDERS, WEIGHTS, VlmJudge, read_reply, rubric
from refiner_core.evaluation.metric import EvaluationCase
from refiner_core.scoring.vlm_client import VlmClient
from tests.vlm_endpoint import endpoint, said

GOOD = '{"detail": 80, "text": null, "background": 100, "naturalness": 60}'


def case() -> EvaluationCase:
    grey = torch.full((1, 3, 16, 24), 100, dtype=torch.uint8)
    return EvaluationCase("one", grey, grey + 50, None, torch.ones(1, 1, 16, 24), None)


def judged(
    url: str, folder: Path, votes: int = 3, **settings: Any
) -> tuple[VlmJudge, float | None]:
    judge = VlmJudge(VlmClient(url, "model", **settings), folder / "replies.jsonl", votes)
    scores = judge.measure(case(), {"refined": case().draft})
    return judge, scores["refined"]["vlm"]


def replies(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (GOOD, (0.4 * 80 + 0.15 * 100 + 0.15 * 60) / 0.7),
        ('{"detail": 50, "text": 100, "background": 50, "naturalness": 50}', 65.0),
        ("<think>{}</think>Sure!\n```json\n" + GOOD + "\n```", (32 + 15 + 9) / 0.7),
        ('{"detail": 0, "background": 0, "naturalness": 0}', 0.0),
        ("I would say 80 of 100.", None),
        ('{"detail": "80", "background": 100, "naturalness": 60}', None),
        ('{"detail": 101, "background": 100, "naturalness": 60}', None),
        ('{"detail": true, "background": 100, "naturalness": 60}', None),
        ('{"background": 100}', None),
        ('{"detail": NaN, "background": 100, "naturalness": 60}', None),
        ("", None),
    ],
)
def test_read_reply(reply: str, score: float | None) -> None:
    assert read_reply(reply) == (None if score is None else pytest.approx(score))


def test_the_median_of_votes_and_what_is_sent(tmp_path: Path) -> None:
    details = [10, 90, 80]

    def answer(i: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return 200, said(GOOD.replace("80", str(details[i])))

    with endpoint(answer) as (url, asked):
        _, score = judged(url, tmp_path, key="secret")
    assert score == pytest.approx((0.4 * 80 + 24) / 0.7)
    path, headers, body = asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "image_url", "image_url"] and body["temperature"] == 0
    assert [r["vote"] for r in replies(tmp_path)] == [0, 1, 2]
    assert "secret" not in (tmp_path / "replies.jsonl").read_text()


def test_votes_of_a_deterministic_server_are_different_questions(tmp_path: Path) -> None:
    """A server whose answer depends on the request alone, and that favours what it sees last."""

    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        question = body["messages"][0]["content"][0]["text"]
        result = next(line for line in question.splitlines() if "the result:" in line)
        return 200, said(GOOD.replace("80", str({"1": 20, "2": 50, "3": 80}[result[0]])))

    with endpoint(answer) as (url, asked):
        _, score = judged(url, tmp_path, votes=6)
    questions = [body["messages"][0]["content"] for _, _, body in asked]
    for question in questions:
        listed = [line[3:].split(":")[0] for line in question[0]["text"].splitlines()[1:4]]
        assert sorted(listed) == ["the draft", "the reference", "the result"]
        pictures = [part["image_url"]["url"] for part in question[1:]]
        shown = dict(zip(listed, pictures, strict=True))
        assert shown["the reference"] != shown["the draft"], "each number names its own picture"
    assert len({json.dumps(q) for q in questions}) == 6
    assert len({r["score"] for r in replies(tmp_path)}) == 3
    assert score == pytest.approx((0.4 * 50 + 24) / 0.7)
    assert [tuple(r["order"]) for r in replies(tmp_path)] == list(ORDERS)


def test_rubbish_is_kept_and_does_not_count(tmp_path: Path) -> None:
    answers = [said("rubbish"), said(GOOD), said(None)]
    with endpoint(lambda i, _: (200, answers[i])) as (url, _):
        judge, score = judged(url, tmp_path)
    assert score == pytest.approx(80.0) and judge.failure is None
    kept = replies(tmp_path)
    assert kept[0]["reply"] == "rubbish" and kept[0]["score"] is None
    assert "NoneType" in kept[2]["error"]


@pytest.mark.parametrize(
    ("status", "data", "message"),
    [
        (500, b"out of memory", "HTTP 500: out of memory"),
        (200, b"<html>", "protocol"),
        (200, b'{"choices": []}', "protocol"),
        (200, b"\xff\xfe", "protocol"),
    ],
)
def test_an_endpoint_that_fails_is_given_up_after_three(
    tmp_path: Path, status: int, data: bytes, message: str
) -> None:
    with endpoint(lambda *_: (status, data)) as (url, asked):
        judge, score = judged(url, tmp_path, votes=5)
        again = judge.measure(case(), {"refined": case().draft})
    assert score is None and again == {"refined": {"vlm": None}} and len(asked) == 3
    assert judge.failure and message in judge.failure and url in judge.failure


def test_an_endpoint_that_never_answers_times_out(tmp_path: Path) -> None:
    with endpoint(lambda *_: (200, said(GOOD)), held=threading.Event()) as (url, _):
        judge, score = judged(url, tmp_path, timeout=0.2)
    assert score is None and judge.failure and "timed out" in judge.failure


def test_nobody_listens(tmp_path: Path) -> None:
    with endpoint(lambda *_: (200, b"")) as (url, _):
        pass
    judge, score = judged(url, tmp_path)
    assert score is None and judge.failure and "refused" in judge.failure


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "ftp://x", "model": "m"}, "http"),
        ({"url": "http://x/v1", "model": ""}, "--vlm-model"),
        ({"url": "http://x/v1", "model": "m", "timeout": 0}, "timeout"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VlmClient(**settings)


def test_a_judge_has_one_to_six_votes(tmp_path: Path) -> None:
    for votes in (0, 7):
        with pytest.raises(ValueError, match=f"--vlm-votes.*6.*{votes}"):
            judged("http://x/v1", tmp_path, votes=votes)


def test_the_documented_rubric_is_the_one_that_is_sent() -> None:
    text = (Path(__file__).parents[1] / "refiner_core" / "evaluation" / "README.md").read_text(
        encoding="utf-8"
    )
    assert rubric(ORDERS[0]) in text
    assert sum(WEIGHTS.values()) == pytest.approx(1)
