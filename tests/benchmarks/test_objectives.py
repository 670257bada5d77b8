"""The comparison of objectives: its settings, its clock and its table, on numbers that are known."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refiner_core.nano.nano_engine import load_nano
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
from tests.benchmarks.objectives_table import Cases, Cost, Found, Lettering, describe


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


def test_cases_are_drawn_once_and_none_is_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def drawn(count: int, workers: int) -> list[Pixels]:
        calls.append("drawn")
        generator = torch.Generator().manual_seed(0)
        pictures = [torch.rand(1, 3, 8, 8, generator=generator) for _ in range(count)]
        return [Pixels(p, p, p, p[:, :1]) for p in pictures]

    def measured(
        engine: Path, cases: list[Pixels], further: Any, first_seed: int
    ) -> dict[str, np.ndarray]:
        calls.append((engine.read_bytes(), first_seed, len(cases)))
        return {"psnr": np.array([float(p.target.mean()) for p in cases])}

    monkeypatch.setattr(objectives_table, "held_out_scenes", drawn)
    monkeypatch.setattr(objectives_table, "measure", measured)
    monkeypatch.setattr(objectives_table, "load_nano", lambda path: path)
    refiner, found = tmp_path / "refiner", []
    for content, count in ((b"one", 2), (b"one", 2), (b"one", 5), (b"one", 2), (b"two", 2)):
        refiner.write_bytes(content)
        cases = Cases(tmp_path, count, 1, None, text=0)
        found.append(cases.measure(refiner, tmp_path / "row")["drawn"]["psnr"])
    measurements = [(b"one", 0, 2), (b"one", 2, 3), (b"two", 0, 2)]
    assert calls == ["drawn", measurements[0], "drawn", *measurements[1:]]
    assert [len(f) for f in found] == [2, 2, 5, 2, 2]
    for other in found:
        np.testing.assert_array_equal(other[:2], found[0])


class Reader:
    """Reads one letter for each ten of the brightness, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, picture: torch.Tensor) -> str:
        self.count += 1
        return "abcdefghij"[: round(float(picture.mean()) * 10)]


def test_lettering_is_read_where_the_target_has_some_and_its_targets_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    targets = [torch.zeros(1, 3, 8, 8) for _ in range(3)]
    for target, brightness in zip(targets, (0.2, 0.5, 0.9), strict=True):
        target[..., 2:6, 2:6] = brightness
    cases = [Pixels(t, t, t, mask) for t in targets]
    reader, asked = Reader(), []

    def repairs(engine: Any, numbered: Iterator[tuple[int, Pixels]]) -> Iterator[Any]:
        for seed, p in numbered:
            asked.append(seed)
            yield p, torch.full_like(p.target, 0.4)

    monkeypatch.setattr(objectives_table, "TextReader", lambda: reader)
    monkeypatch.setattr(objectives_table, "repairs", repairs)
    path = tmp_path / "lettering.json"
    shares = Lettering(path, {"drawn": cases}).measure(load_nano(), "drawn")["text"]
    assert asked == [1, 2] and reader.count == 5, "two letters are no lettering"
    np.testing.assert_allclose(shares, [np.nan, 4 / 5, 4 / 9])
    Lettering(path, {"drawn": cases})
    assert reader.count == 5, "the targets are known"


@pytest.mark.parametrize("rows", ["grpo", "sft,magic"])
def test_rows_without_the_control_or_unknown(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["objectives", "--out", str(tmp_path), "--rows", rows]) == 2
    assert rows in capsys.readouterr().err
