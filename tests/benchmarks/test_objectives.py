"""The comparison of objectives: its settings, its clock and its table, on numbers that are known."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refiner_core.training.dataset import Pixels
from refiner_core.training.train_nano import Setup
from tests.benchmarks import objectives_table
from tests.benchmarks.__main__ import main
from tests.benchmarks.objectives import (
    ROWS,
    Row,
    TimeLimit,
    TimeUpError,
    finished,
    row_configs,
)
from tests.benchmarks.objectives_table import Cases, Cost, Found, describe


def test_every_row_has_settings_that_end_by_time_alone(tmp_path: Path) -> None:
    configs = row_configs(Setup(tmp_path / "data", tmp_path / "cache", seed=3))
    assert tuple(configs) == ROWS
    for config in configs.values():
        assert config.run.max_steps == 10**6 and config.run.seed == 3 and config.patience == 0
    assert configs["reward-1"].unroll.gradient_steps == 1
    assert configs["reward-all"].unroll.gradient_steps is None
    assert configs["nft-places"].objective.map_share == 0.5


def test_time_is_counted_over_all_starts_of_a_row(tmp_path: Path) -> None:
    path, times = tmp_path / "seconds.json", iter(range(0, 1000, 10))
    first = TimeLimit(path, 44.0, 0, lambda: next(times))
    assert [first.requested() for _ in range(3)] == [False] * 3 and first.spent == 30
    second = TimeLimit(path, 44.0, 2, lambda: next(times))
    assert second.spent == 20, "the third step was lost and is taken again"
    assert [second.requested() for _ in range(2)] == [False, True], "40 is closer to 44 than 50"
    assert TimeLimit(path, 44.0, 4).is_up and not TimeLimit(path, 90.0, 4).is_up
    with pytest.raises(TimeUpError):
        second.stop()


def test_a_finished_row_is_not_trained_again_unless_it_is_to_be_longer(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "data", tmp_path / "cache")
    one, longer = (Row("sft", tmp_path, s, setup, tmp_path / "orders") for s in (60.0, 90.0))
    assert finished(one) is None
    cost = Cost(60.0, 59.0, 25, 1.4)
    (tmp_path / "row.json").write_text(json.dumps(dataclasses.asdict(cost)))
    assert finished(one) == cost and finished(longer) is None


def row(name: str, seed: int | None, shift: float) -> Found:
    """Cases of which one has no text; less of the edge error is better."""
    metrics = {
        "psnr": np.arange(4.0) + shift,
        "edge_error": np.ones(4) - shift,
        "text": np.array([np.nan, *[0.5 + shift] * 3]),
    }
    return Found(name, seed, Cost(12, 12, 7, 1.5), {"drawn": metrics})


def test_rows_are_compared_with_the_control_of_their_seed() -> None:
    rows = [
        row("embedded", None, -1),
        *(row(n, s, 10 * s + d) for s in (0, 1) for n, d in (("sft", 0), ("grpo", 2 + s))),
    ]
    text = describe(rows, argparse.Namespace(count=4, seconds=12))
    cells = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    for name, gain in (("grpo, seed 0", 2), ("grpo, seed 1", 3), ("grpo, 2 seeds", 2.5)):
        assert cells[f"| {name}"].count(f"{gain:+g} [{gain:+g}, {gain:+g}]") == 3, name
    assert "| 12 | 7 | 1.50 | 1.50000 | 1.00000 | 0.50000 |" in cells["| sft, seed 0"]
    over_start = {"sft": 6, "grpo": 8.5}
    for name, gain in over_start.items():
        assert cells[f"| {name}"].count(f"{gain:+g} [{gain:+g}, {gain:+g}]") == 3, name


def test_cases_are_drawn_once_and_a_refiner_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def drawn(count: int, workers: int) -> list[Pixels]:
        calls.append("drawn")
        return [Pixels(*(torch.rand(1, c, 8, 8) for c in (3, 3, 3, 1)))] * count

    def measured(engine: Path, cases: list[Pixels], further: Any) -> dict[str, np.ndarray]:
        calls.append(engine.name)
        return {
            "psnr": np.array([float(p.target.mean()) for p in cases]),
            "text": np.full(2, np.nan),
        }

    monkeypatch.setattr(objectives_table, "held_out_scenes", drawn)
    monkeypatch.setattr(objectives_table, "measure", measured)
    monkeypatch.setattr(objectives_table, "load_nano", lambda path: path)
    found = []
    for content in (b"one", b"one", b"two"):
        (tmp_path / "refiner").write_bytes(content)
        cases = Cases(tmp_path, 2, 1, None, text=False)
        found.append(cases.measure(tmp_path / "refiner", tmp_path / "row")["drawn"])
    assert calls == ["drawn", "refiner", "refiner"]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, values in found[0].items():
            np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize("rows", ["grpo", "sft,magic"])
def test_rows_without_the_control_or_unknown(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["objectives", "--out", str(tmp_path), "--rows", rows]) == 2
    assert rows in capsys.readouterr().err
