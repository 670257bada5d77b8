"""Contact sheets of a data set: what a person looks at before training on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .shards import TripletSet
from .triplets import Triplet

_TILE, _LINE, _GAP = 168, 17, 6
_EDGE = (255, 64, 64)


def spread(total: int, count: int) -> list[int]:
    """`count` numbers out of `range(total)`, evenly apart; all of them if there are not so many."""
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
    """A box around the mask with a third of it as margin."""
    h, w = triplet.mask.shape
    rows, cols = np.flatnonzero(triplet.mask.any(1)), np.flatnonzero(triplet.mask.any(0))
    if not len(rows):
        return 0, 0, w, h
    dx, dy = (len(cols) // 3 + 2), (len(rows) // 3 + 2)
    return (max(0, int(cols[0]) - dx), max(0, int(rows[0]) - dy),
            min(w, int(cols[-1]) + dx), min(h, int(rows[-1]) + dy))  # fmt: skip


def _tile(image: Image.Image) -> Image.Image:
    scale = min(_TILE / image.width, _TILE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tile = Image.new("RGB", (_TILE, _TILE), (235, 235, 235))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    tile.paste(image.resize(size, how), ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    return tile


def _row(triplet: Triplet, split: str) -> Image.Image:
    """Reference, draft with the mask's edge, and the details of draft and target."""
    box = _crop_box(triplet)
    reference = Image.fromarray(triplet.reference)
    if triplet.reference_mask is not None:
        reference = _outline(triplet.reference, triplet.reference_mask)
    target = triplet.draft if triplet.target is None else triplet.target
    pictures = [reference, _outline(triplet.draft, triplet.mask),
                Image.fromarray(triplet.draft).crop(box), Image.fromarray(target).crop(box)]  # fmt: skip
    row = Image.new("RGB", (4 * _TILE + 3 * _GAP, _TILE + _LINE), "white")
    for i, picture in enumerate(pictures):
        row.paste(_tile(picture), (i * (_TILE + _GAP), _LINE))
    broken = triplet.info.get("degradation", {})
    strength = f" {broken['strength']:.2f}" if broken.get("strength") else ""
    size = f"{triplet.draft.shape[1]}x{triplet.draft.shape[0]}"
    error = f"{broken.get('name', '')}{strength}"
    words = [triplet.id, split, size, str(triplet.info.get("kind", "")), error]
    font = ImageFont.load_default(12)
    ImageDraw.Draw(row).text((1, 1), "  ".join(w for w in words if w), fill="black", font=font)
    return row


def contact_sheet(data: TripletSet, numbers: Sequence[int], columns: int = 2) -> Image.Image:
    """A sheet of these triplets, each as reference, draft, draft's detail and true detail."""
    rows = [_row(data[n], str(data.entries[n]["split"])) for n in numbers]
    deep = -(-len(rows) // columns)
    width, height = rows[0].size
    sheet = Image.new(
        "RGB", (columns * width + (columns + 1) * 3 * _GAP, deep * (height + _GAP) + 3 * _GAP), "white"
    )  # fmt: skip
    for i, row in enumerate(rows):
        x = 3 * _GAP + i // deep * (width + 3 * _GAP)
        sheet.paste(row, (x, 2 * _GAP + i % deep * (height + _GAP)))
    return sheet
