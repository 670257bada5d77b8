"""Small pictures that show the progress of a run."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from .geometry import CropPlan, Extent
from .tensors import resize, to_float


def fitted(size: Extent, side: int) -> Extent:
    """`size` scaled down until no side is over `side` px; never enlarged, and at least 1x1."""
    factor = min(1.0, side / max(size))
    return Extent(max(1, round(size.width * factor)), max(1, round(size.height * factor)))


def to_pillow(image: Tensor, side: int | None = None) -> Image.Image:
    """The first picture of B 3 H W (any stored type) with 8 bits, no side over `side` px."""
    pixels = image[:1]
    if side is not None and max(pixels.shape[-2:]) > side:
        step = max(1, min(pixels.shape[-2:]) // (4 * side))  # keeps 4 pixels for each that is shown
        whole = Extent(pixels.shape[-1], pixels.shape[-2])
        pixels = resize(to_float(pixels[..., ::step, ::step]), fitted(whole, side))
    pixels = to_float(pixels).clamp(0, 1)[0].movedim(0, -1)
    return Image.fromarray((pixels * 255).round().byte().cpu().numpy())


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
