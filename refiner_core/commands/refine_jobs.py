"""`omnirefiner refine --jobs`: the repairs of a list or a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exit_status
from .model_options import model_arguments
from .progress import ProgressLine
from .workers import add_workers, place

if TYPE_CHECKING:
    from ..jobs.run_jobs import RepairedJob, Summary
    from ..repair.request import RefineOptions
    from ..workers.items import Finished


def add_jobs(group: Any) -> None:
    """Add the options of many repairs."""
    group.add_argument(
        "--jobs",
        metavar="FILE|DIR",
        help="repair all of a .jsonl file, or of a folder with one folder for each case, into the "
        "folder --out; run it again to resume it",
    )
    add_workers(group)


def check_single(chosen: argparse.Namespace) -> None:
    """Refuse the options of many repairs for a single one."""
    for option in ("devices", "ray"):
        if getattr(chosen, option):
            raise ValueError(f"--{option} is for many repairs: it needs --jobs.")


def _check_list(chosen: argparse.Namespace) -> None:
    for option in ("draft", "reference", "mask", "reference_mask", "paste_mask", "report"):
        if getattr(chosen, option):
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is for a single repair; with --jobs the list names files.")
    if chosen.strict:
        raise ValueError(
            "--strict is for a single repair; with --jobs the reports in --out list poor matches as "
            "mismatches."
        )


class _Teller:
    """Tells how a run of many jobs goes on."""

    def __init__(self, line: ProgressLine) -> None:
        self.line = line

    def __call__(self, job: str, finished: Finished[RepairedJob], summary: Summary) -> None:
        notes = [] if finished.result is None else list(finished.result.notes)
        if finished.error is not None:
            notes = [f"FAILED: {finished.error}"]
        if notes:
            self.line.clear()
        for note in notes:
            print(f"{job}: {note.rstrip('.')}.", file=sys.stderr)
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        text = f"{summary.done} of {summary.jobs} jobs{failed}"
        self.line.say(text, summary.done / summary.jobs)


def run_list(chosen: argparse.Namespace, options: RefineOptions) -> int:
    """Repair the jobs of a list; returns the exit status.

    Raises:
        ValueError: an option, the list or the folder cannot be used; nothing is written then.
    """
    from ..jobs.job_list import read_jobs
    from ..jobs.results import SUMMARY
    from ..jobs.run_jobs import run_jobs

    _check_list(chosen)
    out = Path(chosen.out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file; with --jobs it must be a folder.")
    listed = read_jobs(Path(chosen.jobs), options, chosen.resize_mask)
    for name, reason in listed.broken.items():
        print(f"{name}: FAILED: {reason}", file=sys.stderr)
    with ProgressLine(chosen.quiet) as line:
        line.say("loading the refiner")
        summary = run_jobs(
            listed, out, model_arguments(chosen), place(chosen), chosen.overwrite, _Teller(line)
        )
    if not chosen.quiet:
        print(_sentence(summary))
    if summary.failed:
        print(f"{len(summary.failed)} jobs failed: see {out / SUMMARY}.", file=sys.stderr)
        return exit_status.SOME_FAILED
    return exit_status.DONE


def _sentence(summary: Summary) -> str:
    """How a run ended."""
    before = f", {summary.finished_before} were done before" if summary.finished_before else ""
    rate = 60 * summary.repaired / summary.seconds if summary.seconds else 0.0
    return (
        f"{summary.repaired} of {summary.jobs} jobs repaired{before}, {len(summary.failed)} failed, "
        f"in {summary.seconds:.1f} s ({rate:.1f} a minute)"
    )
