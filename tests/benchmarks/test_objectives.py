"""The comparison of objectives: its settings, its clock and its table, on numbers that are known."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from refiner_core.training.train_nano import Setup
from tests.benchmarks.__main__ import main
from tests.benchmarks.objectives import ROWS, TimeLimit, TimeUpError, describe, row_configs


def test_every_row_has_settings_that_end_by_time_alone(tmp_path: Path) -> None:
    configs = row_configs(Setup(tmp_path / "data", tmp_path / "cache", seed=3))
    assert tuple(configs) == ROWS
    for config in configs.values():
        assert config.run.max_steps == 10**6 and config.run.seed == 3 and config.patience == 0
    assert configs["reward-1"].unroll.gradient_steps == 1
    assert configs["reward-all"].unroll.gradient_steps is None
    assert configs["nft-places"].objective.map_share == 0.5


def test_time_is_counted_over_all_starts_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "spent.json"
    first = TimeLimit(path, 1e6)
    assert not first.requested() and path.is_file()
    path.write_text('{"seconds": 90.0}')
    second = TimeLimit(path, 90.0)
    assert second.requested() and second.spent >= 90
    with pytest.raises(TimeUpError):
        second.stop()


def test_rows_are_compared_with_the_control_of_their_seed() -> None:
    cost = {"seconds": 12.0, "GB": 1.5}
    rows = [
        (f"{name}, seed {seed}", cost, {"psnr": np.arange(4.0) + shift, "edge_error": np.ones(4)})
        for seed, base in ((0, 0.0), (1, 10.0))
        for name, shift in (("sft", base), ("grpo", base + 2))
    ]
    text = describe(rows, argparse.Namespace(count=4, seconds=12))
    lines = [line for line in text.splitlines() if line.startswith("| grpo")]
    assert len(lines) == 2 and all("+2.00000 [+2.00000, +2.00000]" in line for line in lines)


@pytest.mark.parametrize("rows", ["grpo", "sft,magic"])
def test_rows_without_the_control_or_unknown(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["objectives", "--out", str(tmp_path), "--rows", rows]) == 2
    assert rows in capsys.readouterr().err
