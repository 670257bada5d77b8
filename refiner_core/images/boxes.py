"""Boxes that point at details: pairs of rectangles in relative coordinates, as text and in pixels.

The text is what the node's region picker stores in its widget and what the API takes:
`[{"draft": [x0, y0, x1, y1], "reference": [x0, y0, x1, y1]}, ...]`. Every number is a fraction of
the picture's width or height, so boxes stay valid when a picture is resized. If "reference" is
null or absent, the whole reference is meant.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .geometry import Box, Extent
from .masks import MAX_REGIONS, Region, find_regions

_KEYS = {"draft", "reference"}


class RelativeBox(NamedTuple):
    """A rectangle in fractions of the picture's width and height, 0..1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def pixels(self, size: Extent) -> Box:
        """The box in whole pixels of a picture of that size: inside it, and at least 1x1."""
        x0, x1 = _interval(self.x0, self.x1, size.width)
        y0, y1 = _interval(self.y0, self.y1, size.height)
        return Box(x0, y0, x1, y1)


class BoxPair(NamedTuple):
    """Where one detail is in the draft and in the reference."""

    draft: RelativeBox
    reference: RelativeBox | None = None  # None means the whole reference


def _interval(low: float, high: float, length: int) -> tuple[int, int]:
    start = min(math.floor(low * length + 0.5), length - 1)
    return start, min(max(math.floor(high * length + 0.5), start + 1), length)


def parse_boxes(text: str | None) -> tuple[BoxPair, ...]:
    """The pairs that a text in this module's format describes; empty text means none.

    Raises:
        ValueError: the text has another format, a number is outside 0..1, a box has no area, or
            there are more than 64 boxes.
    """
    if not text or not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"boxes is not valid JSON: {e.msg} at character {e.pos}.") from None
    if not isinstance(entries, list):
        raise ValueError(
            f"boxes must be a list of pairs like {EXAMPLE}, got a {type(entries).__name__}."
        )
    if len(entries) > MAX_REGIONS:
        raise ValueError(
            f"There are {len(entries)} boxes, but at most {MAX_REGIONS} are repaired in one run."
        )
    return tuple(_pair(entry, number) for number, entry in enumerate(entries, 1))


EXAMPLE = '[{"draft": [0.1, 0.2, 0.4, 0.5], "reference": [0, 0, 1, 1]}]'


def _pair(entry: Any, number: int) -> BoxPair:
    if not isinstance(entry, dict) or "draft" not in entry or not entry.keys() <= _KEYS:
        raise ValueError(
            f"Box {number} must have the key draft and may have the key reference, for example "
            f"{EXAMPLE}, got {json.dumps(entry)[:80]}."
        )
    reference = entry.get("reference")
    return BoxPair(
        _box(entry["draft"], number, "draft"),
        None if reference is None else _box(reference, number, "reference"),
    )


def _box(values: Any, number: int, picture: str) -> RelativeBox:
    where = f"Box {number} of the {picture}"
    numbers = isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )
    if not numbers or len(values) != 4:
        raise ValueError(f"{where} must be four numbers x0, y0, x1, y1, got {str(values)[:80]}.")
    if not all(0 <= v <= 1 for v in values):  # false for NaN, too
        raise ValueError(
            f"{where} reaches outside the picture: coordinates are fractions from 0 to 1, got {values}."
        )
    x0, y0, x1, y1 = map(float, values)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{where} has no area: {values}. Draw it again or delete it.")
    return RelativeBox(x0, y0, x1, y1)


def format_boxes(pairs: tuple[BoxPair, ...]) -> str:
    """The pairs as text that `parse_boxes` reads."""
    entries = [
        {"draft": list(p.draft), "reference": None if p.reference is None else list(p.reference)}
        for p in pairs
    ]
    return json.dumps(entries)


def fill_box(mask: Tensor, box: Box) -> None:
    """Set the box in a mask `1 1 H W` to 1, in place."""
    mask[..., box.y0 : box.y1, box.x0 : box.x1] = 1


def box_regions(
    pairs: tuple[BoxPair, ...],
    size: Extent,
    mask: Tensor | None = None,
    *,
    grow_pixels: float = 0,
    holes: bool = True,
) -> list[Region]:
    """One region per pair, in the order of the pairs.

    Args:
        pairs: the boxes on the draft.
        size: of the draft.
        mask: 1 1 H W; a region is what the mask has in its box, or the whole box if that is nothing.
        grow_pixels, holes: as for `find_regions`.

    Raises:
        ValueError: nothing is left of a box that `grow_pixels` shrinks.
    """
    regions = []
    margin = max(0, math.ceil(grow_pixels)) + 1
    for pair in pairs:
        box = pair.draft.pixels(size)
        window = Box(
            box.x0 - margin, box.y0 - margin, box.x1 + margin, box.y1 + margin
        ).intersection(Box(0, 0, *size))
        inside = masked_box(box.moved(-window.x0, -window.y0), window, mask)
        region = find_regions(inside, grow_pixels=grow_pixels, holes=holes, split=False)[0]
        regions.append(Region(region.box.moved(window.x0, window.y0), region.mask))
    return regions


def masked_box(box: Box, window: Box, mask: Tensor | None) -> Tensor:
    """A box as a mask of a window of the picture, narrowed to `mask` if that has anything in the box.

    Args:
        box: in coordinates of the window.
        window: in coordinates of the picture.
        mask: of the picture, 1 1 H W.
    """
    out = torch.zeros(1, 1, window.extent.height, window.extent.width)
    fill_box(out, box)
    if mask is not None:
        narrowed = out * mask[..., window.y0 : window.y1, window.x0 : window.x1].float().cpu()
        if bool((narrowed > 0).any()):
            return narrowed
    return out


def reference_box_mask(box: RelativeBox, size: Extent, mask: Tensor | None) -> Tensor:
    """One box of a reference as a mask 1 1 h w, narrowed to `mask` if that has anything in the box."""
    return masked_box(box.pixels(size), Box(0, 0, *size), mask)
