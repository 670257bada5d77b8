"""Benchmark `fuzz`: thousands of damaged and hostile files for every reader, and what they did."""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzzing import TARGETS, Target


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("fuzz", help="damaged and hostile files for every reader")
    p.add_argument(
        "targets", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)}; default: all"
    )
    p.add_argument("--examples", type=int, default=1000, help="files for each; default: 1000")
    p.add_argument("--seed", type=int, default=0, help="seed of the files")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print a line for each reader, and every fault once.

    Raises:
        ValueError: there is no reader of that name.
    """
    unknown = [name for name in chosen.targets if name not in TARGETS]
    if unknown:
        raise ValueError(f"There is no reader {unknown[0]!r}; choose of {', '.join(TARGETS)}.")
    print(f"{'reader':<22}{'files':>7}{'faults':>8}{'slowest s':>11}")
    for name in chosen.targets or TARGETS:
        files, slowest, faults = examine(TARGETS[name], chosen.examples, chosen.seed)
        print(f"{name:<22}{files:>7}{sum(faults.values()):>8}{slowest:>11.2f}", flush=True)
        for fault, count in faults.most_common():
            print(f"    {count} x {fault}", flush=True)


def examine(target: Target, examples: int, start: int) -> tuple[int, float, Counter[str]]:
    """How many files were tried, the seconds of the slowest, and faults by type and place."""
    faults: Counter[str] = Counter()
    seconds: list[float] = []

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: Any) -> None:
        given_input = data.draw(target.inputs)
        begun = time.perf_counter()
        try:
            target.check(given_input)
        except Exception as e:  # every fault is counted, of whatever type
            place = traceback.extract_tb(e.__traceback__)[-1]
            faults[f"{type(e).__name__} in {place.filename}:{place.lineno}: {str(e)[:90]}"] += 1
        seconds.append(time.perf_counter() - begun)

    attempt()
    return len(seconds), max(seconds, default=0.0), faults
