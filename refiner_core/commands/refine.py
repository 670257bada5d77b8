"""`omnirefiner refine`: one draft and its reference from files to a file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_options import add_model_options, model_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from ..images.image_io import Picture
    from ..repair.request import RefineRequest


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("refine", help="repair one picture")
    _add_files(p.add_argument_group("pictures"))
    add_model_options(p)
    _add_repair(p.add_argument_group("repair"))
    _add_candidates(p.add_argument_group("best of several candidates"))
    p.set_defaults(run=run)


def _add_files(group: Any) -> None:
    group.add_argument("--draft", required=True, metavar="FILE", help="the picture to repair")
    group.add_argument(
        "--reference",
        required=True,
        action="append",
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
        "--out", required=True, metavar="FILE", help="the .png, .tif or lossless .webp to write"
    )
    group.add_argument("--report", metavar="FILE", help="write a report as JSON")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")


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
        "--feather",
        type=float,
        default=6,
        metavar="PX",
        help="width of the blend inside the edge of the mask (default: 6)",
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
    _add_switch(
        group,
        "--align",
        f"align the reference with the draft first {recipe}; --align repairs even if the detail "
        "is not found in the reference",
    )


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


def _mask(path: str, like: Tensor, resize: bool, name: str) -> tuple[Tensor, tuple[str, ...]]:
    from torch.nn import functional as F

    from ..images.mask_io import read_mask

    mask, notes = read_mask(path, name)
    if mask.shape[-2:] == like.shape[-2:]:
        return mask, notes
    if not resize:
        raise ValueError(
            f"The {name} {path} is {mask.shape[-1]}x{mask.shape[-2]} but its picture is "
            f"{like.shape[-1]}x{like.shape[-2]}. Pass --resize-mask to resize it."
        )
    return F.interpolate(mask, like.shape[-2:], mode="bilinear", antialias=True), notes


def _references(
    chosen: argparse.Namespace,
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], list[str]]:
    """References as they are seen, their masks, and notes about both.

    The mask of a reference is its alpha, unless a mask file is given for it.
    """
    from ..images.image_io import load_picture

    pictures: list[Tensor] = []
    masks: list[Tensor | None] = []
    notes: list[str] = []
    for number, path in enumerate(chosen.reference):
        picture, mask = load_picture(path, "reference").as_reference()
        notes += [f"reference {path}: {note}" for note in picture.notes]
        if number < len(chosen.reference_mask):
            file = chosen.reference_mask[number]
            mask, more = _mask(file, picture.pixels, chosen.resize_mask, "reference mask")
            notes += more
        elif mask is not None:
            notes.append(f"reference {path}: its alpha channel is taken as the reference mask")
        pictures.append(picture.pixels)
        masks.append(mask)
    return tuple(pictures), tuple(masks), notes


def _request(chosen: argparse.Namespace, draft: Picture) -> RefineRequest:
    """The options and the files of the request."""
    from ..repair.request import RefineOptions, RefineRequest

    names = (f.name for f in fields(RefineOptions))
    options = RefineOptions(**{name: getattr(chosen, name) for name in names})
    references, reference_masks, notes = _references(chosen)
    notes = [f"draft {chosen.draft}: {note}" for note in draft.notes] + notes
    masks: list[Tensor | None] = []
    for path, name in ((chosen.mask, "mask"), (chosen.paste_mask, "paste mask")):
        mask, more = _mask(path, draft.pixels, chosen.resize_mask, name) if path else (None, ())
        masks.append(mask)
        notes += more
    return RefineRequest(
        draft.pixels,
        references,
        masks[0],
        reference_masks,
        options,
        notes=tuple(notes),
        paste_mask=masks[1],
    )


def run(chosen: argparse.Namespace) -> None:
    """Repair the picture and write the files.

    Raises:
        ValueError: any input that cannot be used; nothing is written then.
    """
    from ..images.image_io import Picture, check_picture_output, load_picture, save_picture
    from ..load import load_engine
    from ..repair.pipeline import refine
    from ..storage.output_files import atomic_path, check_output

    out = check_picture_output(chosen.out, chosen.overwrite)
    report = check_output(chosen.report, chosen.overwrite) if chosen.report else None
    if len(chosen.reference_mask) > len(chosen.reference):
        raise ValueError(
            f"{len(chosen.reference_mask)} reference masks for {len(chosen.reference)} references. "
            "Give at most one for each."
        )
    draft = load_picture(chosen.draft, "draft")
    request = _request(chosen, draft)
    result = refine(load_engine(**model_arguments(chosen)), request)
    save_picture(Picture(result.image, draft.alpha), out, chosen.overwrite)
    if report is not None:
        data = {**result.report, "draft_file": str(chosen.draft)}
        with atomic_path(report) as temporary:
            Path(temporary).write_text(json.dumps(data, indent=2), encoding="utf-8")
    for note in result.report["notes"]:
        print(f"omnirefiner: {note}.", file=sys.stderr)
    print(f"{out}: {len(result.crops)} region(s) in {result.report['seconds_total']:.1f} s")
