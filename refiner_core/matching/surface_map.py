"""Where a region of the draft lies in the reference: a homography and a second-order bend.

A flat thing needs the homography alone. A can, a bowl or cloth seen from another side bends
against it, and to second order that is enough for what a box is drawn around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.geometry import Box, Extent

TERMS = 6
_REACH = 1.5  # half sides of the box; further out the bend is continued as it is there
_STRIP = 256  # rows that are resampled at once, which bounds the memory


def _no_bend() -> Tensor:
    return torch.zeros(TERMS, 2, dtype=torch.float64)


def polynomial(u: Tensor, v: Tensor) -> Tensor:
    """The terms 1, u, v, u², uv, v² at points of the region, `... 6`."""
    u, v = u.clamp(-_REACH, _REACH), v.clamp(-_REACH, _REACH)
    return torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], -1)


@dataclass(frozen=True)
class RegionPoints:
    """Points of the draft in a region's coordinates, ready for many maps of that region."""

    u: Tensor
    """Along x, -1 and 1 at the region's edges; any shape, float64."""
    v: Tensor
    """Along y."""
    terms: Tensor
    """Of `polynomial` there, `... 6`."""

    @staticmethod
    def of_pixels(box: Box, x: Tensor, y: Tensor) -> RegionPoints:
        """For x and y in px of the draft and a region's box."""
        u = (x - (box.x0 + box.x1) / 2) / (box.extent.width / 2)
        v = (y - (box.y0 + box.y1) / 2) / (box.extent.height / 2)
        return RegionPoints(u, v, polynomial(u, v))

    @staticmethod
    def of_window(box: Box, window: Box, size: Extent) -> RegionPoints:
        """For the pixels' centres of a picture of `size` that shows a window of the draft."""
        return RegionPoints.of_pixels(box, *pixel_centers(window, size))


def _lattice(count: int) -> RegionPoints:
    """Points over the region, `count` squared of them."""
    along = torch.linspace(-1, 1, count, dtype=torch.float64)
    u, v = along.repeat(count), along.repeat_interleave(count)
    return RegionPoints(u, v, polynomial(u, v))


_LATTICE = _lattice(5)
_LATTICE_FIT = torch.linalg.pinv(_LATTICE.terms)


@dataclass(frozen=True)
class SurfaceMap:
    """Maps pixels of the draft to normalised coordinates of the reference."""

    box: Box
    """The region in the draft, in px; its edges are at -1 and 1 in the region's coordinates."""
    matrix: Tensor
    """3 3 float64, from the region's coordinates to the reference's, -1 to 1 from edge to edge."""
    bend: Tensor = field(default_factory=_no_bend)
    """6 2 float64, coefficients of `polynomial` that displace the region's coordinates first."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Points of the reference, `... 2`, for pixels of the draft."""
        return self.at(RegionPoints.of_pixels(self.box, x, y))

    def at(self, points: RegionPoints) -> Tensor:
        """Points of the reference, `... 2`, for points in the coordinates of this map's region."""
        moved = points.terms @ self.bend
        u, v = points.u + moved[..., 0], points.v + moved[..., 1]
        point = torch.stack([u, v, torch.ones_like(u)], -1) @ self.matrix.T
        return point[..., :2] / point[..., 2:].clamp_min(1e-6)

    def bent(self, change: Tensor) -> SurfaceMap:
        """This map with other coefficients, `change` (6 2) added to its own."""
        return replace(self, bend=self.bend + change)

    def difference(self, flat: SurfaceMap) -> Tensor:
        """Coefficients of `polynomial`, 6 2, that bend another map of this region, which has no bend
        of its own, about into this one.
        """
        found = torch.cat([self.at(_LATTICE), torch.ones(len(_LATTICE.u), 1).double()], -1)
        moved = found @ torch.linalg.inv(flat.matrix).T
        own = torch.stack([_LATTICE.u, _LATTICE.v], -1)
        return _LATTICE_FIT @ (moved[:, :2] / moved[:, 2:].clamp_min(1e-6) - own)

    def within(self, part: Box, reference: Extent) -> SurfaceMap:
        """This map to the normalised coordinates of a part of the reference, in px of all of it."""
        move = torch.eye(3, dtype=torch.float64)
        move[0, 2], move[1, 2] = -part.x0, -part.y0
        matrix = _normalise(part.extent) @ move @ _normalise(reference).inverse() @ self.matrix
        return replace(self, matrix=matrix)

    def reach(self, window: Box, reference: Extent) -> Box:
        """The box in px of the reference around what a window of the draft shows."""
        x = torch.linspace(window.x0, window.x1, 9).double().repeat(9)
        y = torch.linspace(window.y0, window.y1, 9).double().repeat_interleave(9)
        points = (self(x, y) + 1) / 2 * torch.tensor(reference, dtype=torch.float64)
        low, high = points.amin(0).floor(), points.amax(0).ceil()
        return Box(int(low[0]), int(low[1]), int(high[0]), int(high[1]))

    def _sides(self, reference: Extent) -> tuple[float, float, float, float]:
        """Reference pixels, x and y, per draft pixel along x and then y in the middle of the region;
        with numbers, which are faster than small tensors.
        """
        bend: list[list[float]] = self.bend.tolist()
        rows: list[list[float]] = self.matrix.tolist()

        def at(u: float, v: float) -> tuple[float, float]:
            terms = (1.0, u, v, u * u, u * v, v * v)
            u += sum(t * along[0] for t, along in zip(terms, bend, strict=True))
            v += sum(t * along[1] for t, along in zip(terms, bend, strict=True))
            x, y, z = (row[0] * u + row[1] * v + row[2] for row in rows)
            z = max(z, 1e-6)
            return x / z * reference.width, y / z * reference.height

        width, height = self.box.extent
        right, left, below, above = at(0.5, 0), at(-0.5, 0), at(0, 0.5), at(0, -0.5)
        return (
            (right[0] - left[0]) / width,
            (right[1] - left[1]) / width,
            (below[0] - above[0]) / height,
            (below[1] - above[1]) / height,
        )

    def zoom(self, reference: Extent) -> float:
        """Reference pixels per draft pixel; negative where the map mirrors."""
        x_along_x, y_along_x, x_along_y, y_along_y = self._sides(reference)
        area = x_along_x * y_along_y - y_along_x * x_along_y
        return math.copysign(math.sqrt(abs(area)), area)

    def turn(self, reference: Extent) -> float:
        """Degrees by which the reference is turned against the draft."""
        x_along_x, y_along_x, x_along_y, y_along_y = self._sides(reference)
        return math.degrees(math.atan2(y_along_x - x_along_y, x_along_x + y_along_y))


def box_to_box(
    box: Box, detail: Box, reference: Extent, turn: float | None = None, zoom: float = 1.0
) -> SurfaceMap:
    """The map that lays the region's box on the detail's.

    Args:
        box: the region in the draft, in px.
        detail: the detail's box in the reference, in px.
        reference: size of the reference in px.
        turn: degrees about the boxes' centres, with equal scale in x and y; None stretches one box
            to the other instead.
        zoom: factor on the scale that the boxes' areas give.
    """
    own = torch.tensor([box.extent.width / 2, box.extent.height / 2], dtype=torch.float64)
    other = torch.tensor([detail.extent.width / 2, detail.extent.height / 2], dtype=torch.float64)
    if turn is None:
        linear = torch.diag(other) * zoom
    else:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        scale = math.sqrt(float(other.prod() / own.prod())) * zoom
        linear = scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64) @ torch.diag(own)
    pixels = torch.eye(3, dtype=torch.float64)
    pixels[:2, :2] = linear
    pixels[0, 2] = (detail.x0 + detail.x1) / 2
    pixels[1, 2] = (detail.y0 + detail.y1) / 2
    return SurfaceMap(box, _normalise(reference) @ pixels)


def _normalise(size: Extent) -> Tensor:
    """Pixels to normalised coordinates."""
    rows = [[2 / size.width, 0, -1], [0, 2 / size.height, -1], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def pixel_centers(window: Box, size: Extent) -> tuple[Tensor, Tensor]:
    """x and y in px of the draft, each `height width`, of a picture of `size` that shows `window`."""
    x = window.x0 + (torch.arange(size.width).double() + 0.5) / size.width * window.extent.width
    y = window.y0 + (torch.arange(size.height).double() + 0.5) / size.height * window.extent.height
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return xx, yy


def sample_surface(
    reference: Tensor, surface: SurfaceMap, points: RegionPoints, mode: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """The reference 1 C h w at points H W of the draft.

    Args:
        mode: of interpolation, "bilinear" or "bicubic".

    Returns:
        the picture 1 C H W and, 1 1 H W, 1 where it was read from inside the reference, else 0.
    """
    places = surface.at(points).to(reference)[None]
    picture = F.grid_sample(reference, places, mode, "border", align_corners=False)
    return picture, (places.abs() <= 1).all(-1).to(reference)[None]


def warp_surface(
    reference: Tensor, surface: SurfaceMap, window: Box, size: Extent, mode: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """The reference 1 C h w as the draft sees it.

    Args:
        window: part of the draft, in px.
        size: pixels it is shown at.
        mode: of interpolation, "bilinear" or "bicubic".

    Returns:
        the picture 1 C H W and, 1 1 H W, 1 where it was read from inside the reference, else 0.
    """
    x, y = pixel_centers(window, size)
    pictures: list[Tensor] = []
    insides: list[Tensor] = []
    for part_x, part_y in zip(x.split(_STRIP), y.split(_STRIP), strict=True):
        points = RegionPoints.of_pixels(surface.box, part_x, part_y)
        picture, inside = sample_surface(reference, surface, points, mode)
        pictures.append(picture)
        insides.append(inside)
    return torch.cat(pictures, 2), torch.cat(insides, 2)
