"""Shapes painted with a brush, in relative coordinates (`boxes` says how they look as text)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import Box, Extent
from .shapes import Point, RelativeBox, RelativeQuad


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
