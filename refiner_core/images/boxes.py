"""Boxes that point at details: pairs of rectangles in relative coordinates, as text and in pixels.

The text is what the region picker of the nodes keeps in its widget and what the API takes:
`[{"draft": [x0, y0, x1, y1], "reference": [x0, y0, x1, y1]}, ...]`, every number a fraction of the
picture's width or height, so that it stays right when a picture changes size. "reference" may be
null or absent: the whole reference.
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
        """The box in whole pixels of a picture, at least 1x1 and inside it."""
        x0, x1 = _interval(self.x0, self.x1, size.width)
        y0, y1 = _interval(self.y0, self.y1, size.height)
        return Box(x0, y0, x1, y1)


class BoxPair(NamedTuple):
    """One detail: where it is in the draft, and where in the reference (None = all of it)."""

    draft: RelativeBox
    reference: RelativeBox | None = None


def _interval(low: float, high: float, length: int) -> tuple[int, int]:
    start = min(math.floor(low * length + 0.5), length - 1)
    return start, min(max(math.floor(high * length + 0.5), start + 1), length)


def parse_boxes(text: str | None) -> tuple[BoxPair, ...]:
    """The pairs that `text` (see the module) describes; empty text means none.

    Raises:
        ValueError: not such a list, a number outside 0..1, a box without area, or over 64 boxes;
            names the box.
    """
    if not text or not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"boxes is no valid JSON: {e.msg} at character {e.pos}.") from None
    if not isinstance(entries, list):
        raise ValueError(
            f"boxes must be a list of pairs like {EXAMPLE}, got a {type(entries).__name__}."
        )
    if len(entries) > MAX_REGIONS:
        raise ValueError(
            f"There are {len(entries)} boxes; at most {MAX_REGIONS} are repaired in one run."
        )
    return tuple(_pair(entry, number) for number, entry in enumerate(entries, 1))


EXAMPLE = '[{"draft": [0.1, 0.2, 0.4, 0.5], "reference": [0, 0, 1, 1]}]'


def _pair(entry: Any, number: int) -> BoxPair:
    if not isinstance(entry, dict) or "draft" not in entry or not entry.keys() <= _KEYS:
        raise ValueError(
            f"Box {number} must have the key draft and may have reference, as in {EXAMPLE}, "
            f"got {json.dumps(entry)[:80]}."
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
            f"{where} reaches outside the picture: coordinates are fractions, 0..1, got {values}."
        )
    x0, y0, x1, y1 = map(float, values)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{where} has no area: {values}. Draw it again or delete it.")
    return RelativeBox(x0, y0, x1, y1)


def format_boxes(pairs: tuple[BoxPair, ...]) -> str:
    """The text that `parse_boxes` reads back."""
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
    """One region per pair, in their order: what `mask` 1 1 H W has in the box, else the whole box.

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
    """`box` (in the window's coordinates) as a mask of the window, narrowed to `mask` if it has
    something in the box.
    """
    out = torch.zeros(1, 1, window.extent.height, window.extent.width)
    fill_box(out, box)
    if mask is not None:
        narrowed = out * mask[..., window.y0 : window.y1, window.x0 : window.x1].float().cpu()
        if bool((narrowed > 0).any()):
            return narrowed
    return out


def reference_box_mask(box: RelativeBox, size: Extent, mask: Tensor | None) -> Tensor:
    """The mask 1 1 h w of one box of a reference, narrowed to `mask` if that has some in it."""
    return masked_box(box.pixels(size), Box(0, 0, *size), mask)
