"""The ablation's variants differ in what they say they differ in, and in nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refiner_core.training import train_nano as nano
from refiner_core.training.ablation import Ablation, Budget, OneWayNet, describe, supervised
from refiner_core.training.compare import Comparison
from refiner_core.training.policy import VelocityNet
from refiner_core.training.train_nano import Setup, draw_triplets, write_start


def test_variants_are_trained_from_one_start_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "_DATA", {"held_out": 0})  # of so few triplets none is sorted out
    setup = Setup(tmp_path / "triplets", tmp_path / "cache", "cpu", seed=2)
    draw_triplets(setup, 4)
    start = write_start(tmp_path / "start.safetensors", setup)
    budget = Budget(steps=1, batch=2, epochs=0)

    def train(name: str, net: type[VelocityNet], masked: bool) -> tuple[dict[str, Tensor], float]:
        engine = supervised(setup, budget, start, tmp_path / name, net, masked)
        row = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        return engine.model.state_dict(), row["loss"]

    whole, loss = train("whole", VelocityNet, True)
    again, same = train("again", VelocityNet, True)
    plain, other = train("plain", VelocityNet, False)
    narrow, third = train("narrow", OneWayNet, True)
    assert loss == same and all(torch.equal(whole[k], again[k]) for k in whole)
    assert len({loss, other, third}) == 3
    for variant in (plain, narrow):
        assert any(not torch.equal(whole[k], variant[k]) for k in whole)


def test_a_description_names_both_sides() -> None:
    found = [Comparison("psnr", 20.0, 21.0, 1.0, 0.5, 1.5)]
    text = describe(Ablation("masked loss", ("plain", "masked"), found), 64)
    assert "### masked loss" in text
    assert "64 held-out cases; gain: positive = masked is better" in text
    assert "| psnr | 20.00000 | 21.00000 | +1.00000 | [+0.50000, +1.50000] | better |" in text
