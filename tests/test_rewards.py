"""Rewards that fail: constant, missing, of another scale, from a judge that answers prose."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refiner_core.scoring.vlm_client import VlmClient
from refiner_core.scoring.vlm_scorer import VlmScorer
from refiner_core.training.config import GrpoConfig, JudgeSettings, RewardSettings
from refiner_core.training.dataset import Pixels
from refiner_core.training.reinforcement import fill_missing
from refiner_core.training.reward import JudgeReward, make_reward
from refiner_core.training.settings import build, merged
from refiner_core.training.train import train
from tests.test_grpo import NONE, pictures, toy, toy_reward
from tests.tiny_training import GRPO_SETTINGS, tiny_session
from tests.vlm_endpoint import endpoint, said

CPU = torch.device("cpu")


def epoch(reward: Any, **objective: Any) -> tuple[dict[str, float], list[Tensor]]:
    """The metrics of an epoch of the toy, and its weights after it."""
    trainer = toy(objective=objective)
    trainer.objective.reward = reward  # pyright: ignore[reportAttributeAccessIssue]
    metrics = trainer.train_step()
    return metrics, [p.detach().clone() for p in trainer.trainable.parameters.values()]


def scaled(factor: float) -> Any:
    return lambda images, p: {k: factor * v for k, v in toy_reward(images, p).items()}


@pytest.mark.parametrize("factor", [1e6, 1e-2])
def test_the_scale_of_a_reward_does_not_matter(factor: float) -> None:
    _, plain = epoch(scaled(1.0), floor=1e-9)
    _, other = epoch(scaled(factor), floor=1e-9)
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "reward",
    [lambda images, p: {"pixels": torch.full((len(images),), 0.3)}, scaled(1e-6)],
    ids=["constant", "too small"],
)
def test_a_reward_without_spread_teaches_nothing_and_says_so(
    reward: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [p.detach().clone() for p in toy().trainable.parameters.values()]
    metrics, after = epoch(reward)
    assert metrics["dropped"] == 1 and all(
        torch.equal(a, b) for a, b in zip(start, after, strict=True)
    )
    said = "".join(capsys.readouterr())
    assert "objective.floor" in said and f"{metrics['spread/pixels']:.2g}" in said


def test_samples_without_a_score_are_counted_and_not_learnt_from() -> None:
    def reward(images: Tensor, p: Pixels) -> dict[str, Tensor]:
        values = toy_reward(images, p)["pixels"].clone()
        values[0] = float("nan")
        values[1] = float("inf")
        return {"pixels": values}

    metrics, after = epoch(reward)
    assert metrics["missing/pixels"] == 8, "two of each of four groups"
    assert all(bool(torch.isfinite(p).all()) for p in after)


@pytest.mark.parametrize(
    ("values", "filled", "missing"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0], 1),
        ([float("inf"), 4.0], [4.0, 4.0], 1),
        ([float("nan")] * 2, [0.0, 0.0], 2),
    ],
)
def test_missing_scores_are_their_siblings_mean(
    values: list[float], filled: list[float], missing: int
) -> None:
    found, count = fill_missing(torch.tensor(values))
    assert found.tolist() == filled and count == missing


def test_the_seam_is_a_part_only_if_it_is_weighted() -> None:
    p = pictures()
    plain = make_reward(RewardSettings(), CPU)(p.draft, p)
    found = make_reward(RewardSettings(rewards={"pixels": 1.0, "seam": 1.0}), CPU)(p.draft, p)
    assert "seam" not in plain and 0 < float(found["seam"]) < 1
    assert {k: float(v) for k, v in found.items() if k != "seam"} == {
        k: float(v) for k, v in plain.items()
    }


@pytest.mark.parametrize("form", ["digit", "pairs"])
def test_a_judge_that_answers_prose_gives_no_score(form: Any) -> None:
    with endpoint(lambda *_: (200, said("What a nice picture!"))) as (url, _):
        judge = JudgeReward(VlmScorer(VlmClient(url, "m"), form))
        assert judge(torch.rand(3, 3, 16, 16), pictures()).isnan().all()


@pytest.mark.parametrize("form", ["digit", "yes", "pairs"])
def test_a_judge_that_times_out_gives_no_score(form: Any) -> None:
    with endpoint(lambda *_: (200, said("5")), held=threading.Event()) as (url, asked):
        judge = JudgeReward(VlmScorer(VlmClient(url, "m", timeout=0.2, retries=0), form))
        assert judge(torch.rand(2, 3, 16, 16), pictures()).isnan().all()
        assert asked


@pytest.mark.slow
def test_a_judge_that_is_never_there_leaves_the_other_parts(tmp_path: Path) -> None:
    with endpoint(lambda *_: (403, b"no")) as (url, asked):
        over = {
            "objective": {"rewards": {**NONE, "pixels": 1.0, "judge": 1.0}},
            "judge": {"url": url, "model": "m", "retries": 0},
            "run": {"max_steps": 1},
        }
        config = build(GrpoConfig, merged(GRPO_SETTINGS, over))
        reward = make_reward(config.objective, CPU, config.judge)
        assert train(config, tiny_session(config, tmp_path), reward).exists()
    (row,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert row["missing/judge"] == len(asked) == 16 and row["dropped"] < 1
    assert all(math.isfinite(v) for v in row.values())


@pytest.mark.parametrize("settings", [{}, {"url": "http://a/v1"}])
def test_a_judge_without_an_endpoint_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"judge\.url"):
        make_reward(RewardSettings(rewards={"judge": 1.0}), CPU, JudgeSettings(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["digit", "pairs"])
def test_a_run_is_rewarded_by_a_judge_that_sometimes_fails(tmp_path: Path, form: str) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        if number % 5 == 0:
            return 503, b"busy"
        word = str(number % 6) if form == "digit" else "AB"[number % 2]
        return 200, said(word if number % 7 else "It depends.")

    with endpoint(answer) as (url, asked):
        over = {
            "objective": {"rewards": {**NONE, "pixels": 0.0, "judge": 1.0}},
            "judge": {"url": url, "model": "m", "form": form, "retries": 0},
            "run": {"max_steps": 2},
        }
        config = build(GrpoConfig, merged(GRPO_SETTINGS, over))
        session = tiny_session(config, tmp_path)
        reward = make_reward(config.objective, CPU, config.judge, tmp_path / "cache.jsonl")
        assert train(config, session, reward).exists()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(0 <= r["reward/judge"] <= 1 for r in rows) and len(asked) > 20
    if form == "digit":
        assert all(r["missing/judge"] > 0 for r in rows)
