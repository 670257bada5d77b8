"""`omnirefiner refine`: one draft and its reference from files to a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_options import add_model_options, model_arguments

if TYPE_CHECKING:
    from torch import Tensor


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("refine", help="repair one picture")
    files = p.add_argument_group("pictures")
    files.add_argument("--draft", required=True, metavar="FILE", help="the picture to repair")
    files.add_argument(
        "--reference", required=True, action="append", metavar="FILE",
        help="the true detail; up to three times, several views of the same thing",
    )  # fmt: skip
    files.add_argument("--mask", metavar="FILE", help="white = repair; without it, everything")
    files.add_argument(
        "--reference-mask", action="append", default=[], metavar="FILE",
        help="white = the detail in the reference, in the order of --reference",
    )  # fmt: skip
    files.add_argument("--resize-mask", action="store_true", help="fit masks of another size")
    files.add_argument("--out", required=True, metavar="FILE", help=".png, .tif or lossless .webp")
    files.add_argument("--report", metavar="FILE", help="write what was done as JSON")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    add_model_options(p)
    how = p.add_argument_group("repair")
    how.add_argument("--prompt", help="full prompt; default: the recipe's template")
    how.add_argument("--subject", help="what the template calls the detail, e.g. 'logo'")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--steps", type=int, help="1 to 1000; default: the recipe's")
    how.add_argument("--guidance", type=float, help="guidance embedding; default: the recipe's")
    how.add_argument("--context", type=float, metavar="F", help="crop size over region size, >= 1")
    how.add_argument("--megapixels", type=float, metavar="P", help="area the model works at")
    how.add_argument("--feather", type=float, default=6, metavar="PX", help="blend inside the edge")
    how.add_argument("--grow", type=float, default=0, metavar="PX", help="grow the mask first")
    how.add_argument("--model-mask", type=float, default=0.0, metavar="0..1",
                     help="hold sampling to the draft outside the region")  # fmt: skip
    how.add_argument("--blend", choices=("feather", "multiband", "membrane"), default="feather")
    how.add_argument("--color-match", type=float, metavar="0..1",
                     help="take out the colour cast; default: the recipe's")  # fmt: skip
    how.add_argument("--drift", action=argparse.BooleanOptionalAction, default=None,
                     help="take out shift and zoom; default: the recipe's")  # fmt: skip
    how.add_argument("--align", action=argparse.BooleanOptionalAction, default=None,
                     help="bring the reference into the draft's pose first; "
                     "--align repairs even where the detail is not found")  # fmt: skip
    best = p.add_argument_group("best of several")
    best.add_argument("--candidates", type=int, default=1, metavar="N",
                      help="begin N repairs, seeds from --seed on; return the best; 1 to 64")  # fmt: skip
    best.add_argument("--keep", type=int, default=1, metavar="K", help="how many run to the end")
    best.add_argument("--prune-at", type=int, metavar="S",
                      help="drop the worse half every S steps; 0 = never; default: steps/4")  # fmt: skip
    p.set_defaults(run=run)


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


def run(chosen: argparse.Namespace) -> None:
    """Do it.

    Raises:
        ValueError: any input that cannot be used; nothing is written then.
    """
    from ..images.image_io import Picture, check_picture_output, load_picture, save_picture
    from ..load import load_engine
    from ..repair.pipeline import refine
    from ..repair.request import RefineOptions, RefineRequest
    from ..storage.output_files import atomic_path, check_output

    out = check_picture_output(chosen.out, chosen.overwrite)
    report = check_output(chosen.report, chosen.overwrite) if chosen.report else None
    if len(chosen.reference_mask) > len(chosen.reference):
        raise ValueError(
            f"{len(chosen.reference_mask)} reference masks for {len(chosen.reference)} references."
        )
    options = RefineOptions(
        prompt=chosen.prompt, subject=chosen.subject, seed=chosen.seed, steps=chosen.steps,
        guidance=chosen.guidance, context=chosen.context, megapixels=chosen.megapixels,
        grow=chosen.grow, feather=chosen.feather, model_mask=chosen.model_mask,
        blend=chosen.blend, color_match=chosen.color_match, drift=chosen.drift, align=chosen.align,
        candidates=chosen.candidates, keep=chosen.keep, prune_at=chosen.prune_at,
    )  # fmt: skip
    draft = load_picture(chosen.draft, "draft")
    references, reference_masks, notes = _references(chosen)
    notes = [f"draft {chosen.draft}: {note}" for note in draft.notes] + notes
    mask = None
    if chosen.mask:
        mask, more = _mask(chosen.mask, draft.pixels, chosen.resize_mask, "mask")
        notes += more
    engine = load_engine(**model_arguments(chosen))
    request = RefineRequest(
        draft.pixels, references, mask, reference_masks, options, notes=tuple(notes)
    )
    result = refine(engine, request)
    save_picture(Picture(result.image, draft.alpha), out, chosen.overwrite)
    if report is not None:
        data = {**result.report, "draft_file": str(chosen.draft)}
        with atomic_path(report) as temporary:
            Path(temporary).write_text(json.dumps(data, indent=2), encoding="utf-8")
    for note in result.report["notes"]:
        print(f"omnirefiner: {note}.", file=sys.stderr)
    print(f"{out}: {len(result.crops)} region(s) in {result.report['seconds_total']:.1f} s")
