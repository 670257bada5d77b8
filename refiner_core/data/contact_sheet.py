"""Contact sheets of a data set, to look at before training on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .shards import TripletSet
from .triplets import Triplet

_TILE, _LINE, _GAP = 168, 17, 6
_COLUMNS = 2
_EDGE = (255, 64, 64)


def spread(total: int, count: int) -> list[int]:
    """`count` evenly spaced numbers of `range(total)`, or all of them if there are fewer."""
    if count >= total:
        return list(range(total))
    return [round((i + 0.5) * total / count - 0.5) for i in range(count)]


def _outline(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The picture with the mask's edge drawn into it."""
    inside = mask > 0
    core = inside.copy()
    core[1:] &= inside[:-1]
    core[:-1] &= inside[1:]
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    out = pixels.copy()
    out[inside & ~core] = _EDGE
    return Image.fromarray(out)


def _crop_box(triplet: Triplet) -> tuple[int, int, int, int]:
    """The box of the mask with a third of it as margin."""
    h, w = triplet.mask.shape
    rows, cols = np.flatnonzero(triplet.mask.any(1)), np.flatnonzero(triplet.mask.any(0))
    if not len(rows):
        return 0, 0, w, h
    dx, dy = (len(cols) // 3 + 2), (len(rows) // 3 + 2)
    left, top = max(0, int(cols[0]) - dx), max(0, int(rows[0]) - dy)
    return left, top, min(w, int(cols[-1]) + dx), min(h, int(rows[-1]) + dy)


def _tile(image: Image.Image) -> Image.Image:
    scale = min(_TILE / image.width, _TILE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tile = Image.new("RGB", (_TILE, _TILE), (235, 235, 235))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    tile.paste(image.resize(size, how), ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    return tile


def _row(triplet: Triplet, split: str) -> Image.Image:
    """Reference, draft with the mask's edge, and the detail in draft and target."""
    box = _crop_box(triplet)
    reference = Image.fromarray(triplet.reference)
    if triplet.reference_mask is not None:
        reference = _outline(triplet.reference, triplet.reference_mask)
    target = triplet.draft if triplet.target is None else triplet.target
    details = (Image.fromarray(p).crop(box) for p in (triplet.draft, target))
    pictures = [reference, _outline(triplet.draft, triplet.mask), *details]
    row = Image.new("RGB", (4 * _TILE + 3 * _GAP, _TILE + _LINE), "white")
    for i, picture in enumerate(pictures):
        row.paste(_tile(picture), (i * (_TILE + _GAP), _LINE))
    font = ImageFont.load_default(12)
    ImageDraw.Draw(row).text((1, 1), _caption(triplet, split), fill="black", font=font)
    return row


def _caption(triplet: Triplet, split: str) -> str:
    degradation = triplet.info.get("degradation", {})
    strength = f" {degradation['strength']:.2f}" if degradation.get("strength") else ""
    size = f"{triplet.draft.shape[1]}x{triplet.draft.shape[0]}"
    degraded = f"{degradation.get('name', '')}{strength}"
    words = [triplet.id, split, size, str(triplet.info.get("kind", "")), degraded]
    return "  ".join(w for w in words if w)


def contact_sheet(data: TripletSet, numbers: Sequence[int]) -> Image.Image:
    """A sheet of these triplets: reference, draft, and the detail in draft and target."""
    rows = [_row(data[n], str(data.entries[n]["split"])) for n in numbers]
    per_column = -(-len(rows) // _COLUMNS)
    width, height = rows[0].size
    size = (_COLUMNS * width + (_COLUMNS + 1) * 3 * _GAP, per_column * (height + _GAP) + 3 * _GAP)
    sheet = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        x = 3 * _GAP + i // per_column * (width + 3 * _GAP)
        sheet.paste(row, (x, 2 * _GAP + i % per_column * (height + _GAP)))
    return sheet
