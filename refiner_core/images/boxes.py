"""Boxes that point at details: pairs of shapes in relative coordinates, as text and in pixels.

The text is what the node's region picker stores in its widget and what the API takes:
`[{"draft": [x0, y0, x1, y1], "reference": [x0, y0, x1, y1]}, ...]`. Every number is a fraction of
the picture's width or height, so boxes stay valid when a picture is resized. In place of an upright
box there may be the four corners `[[x, y], [x, y], [x, y], [x, y]]` of a convex outline, in order:
a rotated box, or a flat surface seen at an angle. If "reference" is null or absent, the whole
reference is meant.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import Box, Extent
from .masks import MAX_REGIONS, Region, find_regions

_KEYS = {"draft", "reference"}

Point = tuple[float, float]


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

    def cover(self, size: Extent, window: Box) -> Tensor:
        """A mask 1 1 h w of `window`, in pixels of a picture of that size: 1 inside, 0 outside."""
        out = torch.zeros(1, 1, window.extent.height, window.extent.width)
        inside = self.pixels(size).intersection(window).moved(-window.x0, -window.y0)
        out[..., inside.y0 : inside.y1, inside.x0 : inside.x1] = 1
        return out


class RelativeQuad(NamedTuple):
    """Four corners of a convex outline in order round it, in fractions of the picture's sides."""

    corners: tuple[Point, ...]

    def pixels(self, size: Extent) -> Box:
        """The upright box of the whole pixels that the outline touches, at least 1x1."""
        xs, ys = zip(*self.corners, strict=True)
        x0, x1 = _touched(xs, size.width)
        y0, y1 = _touched(ys, size.height)
        return Box(x0, y0, x1, y1)

    def cover(self, size: Extent, window: Box) -> Tensor:
        """How much of each pixel of `window` lies inside: 1 1 h w in [0, 1]."""
        points = self._points(size)
        y, x = (v + 0.5 for v in np.ogrid[window.y0 : window.y1, window.x0 : window.x1])
        depth = np.full((window.extent.height, window.extent.width), np.inf)
        for (ax, ay), (nx, ny) in zip(points, _inwards(points), strict=True):
            depth = np.minimum(depth, (x - ax) * nx + (y - ay) * ny)
        covered = np.clip(depth + 0.5, 0, 1).astype(np.float32)
        middle = (points.mean(0) - (window.x0, window.y0)).astype(int)
        # A sliver thinner than a pixel still covers the one in its middle.
        if (middle >= 0).all():
            pixel = covered[middle[1] : middle[1] + 1, middle[0] : middle[0] + 1]
            pixel[pixel == 0] = 1
        return torch.from_numpy(covered)[None, None]

    def grown(self, pixels: float, size: Extent) -> RelativeQuad:
        """The outline with every side moved outwards (or inwards) in a picture of that size, its
        corners kept in the picture.

        Raises:
            ValueError: nothing is left of it.
        """
        points = self._points(size)
        normals = _inwards(points)
        reach = (points * normals).sum(1) - pixels
        # A corner is where the side before it and the side after it meet.
        pairs = np.stack([np.roll(normals, 1, axis=0), normals], 1)
        ends = np.stack([np.roll(reach, 1), reach], 1)
        moved = np.linalg.solve(pairs, ends[..., None])[..., 0]
        if ((_sides(moved) * _sides(points)).sum(1) <= 0).any():  # a side has turned round
            raise ValueError(
                f"Nothing is left of an outline that is shrunk by {-pixels:g} px. Shrink it less, or "
                "draw a larger one."
            )
        inside = np.clip(moved / np.array(size), 0, 1)
        return RelativeQuad(tuple((float(px), float(py)) for px, py in inside))

    def _points(self, size: Extent) -> np.ndarray:
        """The corners in pixels, 4 2."""
        return np.array(self.corners, np.float64) * np.array(size)


Shape = RelativeBox | RelativeQuad


class BoxPair(NamedTuple):
    """Where one detail is in the draft and in the reference."""

    draft: Shape
    reference: Shape | None = None  # None means the whole reference


def _sides(points: np.ndarray) -> np.ndarray:
    """From each corner (4 2) to the next."""
    return np.roll(points, -1, axis=0) - points


def _bends(points: np.ndarray) -> np.ndarray:
    """Twice the signed area of the triangle at each corner of 4 2."""
    after = _sides(points)
    before = np.roll(after, 1, axis=0)
    return before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]


def _inwards(points: np.ndarray) -> np.ndarray:
    """The unit normals of the sides from each corner (4 2) to the next, to the inside."""
    along = _sides(points)
    normals = np.stack([-along[:, 1], along[:, 0]], 1) * np.sign(_bends(points).sum())
    return normals / np.hypot(*along.T)[:, None]


def _touched(values: tuple[float, ...], length: int) -> tuple[int, int]:
    start = min(math.floor(min(values) * length), length - 1)
    return start, min(max(math.ceil(max(values) * length), start + 1), length)


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


def _are_numbers(values: Any, length: int) -> bool:
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
    if isinstance(values, list) and any(isinstance(v, list) for v in values):
        return _quad(values, where)
    return _box(values, where)


def _quad(values: list[Any], where: str) -> RelativeQuad:
    if len(values) != 4 or not all(_are_numbers(v, 2) for v in values):
        raise ValueError(f"{where} must be four corners [x, y], got {str(values)[:80]}.")
    _check_fractions([v for corner in values for v in corner], where)
    bends = _bends(np.array(values, np.float64))
    if not ((bends > 0).all() or (bends < 0).all()):
        raise ValueError(
            f"{where} is not a convex outline: {values}. Give the corners in order round it, so that "
            "its sides do not cross and no corner points inwards."
        )
    return RelativeQuad(tuple((float(x), float(y)) for x, y in values))


def _box(values: Any, where: str) -> RelativeBox:
    if not _are_numbers(values, 4):
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


def _numbers(shape: Shape) -> list[Any]:
    return [list(c) for c in shape.corners] if isinstance(shape, RelativeQuad) else list(shape)


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
        inside = _narrowed(pair.draft.cover(size, window), window, mask)
        region = find_regions(inside, grow_pixels=grow_pixels, holes=holes, split=False)[0]
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
