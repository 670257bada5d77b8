"""The ablation's variants differ in what they say they differ in, and in nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refiner_core.recipes.recipe import Attention
from refiner_core.training import train_nano as nano
from refiner_core.training.compare import Comparison
from refiner_core.training.train_nano import Setup, draw_triplets, write_start
from tests.benchmarks.__main__ import main
from tests.benchmarks.ablation import Ablation, Budget, describe, supervised


@pytest.mark.slow
def test_variants_are_trained_from_one_start_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "_DATA", {"held_out": 0})  # of so few triplets none is sorted out
    setup = Setup(tmp_path / "triplets", tmp_path / "cache", "cpu", seed=2)
    draw_triplets(setup, 4)
    start = write_start(tmp_path / "start.safetensors", setup)
    budget = Budget(steps=1, batch=2, epochs=0)

    def train(name: str, attention: Attention, masked: bool) -> tuple[dict[str, Tensor], float]:
        engine = supervised(setup, budget, start, tmp_path / name, attention, masked)
        row = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        return engine.model.state_dict(), row["loss"]

    whole, loss = train("whole", "both ways", True)
    again, same = train("again", "both ways", True)
    plain, other = train("plain", "both ways", False)
    narrow, third = train("narrow", "one way", True)
    assert loss == same and all(torch.equal(whole[k], again[k]) for k in whole)
    assert len({loss, other, third}) == 3
    for variant in (plain, narrow):
        assert any(not torch.equal(whole[k], variant[k]) for k in whole)


def test_a_description_names_both_sides() -> None:
    found = [Comparison("psnr", 20.0, 21.0, 1.0, 0.5, 1.5)]
    text = describe(Ablation("masked loss", ("plain", "masked"), found), 64)
    assert "### masked loss" in text
    assert "64 held-out cases" in text
    assert "| psnr | 20.00000 | 21.00000 | +1.00000 | [+0.50000, +1.50000] | better |" in text


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup = Setup(tmp_path_factory.mktemp("triplets"), Path(), seed=2)
    draw_triplets(setup, 6)
    return setup.triplets


@pytest.mark.slow
def test_ablating_as_a_command_goes_on(
    triplets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nano, "_DATA", {"held_out": 1})
    command = [
        "ablate",
        "--out",
        str(tmp_path),
        "--data",
        str(triplets),
        "--device",
        "cpu",
        "--max-steps",
        "1",
        "--batch",
        "2",
        "--epochs",
        "1",
        "--count",
        "2",
        "--workers",
        "1",
    ]
    monkeypatch.setitem(nano.GRPO_PRESETS["nano"]["rollout"], "groups", 2)
    monkeypatch.setitem(nano.GRPO_PRESETS["nano"]["objective"], "updates", 2)
    assert main(command) == 0
    text = capsys.readouterr().out
    for title in ("masked loss", "attention", "reward"):
        assert f"### {title}" in text
    assert (tmp_path / "ablation.md").read_text().count("2 held-out cases") == 3
    left = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/refiner.safetensors")}
    assert len(left) == 5
    assert main(command) == 0
    assert left == {p: p.stat().st_mtime_ns for p in left}


def test_several_processes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", "--out", str(tmp_path / "run")]) == 2
    assert "accelerate or torchrun" in capsys.readouterr().err
