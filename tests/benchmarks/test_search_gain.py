"""The table of the search study, on numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from refiner_core.training.compare import interval
from tests.benchmarks.__main__ import main
from tests.benchmarks.search_gain import (
    BEST,
    LIGHT,
    RUNS,
    SINGLE,
    STEPS,
    Gain,
    table,
)


def gain(seed: int, single: float, best: float) -> Gain:
    measures = {n: {"psnr": single, "ssim": 0.5, "edges": 0.001, "structure": 0.2} for n in RUNS}
    measures[BEST] = measures[BEST] | {"psnr": best}
    return Gain(seed, "blur", {SINGLE: 4, LIGHT: 4, BEST: 15, STEPS: 15}, measures)


def test_the_table_has_means_prices_and_paired_differences() -> None:
    found = table([gain(0, 20, 21), gain(1, 30, 31)], 8)
    assert "2 held-out cases, best of 8; 32 sampling steps" in found
    assert "| one run | 4 | 25.00 |" in found and "| best of N | 15 | 26.00 |" in found
    assert found.count("psnr +1.00 [+1.00, +1.00]") == 3
    assert found.count("structure +0.0000 [+0.0000, +0.0000]") == 3


def test_the_interval_holds_the_mean_and_narrows_with_cases() -> None:
    rng = np.random.default_rng(1)
    few, many = (interval(rng.normal(0.5, 1, n)) for n in (16, 1024))
    for mean, low, high in (few, many):
        assert low < mean < high
    assert many[2] - many[1] < (few[2] - few[1]) / 4
    assert many[1] > 0


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--candidates", "1"]])
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *arguments]) == 2
    assert "--candidates" in capsys.readouterr().err
