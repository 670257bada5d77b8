"""Benchmark `speed`: what a repair costs, and what the ways to save time save, in one table.

Times are those of the processor, with one thread, so that other programs disturb them little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from refiner_core.images.demo_cases import CASES
from refiner_core.images.geometry import Extent
from refiner_core.images.masks import find_regions
from refiner_core.models.kontext import CleanCache, Conditioning, Denoiser
from refiner_core.nano.nano_engine import load_nano
from refiner_core.repair.pipeline import refine
from refiner_core.repair.prepare_region import plan_region, prepare_region
from refiner_core.repair.request import RefineOptions, RefineRequest, RegionTask
from tests.synthetic import zero_text

from .measuring import Figure, broken_picture, median_seconds, print_figures

ROOT = Path(__file__).parents[2]


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("speed", help="start-up, jobs, one-way attention, picture size: one table")
    p.add_argument("--rounds", type=int, default=3, help="timed runs; the median is reported")
    p.add_argument(
        "--jobs", type=int, default=24, help="repairs in the comparison with single calls"
    )
    p.set_defaults(run=run)


def _spent(*arguments: str) -> float:
    """Seconds of the processor that a Python process and its children take."""
    before = os.times()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _files(case: Path) -> dict[str, str]:
    return {role: str(case / f"{role}.png") for role in ("draft", "reference", "mask")}


def _start_up(rounds: int) -> Iterator[Figure]:
    def least(*arguments: str) -> float:
        return min(_spent(*arguments) for _ in range(rounds))

    imported = least("-c", "import torch")
    yield Figure(
        "omnirefiner --help", least("-m", "refiner_core", "--help"), imported, "import torch"
    )
    case = CASES / "word"
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder, "out.png"), Path(folder, "out.json")
        files = [part for role, file in _files(case).items() for part in (f"--{role}", file)]
        command = ["-m", "refiner_core", "refine", *files, "--out", str(out), "--overwrite",
                   "--report", str(report)]  # fmt: skip
        whole = least(*command)
    repair = median_seconds(_repair_of(case), rounds, time.process_time)
    yield Figure(
        "refine with nano, from start to file", whole, imported + repair, "import torch + repair"
    )


def _repair_of(case: Path) -> Any:
    from refiner_core.jobs.repair_files import RepairFiles, read_request

    engine, files = load_nano(), {role: Path(file) for role, file in _files(case).items()}
    request, _ = read_request(
        RepairFiles(files["draft"], (files["reference"],), files["mask"]), RefineOptions()
    )
    return lambda: refine(engine, request)


def _many(count: int) -> Iterator[Figure]:
    """Jobs in one process and in two, against the repairs alone as their reports have them."""
    cases = sorted(p for p in CASES.iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        jobs = Path(folder, "jobs.jsonl")
        lines = [{**_files(cases[i % len(cases)]), "id": f"n{i}", "seed": i} for i in range(count)]
        jobs.write_text("\n".join(map(json.dumps, lines)))
        for devices in ("cpu", "cpu,cpu"):
            out = Path(folder, devices)
            command = ["-m", "refiner_core", "refine", "--jobs", str(jobs), "--out", str(out)]
            spent = _spent(*command, "--quiet", "--devices", devices)
            summary = json.loads((out / "summary.json").read_text())
            workers = devices.count("cpu")
            begin = workers * _spent("-c", "import refiner_core.load")
            yield Figure(
                f"{count} jobs, --devices {devices}", spent, spent - begin, "without the start"
            )
            wall = summary["seconds"] * workers
            yield Figure(f"{count} jobs, --devices {devices}, by the clock", wall,
                 summary["repair_seconds"], "repairs alone")  # fmt: skip


@torch.inference_mode()
def _one_way(side: int, rounds: int) -> Figure:
    """A step of nano with a draft and a reference, its clean tokens known or not."""
    model = load_nano().model
    g = torch.Generator().manual_seed(0)
    x, draft, reference = torch.randn(3, 1, 16, side // 4, side // 4, generator=g)
    given = {"conditioning": Conditioning((draft, reference), (1, 2), *zero_text(model))}
    level = torch.tensor([0.7])
    known, both = Denoiser(model, "one way", CleanCache()), Denoiser(model)
    usual = median_seconds(lambda: both(x, level, **given), rounds, time.process_time)
    cached = median_seconds(lambda: known(x, level, **given), rounds, time.process_time)
    return Figure(f"a step of nano one way, {side} px", cached, usual, "both ways")


def _picture_size(rounds: int) -> Iterator[Figure]:
    """The repair alone, from pictures to pictures: reading and writing files is not in it."""
    engine = load_nano()
    requests: dict[int, RefineRequest] = {}
    for side in (512, 2048, 8192):
        draft, reference, mask = broken_picture(side)
        requests[side] = RefineRequest(draft, (reference,), mask)
    spent: dict[int, list[float]] = {side: [] for side in requests}
    for _ in range(rounds + 1):  # in turns, so that what else runs disturbs all alike
        for side, request in requests.items():
            begun = time.process_time()
            refine(engine, request)
            spent[side].append(time.process_time() - begun)
    medians = {side: statistics.median(times[1:]) for side, times in spent.items()}
    for side, seconds in medians.items():
        title = f"a 256 px region in a picture of {side} px"
        yield Figure(title, seconds, medians[512], "512 px")


def _alignment(rounds: int) -> Figure:
    """What finding the reference's detail and laying it over takes of a repair, with boxes."""
    engine, options = load_nano(), RefineOptions()
    draft, reference, mask = broken_picture(512)
    whole = torch.ones(1, 1, *reference.shape[-2:])
    request = RefineRequest(draft, (reference,), mask, (whole,), options)
    task = RegionTask(find_regions(mask)[0], (reference,), (whole,))
    size = Extent(draft.shape[-1], draft.shape[-2])

    @torch.inference_mode()
    def align() -> None:
        planned = plan_region(task, size, engine.recipe, options)
        prepare_region(draft, planned, engine.recipe, options)

    own = median_seconds(align, rounds, time.process_time)
    repair = median_seconds(lambda: refine(engine, request), rounds, time.process_time)
    return Figure("alignment of a 256 px region", own, repair, "the repair")


def figures(rounds: int, jobs: int) -> Iterator[Figure]:
    """All that is measured, with one thread."""
    torch.set_num_threads(1)
    yield from _start_up(rounds)
    for side in (128, 256, 512):
        yield _one_way(side, rounds)
    yield from _picture_size(rounds)
    yield _alignment(rounds)
    yield from _many(jobs)


def run(chosen: argparse.Namespace) -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, seconds of the processor, one thread")
    for _ in print_figures(figures(chosen.rounds, chosen.jobs)):
        pass
