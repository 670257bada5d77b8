"""Benchmark `data`: processor time of a procedural triplet on one core, by stage."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("data", help="procedural triplets per second and core")
    p.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], metavar="PX", help="default: 256 512"
    )
    p.add_argument("--count", type=int, default=48, help="samples per size; default: %(default)s")
    p.set_defaults(run=run)


class _Clock:
    """Processor seconds per stage, so that other programs on the machine do not count."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.last = time.process_time()

    def __call__(self, name: str) -> None:
        now = time.process_time()
        self.spent[name] += now - self.last
        self.last = now


def _made(size: int, count: int, clock: _Clock) -> Iterator[Any]:
    """Triplets that pass all stages, out of `count` samples."""
    from refiner_core.data.sample import RejectedError, Sample, sample_seed
    from refiner_core.data.stages.procedural import (
        ProceduralDegrade,
        ProceduralMask,
        ProceduralPair,
        ProceduralSelect,
    )

    pair = ProceduralPair(size)
    stages = (pair, ProceduralSelect(pair), ProceduralMask(pair), ProceduralDegrade(pair))
    for number in range(count):
        sample = Sample(f"{number:08d}", sample_seed(0, number), number)
        try:
            for stage in stages:
                sample = stage(sample)
                clock(stage.name)
        except RejectedError:
            continue
        yield sample.triplet()


def _measure(size: int, count: int) -> None:
    from refiner_core.data.shards import TripletSet, write_shard

    list(_made(size, 2, _Clock()))  # fonts and photographs are loaded once a process
    clock = _Clock()
    triplets = list(_made(size, count, clock))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-00000.tar"
        clock("rest")
        write_shard(path, triplets)
        clock("write")
        made = sum(clock.spent.values())
        reading = _Clock()
        data = TripletSet(folder)
        for number in range(len(data)):
            data[number]
        reading("read")
        megabytes = path.stat().st_size / 1e6 / len(triplets)
    print(f"\n{size} px: {len(triplets)} of {count} samples kept, {megabytes:.2f} MB each")
    for name in ("pair", "select", "mask", "degrade", "write"):
        print(f"  {name:<8}{1e3 * clock.spent[name] / count:>8.1f} ms a sample")
    print(f"  made    {len(triplets) / made:>8.1f} triplets/s on one core")
    print(f"  read    {len(triplets) / reading.spent['read']:>8.1f} triplets/s on one core")


def run(chosen: argparse.Namespace) -> None:
    """Print the table."""
    import torch

    torch.set_num_threads(1)
    print("processor time, procedural back ends, one process")
    for size in chosen.sizes:
        _measure(size, chosen.count)
