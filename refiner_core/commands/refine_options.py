"""The options of `omnirefiner refine`, and the values that they stand for."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_options import add_model_options
from .workers import add_workers

if TYPE_CHECKING:
    from ..jobs.repair_files import RepairFiles
    from ..repair.request import RefineOptions


def add_options(p: argparse.ArgumentParser) -> None:
    """Add all options, group by group."""
    _add_files(p.add_argument_group("pictures"))
    _add_jobs(p.add_argument_group("many pictures"))
    add_model_options(p)
    _add_repair(p.add_argument_group("repair"))
    _add_pasting(p.add_argument_group("pasting"))
    _add_candidates(p.add_argument_group("best of several candidates"))


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


def _add_jobs(group: Any) -> None:
    group.add_argument(
        "--jobs",
        metavar="FILE|DIR",
        help="repair all of a .jsonl file, or of a folder with one folder for each case, into the "
        "folder --out; run it again to resume it",
    )
    add_workers(group)


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
        help=f"how the repaired crop is blended in {recipe}",
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


def chosen_files(chosen: argparse.Namespace) -> RepairFiles:
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


def chosen_options(chosen: argparse.Namespace) -> RefineOptions:
    """The settings of the repairs.

    Raises:
        ValueError: a value that no repair can have.
    """
    from ..repair.request import RefineOptions

    names = (f.name for f in fields(RefineOptions))
    return RefineOptions(**{name: getattr(chosen, name) for name in names})
