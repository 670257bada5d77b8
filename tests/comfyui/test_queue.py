"""Prompts of mixed sizes one after another: `python -m tests.benchmarks queue` in short."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.queue_load import SIZES, measure, write_inputs


def test_prompts_of_mixed_sizes(server: Any) -> None:
    write_inputs(server.base / "input")
    samples = list(measure(server, 4))
    assert len(samples) == 4 < len(SIZES)
    # Each shows two inputs, two pictures of the repair and two of the comparison.
    grown = samples[-1].files - samples[0].files
    assert 0 < grown <= 3 * 6
