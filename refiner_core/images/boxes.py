"""Boxes that point at details: pairs of shapes in relative coordinates, as text and in pixels.

The text is what the node's region picker stores in its widget and what the API takes:
`[{"draft": [x0, y0, x1, y1], "reference": [x0, y0, x1, y1]}, ...]`. Every number is a fraction of
the picture's width or height, so boxes stay valid when a picture is resized. In place of an upright
box there may be the four corners `[[x, y], [x, y], [x, y], [x, y]]` of a convex outline, in order:
a rotated box, or a flat surface seen at an angle. Or there may be what was painted with a brush:
`{"strokes": [{"size": 0.05, "points": [[x, y], ...]}, ...]}`, where `size` is the diameter of the
brush as a fraction of the picture's width, `"erase": true` makes a stroke erase, and `"from"`
beside the strokes is a box or an outline that they change. If "reference" is null or absent, the
whole reference is meant.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from .geometry import Box, Extent
from .masks import MAX_REGIONS, Region, find_regions
from .shapes import RelativeBox, RelativePainting, RelativeQuad, Stroke, bends

_KEYS = {"draft", "reference"}
_MOST_POINTS = 20_000  # of the strokes of one painting

Shape = RelativeBox | RelativeQuad | RelativePainting


class BoxPair(NamedTuple):
    """Where one detail is in the draft and in the reference."""

    draft: Shape
    reference: Shape | None = None  # None means the whole reference


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
    except RecursionError:
        raise ValueError(f"boxes must be a list of pairs like {EXAMPLE}.") from None
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
        _shape(entry["draft"], number, "draft"),
        None if reference is None else _shape(reference, number, "reference"),
    )


def are_numbers(values: Any, length: int) -> bool:
    """Whether a value from JSON is a list of that many numbers."""
    return (
        isinstance(values, list)
        and len(values) == length
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    )


def _check_fractions(values: list[float], where: str) -> None:
    if not all(0 <= v <= 1 for v in values):  # false for NaN, too
        raise ValueError(
            f"{where} reaches outside the picture: coordinates are fractions from 0 to 1, got {values}."
        )


def _shape(values: Any, number: int, picture: str) -> Shape:
    where = f"Box {number} of the {picture}"
    if isinstance(values, dict):
        return _painting(cast("dict[str, Any]", values), where)
    return _outline(values, where)


def _outline(values: Any, where: str) -> RelativeBox | RelativeQuad:
    if isinstance(values, list) and any(isinstance(v, list) for v in values):
        return _quad(values, where)
    return _box(values, where)


def _painting(values: dict[str, Any], where: str) -> RelativePainting:
    strokes = values.get("strokes")
    if not values.keys() <= {"strokes", "from"} or not isinstance(strokes, list):
        raise ValueError(
            f"{where} must have the key strokes and may have the key from, got {str(values)[:80]}."
        )
    given = cast("list[Any]", strokes)
    start = values.get("from")
    painting = RelativePainting(
        tuple(_stroke(stroke, where) for stroke in given),
        None if start is None else _outline(start, where),
    )
    points = sum(len(stroke.points) for stroke in painting.strokes)
    if points > _MOST_POINTS:
        raise ValueError(
            f"{where} is painted with {points} points, but at most {_MOST_POINTS} are supported. Use "
            "a mask instead."
        )
    if painting.start is None and all(stroke.erase for stroke in painting.strokes):
        raise ValueError(f"{where} has no stroke that paints. Paint the detail or delete it.")
    return painting


def _stroke(values: Any, where: str) -> Stroke:
    stroke = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    points, size, erase = stroke.get("points"), stroke.get("size"), stroke.get("erase", False)
    path = cast("list[Any]", points) if isinstance(points, list) else []
    known = stroke.keys() <= {"points", "size", "erase"} and isinstance(erase, bool)
    if not known or not path or not all(are_numbers(p, 2) for p in path):
        raise ValueError(
            f"{where} has a stroke that is not a brush size and points [x, y]: {str(values)[:80]}."
        )
    if not are_numbers([size], 1) or not 0 < cast("float", size) <= 1:
        raise ValueError(f"{where} has a stroke whose size is not between 0 and 1, got {size}.")
    _check_fractions([v for point in path for v in point], where)
    return Stroke(tuple((float(x), float(y)) for x, y in path), float(cast("float", size)), erase)


def _quad(values: list[Any], where: str) -> RelativeQuad:
    if len(values) != 4 or not all(are_numbers(v, 2) for v in values):
        raise ValueError(f"{where} must be four corners [x, y], got {str(values)[:80]}.")
    _check_fractions([v for corner in values for v in corner], where)
    turns = bends(np.array(values, np.float64))
    if not ((turns > 0).all() or (turns < 0).all()):
        raise ValueError(
            f"{where} is not a convex outline: {values}. Give the corners in order round it, so that "
            "its sides do not cross and no corner points inwards."
        )
    return RelativeQuad(tuple((float(x), float(y)) for x, y in values))


def _box(values: Any, where: str) -> RelativeBox:
    if not are_numbers(values, 4):
        raise ValueError(f"{where} must be four numbers x0, y0, x1, y1, got {str(values)[:80]}.")
    _check_fractions(values, where)
    x0, y0, x1, y1 = map(float, values)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{where} has no area: {values}. Draw it again or delete it.")
    return RelativeBox(x0, y0, x1, y1)


def format_boxes(pairs: tuple[BoxPair, ...]) -> str:
    """The pairs as text that `parse_boxes` reads."""
    entries = [
        {"draft": _numbers(p.draft), "reference": p.reference and _numbers(p.reference)}
        for p in pairs
    ]
    return json.dumps(entries)


def _numbers(shape: Shape) -> Any:
    if isinstance(shape, RelativePainting):
        strokes = [_stroke_values(stroke) for stroke in shape.strokes]
        start = {} if shape.start is None else {"from": _numbers(shape.start)}
        return {"strokes": strokes, **start}
    return [list(c) for c in shape.corners] if isinstance(shape, RelativeQuad) else list(shape)


def _stroke_values(stroke: Stroke) -> dict[str, Any]:
    values: dict[str, Any] = {"size": stroke.size, "points": [list(p) for p in stroke.points]}
    return values | {"erase": True} if stroke.erase else values


def box_regions(
    pairs: tuple[BoxPair, ...],
    size: Extent,
    mask: Tensor | None = None,
    *,
    grow_pixels: float = 0,
) -> list[Region]:
    """One region per pair, in the order of the pairs.

    Args:
        pairs: the boxes on the draft.
        size: of the draft.
        mask: 1 1 H W; a region is what the mask has in its box, or the whole box if that is nothing.
        grow_pixels: as for `find_regions`; holes that were erased are not filled.

    Raises:
        ValueError: nothing is left of a box that `grow_pixels` shrinks.
    """
    regions = []
    margin = max(0, math.ceil(grow_pixels)) + 1
    for pair in pairs:
        box = pair.draft.pixels(size)
        window = box.grown(margin, margin, size)
        inside = _narrowed(pair.draft.cover(size, window), window, mask)
        meant = isinstance(pair.draft, RelativePainting) and pair.draft.erased
        region = find_regions(inside, grow_pixels=grow_pixels, holes=not meant, split=False)[0]
        regions.append(Region(region.box.moved(window.x0, window.y0), region.mask))
    return regions


def _narrowed(inside: Tensor, window: Box, mask: Tensor | None) -> Tensor:
    """A mask of the window, narrowed to `mask` 1 1 H W of the picture if that has anything in it."""
    if mask is not None:
        narrowed = inside * mask[..., window.y0 : window.y1, window.x0 : window.x1].float().cpu()
        if bool((narrowed > 0).any()):
            return narrowed
    return inside


def reference_box_mask(box: Shape, size: Extent, mask: Tensor | None) -> Tensor:
    """One box of a reference as a mask 1 1 h w, narrowed to `mask` if that has anything in the box."""
    whole = Box(0, 0, *size)
    return _narrowed(box.cover(size, whole), whole, mask)
