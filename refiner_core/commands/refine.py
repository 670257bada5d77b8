"""`omnirefiner refine`: one draft and its reference from files to a file, or many."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exit_status
from .model_options import model_arguments
from .progress import ProgressLine, RepairProgress
from .refine_options import add_options, chosen_files, chosen_options
from .workers import place

if TYPE_CHECKING:
    from ..jobs.run_jobs import RepairedJob, Summary
    from ..workers.items import Finished

_SPEED = (
    "What costs time is loading the model, and then sampling, which grows with --steps, --candidates "
    "and --megapixels, but not with the size of the picture. To save time, repair many pictures in one "
    "run with --jobs, and raise those three only as far as you see a difference."
)


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("refine", help="repair one picture, or many", epilog=_SPEED)
    add_options(p)
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Repair the picture, or the pictures of a list, and write the files.

    Raises:
        ValueError: any input that cannot be used; nothing is written then.
    """
    return _run_list(chosen) if chosen.jobs else _run_one(chosen)


def _run_one(chosen: argparse.Namespace) -> int:
    from ..images.image_io import Picture, check_picture_output, save_picture
    from ..jobs.repair_files import read_request
    from ..load import load_engine
    from ..repair.pipeline import refine
    from ..storage.output_files import check_output, write_text

    _check_single(chosen)
    files, options, model = chosen_files(chosen), chosen_options(chosen), model_arguments(chosen)
    line = ProgressLine(chosen.quiet, "loading the refiner")
    out = check_picture_output(chosen.out, chosen.overwrite)
    report = check_output(chosen.report, chosen.overwrite) if chosen.report else None
    with line:
        request, draft = read_request(files, options)
        result = refine(load_engine(**model), request, RepairProgress(line), in_place=True)
    save_picture(Picture(result.image, draft.alpha), out, chosen.overwrite)
    if report is not None:
        data = {**result.report, "draft_file": str(chosen.draft)}
        write_text(report, json.dumps(data, indent=2))
    for note in result.report["notes"]:
        print(f"omnirefiner: {note}.", file=sys.stderr)
    mismatches = len(result.report["mismatches"])
    if not chosen.quiet:
        poor = f", {mismatches} of them without a good match" if mismatches else ""
        seconds = result.report["seconds_total"]
        print(f"{out}: {len(result.crops)} region(s){poor} in {seconds:.1f} s")
    return exit_status.POOR_MATCH if chosen.strict and mismatches else exit_status.DONE


def _run_list(chosen: argparse.Namespace) -> int:
    from ..jobs.job_list import read_jobs
    from ..jobs.results import SUMMARY
    from ..jobs.run_jobs import run_jobs

    options, model = chosen_options(chosen), model_arguments(chosen)
    line = ProgressLine(chosen.quiet, "loading the refiner")
    _check_list(chosen)
    where = place(chosen)
    out = Path(chosen.out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file; with --jobs it must be a folder.")
    listed = read_jobs(Path(chosen.jobs), options, chosen.resize_mask)
    for name, reason in listed.broken.items():
        print(f"{name}: FAILED: {reason}", file=sys.stderr)
    with line:
        summary = run_jobs(listed, out, model, where, chosen.overwrite, _Teller(line))
    if not chosen.quiet:
        print(_sentence(summary))
    if summary.failed:
        print(f"{len(summary.failed)} jobs failed: see {out / SUMMARY}.", file=sys.stderr)
        return exit_status.SOME_FAILED
    return exit_status.DONE


def _check_single(chosen: argparse.Namespace) -> None:
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


def _sentence(summary: Summary) -> str:
    """How a run ended."""
    before = f", {summary.finished_before} were done before" if summary.finished_before else ""
    rate = f" ({60 * summary.repaired / summary.seconds:.1f} a minute)" if summary.repaired else ""
    return (
        f"{summary.repaired} of {summary.jobs} jobs repaired{before}, {len(summary.failed)} failed, "
        f"in {summary.seconds:.1f} s{rate}"
    )
