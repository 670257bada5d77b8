"""What marks a detail: boxes, outlines of four corners and brush strokes, in fractions of a picture's
width and height (`boxes` says how they look as text).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import Box, Extent

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

    def grown(self, pixels: float, size: Extent) -> RelativeBox:
        """The box with every side moved outwards (or inwards), kept in the picture.

        Raises:
            ValueError: nothing is left of it.
        """
        dx, dy = pixels / size.width, pixels / size.height
        grown = RelativeBox(
            max(0.0, self.x0 - dx),
            max(0.0, self.y0 - dy),
            min(1.0, self.x1 + dx),
            min(1.0, self.y1 + dy),
        )
        if grown.x0 >= grown.x1 or grown.y0 >= grown.y1:
            raise ValueError(
                f"Nothing is left of a box that is shrunk by {-pixels:g} px. Shrink it less, or draw "
                "a larger one."
            )
        return grown


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


def _sides(points: np.ndarray) -> np.ndarray:
    """From each corner (4 2) to the next."""
    return np.roll(points, -1, axis=0) - points


def bends(points: np.ndarray) -> np.ndarray:
    """Twice the signed area of the triangle at each corner of 4 2."""
    after = _sides(points)
    before = np.roll(after, 1, axis=0)
    return before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]


def _inwards(points: np.ndarray) -> np.ndarray:
    """The unit normals of the sides from each corner (4 2) to the next, to the inside."""
    along = _sides(points)
    normals = np.stack([-along[:, 1], along[:, 0]], 1) * np.sign(bends(points).sum())
    return normals / np.hypot(*along.T)[:, None]


def _touched(values: tuple[float, ...], length: int) -> tuple[int, int]:
    start = min(math.floor(min(values) * length), length - 1)
    return start, min(max(math.ceil(max(values) * length), start + 1), length)


def _interval(low: float, high: float, length: int) -> tuple[int, int]:
    start = min(math.floor(low * length + 0.5), length - 1)
    return start, min(max(math.floor(high * length + 0.5), start + 1), length)


class Stroke(NamedTuple):
    """The path of a round brush."""

    points: tuple[Point, ...]
    """At least one, in fractions of the picture's width and height."""
    size: float
    """Diameter of the brush, as a fraction of the picture's width."""
    erase: bool = False

    def cover(self, size: Extent, window: Box) -> Tensor:
        """How much of each pixel of `window` the brush touches: 1 1 h w in [0, 1]."""
        width, height = window.extent
        radius = max(0.5, self.size * size.width / 2)
        path = np.array(self.points, np.float64) * np.array(size) - (window.x0, window.y0)
        nearest = np.full((height, width), np.inf)
        for a, b in zip(path, path[1:] if len(path) > 1 else path, strict=False):
            low = np.floor(np.minimum(a, b) - radius - 1).clip(0)
            high = np.ceil(np.maximum(a, b) + radius + 1)
            x0, y0 = low.astype(int)
            x1, y1 = np.minimum(high, (width, height)).astype(int)
            if x0 < x1 and y0 < y1:
                part = nearest[y0:y1, x0:x1]
                np.minimum(part, _distance(a, b, Box(x0, y0, x1, y1)), out=part)
        covered = np.clip(radius - nearest + 0.5, 0, 1).astype(np.float32)
        return torch.from_numpy(covered)[None, None]


def _distance(a: np.ndarray, b: np.ndarray, box: Box) -> np.ndarray:
    """Distance of the pixels of a box to the line between two points, in px."""
    y, x = (v + 0.5 for v in np.ogrid[box.y0 : box.y1, box.x0 : box.x1])
    dx, dy = b - a
    along = ((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-12)
    along = along.clip(0, 1)
    return np.hypot(x - a[0] - along * dx, y - a[1] - along * dy)


class RelativePainting(NamedTuple):
    """Strokes, one after the other, on a box, an outline or nothing."""

    strokes: tuple[Stroke, ...]
    start: RelativeBox | RelativeQuad | None = None

    @property
    def erased(self) -> bool:
        """Whether anything is erased, so that its holes are meant."""
        return any(stroke.erase for stroke in self.strokes)

    def pixels(self, size: Extent) -> Box:
        """The upright box of the whole pixels that can be painted, at least 1x1."""
        boxes = [_reach(s, size) for s in self.strokes if not s.erase]
        if self.start is not None:
            boxes.append(self.start.pixels(size))
        x0, y0, x1, y1 = zip(*boxes, strict=True)
        return Box(min(x0), min(y0), max(x1), max(y1))

    def cover(self, size: Extent, window: Box) -> Tensor:
        """How much of each pixel of `window` is painted: 1 1 h w in [0, 1]."""
        if self.start is None:
            out = torch.zeros(1, 1, window.extent.height, window.extent.width)
        else:
            out = self.start.cover(size, window)
        for stroke in self.strokes:
            touched = stroke.cover(size, window)
            # Pixels are erased as a whole: nothing faint is left along the edge of a stroke.
            erased = out.masked_fill(touched > 0, 0)
            out = erased if stroke.erase else torch.maximum(out, touched)
        return out

    def grown(self, pixels: float, size: Extent) -> RelativePainting:
        """The painting with every edge moved outwards (or inwards) in a picture of that size.

        Raises:
            ValueError: nothing is left of it.
        """
        wider = 2 * pixels / size.width
        strokes = [s._replace(size=s.size + (-wider if s.erase else wider)) for s in self.strokes]
        strokes = [s._replace(size=min(s.size, 1.0)) for s in strokes if s.size > 0]
        start = None if self.start is None else self.start.grown(pixels, size)
        if start is None and all(s.erase for s in strokes):
            raise ValueError(
                f"Nothing is left of a painted shape that is shrunk by {-pixels:g} px. Shrink it "
                "less, or use a larger brush."
            )
        return RelativePainting(tuple(strokes), start)


def _reach(stroke: Stroke, size: Extent) -> Box:
    """The whole pixels that a stroke can touch, at least 1x1."""
    radius = max(0.5, stroke.size * size.width / 2)
    spans: list[tuple[int, int]] = []
    for values, length in zip(zip(*stroke.points, strict=True), size, strict=True):
        low = math.floor(min(values) * length - radius)
        high = math.ceil(max(values) * length + radius)
        start = min(max(low, 0), length - 1)
        spans.append((start, min(max(high, start + 1), length)))
    (x0, x1), (y0, y1) = spans
    return Box(x0, y0, x1, y1)
