"""Benchmark `bad-inputs`: hundreds of bad inputs for the command line, and how they are taken."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections import defaultdict
from typing import Any

import torch

from tests.bad_inputs import BadInput, Verdict, inputs, judge

_SECONDS = 120  # after which a command counts as one that hangs


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("bad-inputs", help="bad inputs for the command line (Linux only)")
    p.add_argument("kinds", nargs="*", metavar="KIND", help="picture, mask, weights, ...; all")
    p.add_argument(
        "--memory", type=int, default=2048, help="MB that a command may take; default: %(default)s"
    )
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print a line for each kind, and every fault."""
    rows: dict[str, list[tuple[BadInput, Verdict, float]]] = defaultdict(list)
    for bad in inputs():
        if not chosen.kinds or bad.kind in chosen.kinds:
            verdict, peak = examine(bad, chosen.memory)
            rows[bad.kind].append((bad, verdict, peak))
            if verdict.fault:
                print(f"{bad}: {verdict.fault}", flush=True)
    print(
        f"{'kind':<12}{'inputs':>8}{'refused':>9}{'results':>9}{'faults':>8}{'slowest s':>11}{'MB':>7}"
    )
    for kind, made in rows.items():
        verdicts = [v for _, v, _ in made]
        print(
            f"{kind:<12}{len(made):>8}{sum(v.status == 2 for v in verdicts):>9}"
            f"{sum(v.status in (0, 4) for v in verdicts):>9}"
            f"{sum(v.fault is not None for v in verdicts):>8}"
            f"{max(v.seconds for v in verdicts):>11.1f}{max(p for *_, p in made):>7.0f}"
        )
    print(f"{sum(map(len, rows.values()))} inputs")


def examine(bad: BadInput, megabytes: int) -> tuple[Verdict, float]:
    """The verdict on a bad input in a forked process with that much memory, and the MB it took."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)  # a forked OpenMP pool would hang
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit = (_address_space() + megabytes) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        verdict = judge(bad)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results.put((verdict, (peak - before) / 1024))

    process = context.Process(target=work)
    process.start()
    process.join(_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return Verdict(-1, "", _SECONDS, f"no end after {_SECONDS} s"), 0.0
    if results.empty():
        return Verdict(-1, "", 0.0, f"the process ended with {process.exitcode}"), 0.0
    return results.get()


def _address_space() -> int:
    """MB of address space that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize() >> 20
