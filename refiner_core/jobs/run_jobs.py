"""Runs the jobs of a list: the refiner is loaded once per worker, and finished jobs are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..images.image_io import Picture
from ..interfaces import Engine
from ..load import load_engine
from ..repair.pipeline import refine
from ..workers.dispatch import Place
from ..workers.items import Finished
from .job_list import Job, JobList
from .repair_files import read_request
from .results import SUMMARY, Results, write_json


@dataclass(frozen=True)
class RepairedJob:
    """What is reported of a finished job."""

    regions: int
    seconds: float
    """Of the repair itself, without reading and writing files."""
    notes: tuple[str, ...]


@dataclass
class Summary:
    """How the jobs of a run ended."""

    jobs: int
    """All entries of the list."""
    finished_before: int = 0
    repaired: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By id, why."""
    tracebacks: dict[str, str] = field(default_factory=dict)
    """Of failures that the job's own values do not explain."""
    repair_seconds: float = 0
    """Of all repairs of this run together."""
    seconds: float = 0
    """From the start of the run to its end."""

    @property
    def done(self) -> int:
        """Jobs that need no more work in this run."""
        return self.finished_before + self.repaired + len(self.failed)


# Called after every job: its id, what became of it, and the summary so far.
OnFinished = Callable[[str, Finished[RepairedJob], Summary], None]


def _repair(engine: Engine, results: Results, job: Job) -> RepairedJob:
    request, draft = read_request(job.files, job.options)
    result = refine(engine, request, in_place=True)
    results.write(job, Picture(result.image, draft.alpha), result.report)
    seconds, notes = result.report["seconds_total"], result.report["notes"]
    return RepairedJob(len(result.crops), seconds, tuple(notes))


def _open(results: Results, device: str) -> Callable[[Job], RepairedJob]:
    return partial(_repair, load_engine(**{**results.model, "device": device}), results)


def run_jobs(
    listed: JobList,
    out: Path,
    model: Mapping[str, Any],
    place: Place,
    overwrite: bool = False,
    report: OnFinished = lambda job, finished, summary: None,
) -> Summary:
    """Repair what is not repaired yet, and write OUT/ID.png, OUT/ID.json and OUT/summary.json.

    Args:
        listed: the jobs.
        out: the folder; it is made if it does not exist.
        model: arguments of `load_engine`; the device is the worker's.
        place: where the work is done.
        overwrite: whether pictures that other settings made are replaced.
        report: called after every job.

    Raises:
        ValueError: other settings' pictures are in the way, or the refiner cannot be loaded.
        ConnectionError: there is no Ray cluster.
    """
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out.absolute(), model)
    todo = results.todo(listed.jobs, overwrite)
    summary = Summary(len(listed.jobs) + len(listed.broken), len(listed.jobs) - len(todo))
    summary.failed.update(listed.broken)
    try:
        for finished in place.run(partial(_open, results), todo):
            _count(summary, todo[finished.index].id, finished)
            summary.seconds = time.perf_counter() - begun
            if finished.error is not None:
                write_json(out / SUMMARY, vars(summary))
            report(todo[finished.index].id, finished, summary)
    finally:
        summary.seconds = time.perf_counter() - begun
        write_json(out / SUMMARY, vars(summary))
    return summary


def _count(summary: Summary, name: str, finished: Finished[RepairedJob]) -> None:
    if finished.error is not None:
        summary.failed[name] = finished.error
        if finished.traceback:
            summary.tracebacks[name] = finished.traceback
    elif finished.result is not None:
        summary.repaired += 1
        summary.repair_seconds += finished.result.seconds
