"""Builds one mask from a painted mask, boxes and the difference to another picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.boxes import BoxPair, Shape, box_regions
from ..images.geometry import Box, Extent
from ..images.masks import bounds, find_regions
from ..images.shapes import RelativeBox
from ..matching.difference import difference_mask


@dataclass(frozen=True)
class MaskOptions:
    """`threshold` of the difference, 0..1; `align` pose and light before comparing; `grow` in px,
    negative shrinks; `fill_holes`; `smallest` piece that is kept, in px; `invert` at the end.
    """

    threshold: float = 0.12
    align: bool = True
    grow: int = 0
    fill_holes: bool = True
    smallest: int = 16
    invert: bool = False


def build_mask(
    image: Tensor,
    painted: Tensor | None = None,
    other: Tensor | None = None,
    pairs: tuple[BoxPair, ...] = (),
    options: MaskOptions | None = None,
) -> Tensor:
    """What is painted, what the boxes cover and what differs from `other`, together: 1 1 H W.

    Args:
        image: 1 3 H W.
        painted: 1 1 H W or None.
        other: a second picture 1 3 h w to compare with, or None.
        pairs: boxes on the image.

    Raises:
        ValueError: the painted mask has another size than the image, or nothing is marked.
    """
    o = options or MaskOptions()
    size = Extent(image.shape[-1], image.shape[-2])
    total = torch.zeros(1, 1, size.height, size.width)
    if painted is not None:
        if painted.shape[-2:] != total.shape[-2:]:
            raise ValueError(
                f"The mask is {painted.shape[-1]}x{painted.shape[-2]} but the image is {size}. "
                "Resize the mask first."
            )
        total = torch.maximum(total, painted.float())
    for pair in pairs:
        total = torch.maximum(total, pair.draft.cover(size, Box(0, 0, *size)))
    if other is not None:
        difference = difference_mask(image, other, threshold=o.threshold, aligned=o.align)
        total = torch.maximum(total, difference)
    if bounds(total) is None:
        raise ValueError(
            "Nothing is marked yet, the mask is empty: draw a box around the detail, connect a "
            "painted mask, or connect compare_with to mark what differs."
        )
    cleaned = _cleaned(total, o)
    return 1 - cleaned if o.invert else cleaned


def _cleaned(total: Tensor, o: MaskOptions) -> Tensor:
    out = torch.zeros_like(total)
    for region in find_regions(total, grow_pixels=o.grow, holes=o.fill_holes, smallest=o.smallest):
        b = region.box
        inside = out[..., b.y0 : b.y1, b.x0 : b.x1]
        inside.copy_(torch.maximum(inside, region.mask))
    return out


def grown_boxes(pairs: tuple[BoxPair, ...], size: Extent, grow: int) -> tuple[BoxPair, ...]:
    """The pairs with their draft boxes grown (or shrunk) by `grow` px, inside the picture."""
    if grow == 0:
        return pairs
    regions = box_regions(pairs, size, grow_pixels=grow)
    return tuple(
        BoxPair(_grown(pair.draft, region.box, size, grow), pair.reference)
        for pair, region in zip(pairs, regions, strict=True)
    )


def _grown(shape: Shape, box: Box, size: Extent, grow: int) -> Shape:
    if not isinstance(shape, RelativeBox):
        return shape.grown(grow, size)
    w, h = size
    return RelativeBox(box.x0 / w, box.y0 / h, box.x1 / w, box.y1 / h)


def reference_mask(pairs: tuple[BoxPair, ...], size: Extent) -> Tensor | None:
    """The boxes on the reference as one mask 1 1 h w, or None if there are none."""
    boxes = [p.reference for p in pairs if p.reference is not None]
    if not boxes:
        return None
    mask = torch.zeros(1, 1, size.height, size.width)
    for box in boxes:
        mask = torch.maximum(mask, box.cover(size, Box(0, 0, *size)))
    return mask
