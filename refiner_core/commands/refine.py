"""`omnirefiner refine`: one draft and its reference from files to a file, or many."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exit_status
from .model_options import add_model_options, model_arguments
from .progress import ProgressLine, RepairProgress
from .refine_jobs import add_jobs, check_single, run_list

if TYPE_CHECKING:
    from ..jobs.repair_files import RepairFiles
    from ..repair.request import RefineOptions


_SPEED = (
    "What costs time is loading the model, and then sampling, which grows with --steps, --candidates "
    "and --megapixels, but not with the size of the picture. To save time, repair many pictures in one "
    "run with --jobs, and raise those three only as far as you see a difference."
)


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("refine", help="repair one picture, or many", epilog=_SPEED)
    _add_files(p.add_argument_group("pictures"))
    add_jobs(p.add_argument_group("many pictures"))
    add_model_options(p)
    _add_repair(p.add_argument_group("repair"))
    _add_pasting(p.add_argument_group("pasting"))
    _add_candidates(p.add_argument_group("best of several candidates"))
    p.set_defaults(run=run)


def _add_files(group: Any) -> None:
    group.add_argument("--draft", metavar="FILE", help="the picture to repair")
    group.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture of the correct detail; can be given up to three times",
    )
    group.add_argument(
        "--mask", metavar="FILE", help="white is repaired (default: the whole picture)"
    )
    group.add_argument(
        "--reference-mask",
        action="append",
        default=[],
        metavar="FILE",
        help="white is the detail in the reference; in the order of --reference (default: its "
        "alpha channel)",
    )
    group.add_argument(
        "--paste-mask",
        metavar="FILE",
        help="white is pasted of the repaired crop (default: the region)",
    )
    group.add_argument(
        "--resize-mask", action="store_true", help="resize masks to the size of their pictures"
    )
    group.add_argument(
        "--out",
        required=True,
        metavar="FILE|DIR",
        help="the .png, .tif or lossless .webp to write; with --jobs, the folder",
    )
    group.add_argument("--report", metavar="FILE", help="write a report as JSON")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument(
        "--strict",
        action="store_true",
        help="exit with status 4 if a reference does not match its region, or hardly; the results are "
        "written in any case",
    )
    group.add_argument("--quiet", action="store_true", help="print only warnings and errors")


def _add_repair(group: Any) -> None:
    recipe = "(default: the recipe's)"
    group.add_argument("--prompt", help="the full prompt (default: the recipe's template)")
    group.add_argument("--subject", help="the name of the detail in the template, such as 'logo'")
    group.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    group.add_argument("--steps", type=int, help=f"sampling steps, 1 to 1000 {recipe}")
    group.add_argument("--guidance", type=float, help=f"guidance scale, 0 to 100 {recipe}")
    group.add_argument(
        "--context",
        type=float,
        metavar="F",
        help=f"size of the crop relative to the region, at least 1 {recipe}",
    )
    group.add_argument(
        "--megapixels", type=float, metavar="P", help=f"size that the model works at {recipe}"
    )
    group.add_argument(
        "--grow",
        type=float,
        default=0,
        metavar="PX",
        help="grow the mask, or shrink it if negative (default: 0)",
    )
    group.add_argument(
        "--model-mask",
        type=float,
        default=0.0,
        metavar="0..1",
        help="how strongly sampling is held to the draft outside the region (default: 0)",
    )
    _add_switch(
        group,
        "--align",
        f"align the reference with the draft first {recipe}; --align repairs even if the detail "
        "is not found in the reference",
    )


def _add_pasting(group: Any) -> None:
    recipe = "(default: the recipe's)"
    group.add_argument(
        "--feather",
        type=float,
        default=6,
        metavar="PX",
        help="width of the blend inside the edge of the mask (default: 6)",
    )
    group.add_argument(
        "--blend",
        choices=("feather", "multiband", "membrane"),
        default="feather",
        help="how the repaired crop is blended in (default: feather)",
    )
    group.add_argument(
        "--paste",
        choices=("region", "crop"),
        default="region",
        help="what of the repaired crop is pasted: the region, or all of the crop (default: region)",
    )
    group.add_argument(
        "--color-match",
        type=float,
        metavar="0..1",
        help=f"how much of the color shift is removed {recipe}",
    )
    _add_switch(group, "--drift", f"correct shift and zoom {recipe}")


def _add_switch(group: Any, name: str, text: str) -> None:
    """An option with a `--no-` form; without either it is None."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)


def _add_candidates(group: Any) -> None:
    group.add_argument(
        "--candidates",
        type=int,
        default=1,
        metavar="N",
        help="number of candidates, 1 to 64, with seeds from --seed on (default: 1)",
    )
    group.add_argument(
        "--keep",
        type=int,
        default=1,
        metavar="K",
        help="number of candidates that run to the end (default: 1)",
    )
    group.add_argument(
        "--prune-at",
        type=int,
        metavar="S",
        help="drop the worse half every S steps; 0 never does (default: a quarter of the steps)",
    )


def _files(chosen: argparse.Namespace) -> RepairFiles:
    """The files of a single repair."""
    from ..jobs.repair_files import RepairFiles

    given = {"--draft FILE": chosen.draft, "--reference FILE": chosen.reference}
    missing = [option for option, value in given.items() if not value]
    if missing:
        raise ValueError(f"refine needs {' and '.join(missing)}, or --jobs for many repairs.")
    mask, paste_mask = (None if p is None else Path(p) for p in (chosen.mask, chosen.paste_mask))
    return RepairFiles(
        Path(chosen.draft),
        tuple(map(Path, chosen.reference)),
        mask,
        tuple(map(Path, chosen.reference_mask)),
        paste_mask,
        chosen.resize_mask,
    )


def _options(chosen: argparse.Namespace) -> RefineOptions:
    from ..repair.request import RefineOptions

    names = (f.name for f in fields(RefineOptions))
    return RefineOptions(**{name: getattr(chosen, name) for name in names})


def run(chosen: argparse.Namespace) -> int:
    """Repair the picture, or the pictures of a list, and write the files.

    Raises:
        ValueError: any input that cannot be used; nothing is written then.
    """
    return run_list(chosen, _options(chosen)) if chosen.jobs else _run_one(chosen)


def _run_one(chosen: argparse.Namespace) -> int:
    from ..images.image_io import Picture, check_picture_output, save_picture
    from ..jobs.repair_files import read_request
    from ..load import load_engine
    from ..repair.pipeline import refine
    from ..storage.output_files import atomic_path, check_output

    check_single(chosen)
    out = check_picture_output(chosen.out, chosen.overwrite)
    report = check_output(chosen.report, chosen.overwrite) if chosen.report else None
    request, draft = read_request(_files(chosen), _options(chosen))
    with ProgressLine(chosen.quiet) as line:
        line.say("loading the refiner")
        result = refine(load_engine(**model_arguments(chosen)), request, RepairProgress(line))
    save_picture(Picture(result.image, draft.alpha), out, chosen.overwrite)
    if report is not None:
        data = {**result.report, "draft_file": str(chosen.draft)}
        with atomic_path(report) as temporary:
            Path(temporary).write_text(json.dumps(data, indent=2), encoding="utf-8")
    for note in result.report["notes"]:
        print(f"omnirefiner: {note}.", file=sys.stderr)
    mismatches = len(result.report["mismatches"])
    if not chosen.quiet:
        poor = f", {mismatches} of them without a good match" if mismatches else ""
        seconds = result.report["seconds_total"]
        print(f"{out}: {len(result.crops)} region(s){poor} in {seconds:.1f} s")
    return exit_status.POOR_MATCH if chosen.strict and mismatches else exit_status.DONE
