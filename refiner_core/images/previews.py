"""Small pictures that show the progress of a run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from .geometry import Box, CropPlan, Extent
from .tensors import resize, to_float

_BAND_ROWS = 64  # rows of a preview that are made at once


def fitted(size: Extent, side: int) -> Extent:
    """`size` scaled down until no side is over `side` px; never enlarged, and at least 1x1."""
    factor = min(1.0, side / max(size))
    return Extent(max(1, round(size.width * factor)), max(1, round(size.height * factor)))


def to_pillow(image: Tensor, side: int | None = None) -> Image.Image:
    """The first picture of B 3 H W (any stored type) with 8 bits, no side over `side` px."""
    pixels = image[:1]
    whole = Extent(pixels.shape[-1], pixels.shape[-2])
    size = whole if side is None else fitted(whole, side)
    step = min(whole) // (4 * max(size))
    if step > 1:  # keeps 4 pixels for each that is shown
        pixels = pixels[..., ::step, ::step]
    else:
        factor = _whole_factor(whole, size)
        if factor is not None:
            return _averaged(pixels, factor)
    return _averaged(resize(to_float(pixels), size), 1)


def _whole_factor(whole: Extent, size: Extent) -> int | None:
    """How many pixels along each axis one of a smaller `size` stands for, if that is a whole number."""
    factor = whole.width // size.width
    return factor if whole == Extent(factor * size.width, factor * size.height) else None


def _averaged(pixels: Tensor, factor: int) -> Image.Image:
    """The means of squares of `factor` px of 1 3 H W, with 8 bits; H and W are multiples of it."""
    height, width = (n // factor for n in pixels.shape[-2:])
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_ROWS):  # whole float copies of a large picture take long
        band = pixels[0, :, top * factor : (top + _BAND_ROWS) * factor]
        eight = to_float(band).clamp(0, 1).mul_(255).round_().byte().movedim(0, -1).cpu().numpy()
        picture = Image.fromarray(np.ascontiguousarray(eight))
        out[top : top + _BAND_ROWS] = np.asarray(picture.reduce(factor) if factor > 1 else picture)
    return Image.fromarray(out)


def updated(shown: Image.Image, image: Tensor, boxes: Iterable[Box]) -> Image.Image:
    """The preview of a picture that was repaired, from the preview of the draft.

    Args:
        shown: the draft's preview, as `to_pillow` makes it.
        image: the repaired picture, B 3 H W of any stored type; the first is shown.
        boxes: where it may differ from the draft, in px of the picture.

    Returns:
        what `to_pillow` would make of the repaired picture at the same size.
    """
    whole, size = Extent(image.shape[-1], image.shape[-2]), Extent(*shown.size)
    factor = _whole_factor(whole, size)
    if factor is None or min(whole) // (4 * max(size)) > 1:
        return to_pillow(image, max(size))
    out = shown.copy()
    for box in boxes:
        x0, y0 = (max(0, edge) // factor for edge in box[:2])
        x1, y1 = (-(-min(edge, n) // factor) for edge, n in zip(box[2:], whole, strict=True))
        part = image[:1, :, y0 * factor : y1 * factor, x0 * factor : x1 * factor]
        out.paste(_averaged(part, factor), (x0, y0))
    return out


def in_place(whole: Image.Image, plan: CropPlan, crop: Image.Image) -> Image.Image:
    """A copy of the planned picture, at any scale, with a crop of it pasted in and outlined."""
    factor = whole.width / plan.image.width
    box = [round(v * factor) for v in plan.box]
    out = whole.copy()
    size = (max(1, box[2] - box[0]), max(1, box[3] - box[1]))
    out.paste(crop.resize(size, Image.Resampling.BILINEAR), (box[0], box[1]))
    edge = [box[0], box[1], box[0] + size[0] - 1, box[1] + size[1] - 1]
    ImageDraw.Draw(out).rectangle(edge, outline=(255, 255, 255))
    return out
