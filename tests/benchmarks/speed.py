"""Parts of the figures: start-up, jobs, the size of the picture, alignment.

Times are those of the processor, with one thread, so that other programs disturb them little; jobs a
minute are by the clock, and need an idle machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refiner_core.images.demo_cases import CASES
from refiner_core.images.geometry import Extent
from refiner_core.images.masks import find_regions
from refiner_core.nano.nano_engine import load_nano
from refiner_core.repair.pipeline import refine
from refiner_core.repair.prepare_region import plan_region, prepare_region
from refiner_core.repair.request import RefineOptions, RefineRequest, RegionTask

from .measuring import Figure, broken_picture, median_seconds

ROOT = Path(__file__).parents[2]
_MODULE = ("-m", "refiner_core")
_SINGLE = 6  # calls that are enough for a rate


def _run(*arguments: str, checkout: Path = ROOT) -> None:
    """A Python process with one thread, in a checkout of this project."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)


def _spent(*arguments: str, checkout: Path = ROOT) -> float:
    """Seconds of the processor that such a process and its children take."""
    before = os.times()
    _run(*arguments, checkout=checkout)
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _seconds(*arguments: str) -> float:
    """Seconds by the clock that such a process takes."""
    begun = time.perf_counter()
    _run(*arguments)
    return time.perf_counter() - begun


def _files(case: Path) -> dict[str, str]:
    roles = ("draft", "reference", "mask", "reference_mask")
    return {role: str(case / f"{role}.png") for role in roles}


def _single_call(case: Path, out: Path) -> list[str]:
    named = {role.replace("_", "-"): file for role, file in _files(case).items()}
    files = [part for option, file in named.items() for part in (f"--{option}", file)]
    return [*_MODULE, "refine", *files, "--out", str(out), "--overwrite"]


def start_up(rounds: int, base: Path | None) -> Iterator[Figure]:
    """The command's start beside that of PyTorch, and of another revision's checkout."""
    torch.set_num_threads(1)

    def least(*arguments: str, checkout: Path = ROOT) -> float:
        return min(_spent(*arguments, checkout=checkout) for _ in range(rounds))

    imported = least("-c", "import torch")
    case = CASES / "word"
    repair = median_seconds(_repair_of(case), rounds, time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "omnirefiner --help": ([*_MODULE, "--help"], imported, "import torch"),
            "refine with nano, from start to file": (
                _single_call(case, Path(folder, "out.png")),
                imported + repair,
                "import torch + repair",
            ),
        }
        for title, (command, other, what) in commands.items():
            now = least(*command)
            yield Figure(title, now, other, what)
            if base is not None:
                yield Figure(title, now, least(*command, checkout=base), f"in {base.name}")


def _repair_of(case: Path) -> Any:
    from refiner_core.jobs.repair_files import RepairFiles, read_request

    engine, files = load_nano(), {role: Path(file) for role, file in _files(case).items()}
    own = RepairFiles(
        files["draft"], (files["reference"],), files["mask"], (files["reference_mask"],)
    )
    request, _ = read_request(own, RefineOptions())
    return lambda: refine(engine, request)


def many_jobs(count: int) -> Iterator[Figure]:
    """Jobs in one process and in two, beside single calls and beside the repairs alone as their
    reports have them.
    """
    cases = sorted(p for p in CASES.iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "single.png")
        calls = [_single_call(cases[i % len(cases)], out) for i in range(min(count, _SINGLE))]
        rate = 60 / statistics.mean(_seconds(*call) for call in calls)
        jobs = Path(folder, "jobs.jsonl")
        lines = [{**_files(cases[i % len(cases)]), "id": f"n{i}", "seed": i} for i in range(count)]
        jobs.write_text("\n".join(map(json.dumps, lines)))
        for workers in (1, 2):
            wall, repairs = _run_jobs(jobs, Path(folder, str(workers)), workers)
            title = f"{count} jobs, {workers} worker{'s' if workers > 1 else ''}"
            yield Figure(title, 60 * count / wall, rate, "single calls", "a min")
            yield Figure(f"{title}, by the clock", wall * workers, repairs, "repairs alone")


def _run_jobs(jobs: Path, out: Path, workers: int) -> tuple[float, float]:
    """Seconds by the clock from start to end, and those of all repairs together."""
    devices = ",".join(workers * ["cpu"])
    command = [*_MODULE, "refine", "--jobs", str(jobs), "--out", str(out), "--quiet"]
    wall = _seconds(*command, "--devices", devices)
    return wall, json.loads((out / "summary.json").read_text())["repair_seconds"]


def picture_size(rounds: int) -> Iterator[Figure]:
    """The repair alone, in the caller's own picture as the command does it, and in a copy."""
    torch.set_num_threads(1)
    engine = load_nano()
    requests: dict[int, RefineRequest] = {}
    for side in (512, 2048, 8192):
        draft, reference, mask = broken_picture(side)
        requests[side] = RefineRequest(draft, (reference,), mask)
    for in_place, how in ((True, ""), (False, ", in a copy of it")):
        spent: dict[int, list[float]] = {side: [] for side in requests}
        for _ in range(rounds + 1):  # in turns, so that what else runs disturbs all alike
            for side, request in requests.items():
                own = replace(request, draft=request.draft.clone())
                begun = time.process_time()
                refine(engine, own, in_place=in_place)
                spent[side].append(time.process_time() - begun)
        medians = {side: statistics.median(times[1:]) for side, times in spent.items()}
        for side in (2048, 8192):
            title = f"a 256 px region in an image of {side} px{how}"
            yield Figure(title, medians[side], medians[512], "512 px")


def alignment(rounds: int) -> Iterator[Figure]:
    """What finding the reference's detail and laying it over takes of a repair, with boxes."""
    torch.set_num_threads(1)
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
    yield Figure(
        "finding the detail of a 256 px region and laying it over",
        own,
        repair,
        "the repair with it",
    )
