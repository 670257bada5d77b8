"""Clocks, memory and test pictures for the benchmarks."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Figure(NamedTuple):
    """One thing beside another, measured in the same run."""

    title: str
    value: float
    other: float
    what: str  # the other one is
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Of the value to the other one."""
        return self.value / self.other

    def __str__(self) -> str:
        values = f"{_number(self.value):>9}{_number(self.other):>9}"
        return f"{self.title:<62}{values} {self.unit:<6}{self.ratio:>6.2f}  {self.what}"


def _number(value: float) -> str:
    """Counts as they are, and three digits of what is measured."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


class NotMeasuredError(ValueError):
    """Something that is needed is missing; says what."""


def print_figures(figures: Iterable[Figure]) -> Iterator[Figure]:
    """Print a table line by line, and pass the figures on."""
    for figure in figures:
        print(figure, flush=True)
        yield figure


def markdown(figures: Iterable[Figure]) -> str:
    """The same as a table in Markdown."""
    rows = [
        f"| {f.title} | {_number(f.value)} {f.unit} | {f.what} | {_number(f.other)} {f.unit} "
        f"| {f.ratio:.2f} |\n"
        for f in figures
    ]
    head = "| what | | compared with | | ratio |\n|---|---|---|---|---|\n"
    return head + "".join(rows)


def median_seconds(
    work: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of `rounds` runs, after one that does not count; by default wall time."""
    work()
    times = []
    for _ in range(rounds):
        begun = clock()
        work()
        times.append(clock() - begun)
    return statistics.median(times)


def noise_picture(side: int) -> tuple[Tensor, Tensor]:
    """A uint8 picture 1 3 H W and a mask with a 256 px region (or a third of it) in the middle."""
    values = np.random.default_rng(0).integers(0, 255, (1, 3, side, side), dtype=np.uint8)
    mask = torch.zeros(1, 1, side, side)
    half, mid = min(128, side // 3), side // 2
    mask[..., mid - half : mid + half, mid - half : mid + half] = 1
    return torch.from_numpy(values), mask


def broken_picture(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """A draft whose middle is blurred, 1 3 H W, the reference that shows its 256 px as they were, and
    the mask of these. The middle and what is around it are the same for every side from 512 px.
    """
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 32, 32, generator=generator)
    tile = F.interpolate(small, (256, 256), mode="bicubic").clamp(0, 1)
    tile = (255 * tile).round().to(torch.uint8)
    times = side // 256
    draft = tile.repeat(1, 1, times, times)
    start = (side - 256) // 2
    middle = draft[..., start : start + 256, start : start + 256]
    reference = middle.clone()
    inner = middle[..., 64:192, 64:192]
    inner.copy_(F.avg_pool2d(inner.float(), 15, 1, 7).round())
    mask = torch.zeros(1, 1, side, side)
    mask[..., start : start + 256, start : start + 256] = 1
    return draft, reference, mask


def peak_megabytes(work: Callable[[], object]) -> float:
    """MB of resident memory that `work` adds at its peak, in a forked process (Linux, macOS)."""
    import resource

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def measure() -> None:
        torch.set_num_threads(1)  # a forked OpenMP pool would hang
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    process = context.Process(target=measure)
    process.start()
    added = results.get()
    process.join()
    return added / 1024
