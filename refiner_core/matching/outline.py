"""The outline of a mask as a quadrilateral, to a fraction of a pixel.

A flat thing outlined in two pictures tells its homography: corners lie on corners.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from .homography import corners

_COVER = 0.94  # share of a mask its largest inscribed quadrilateral must cover to be its outline
_UPRIGHT = 0.026  # tan 1.5 degrees
_MOST_HULL = 28  # points of the hull that are tried as corners
_REACH = 4.0  # px on either side of a first guess in which the true edge is looked for
_PER_PIXEL = 4  # samples across an edge


def quadrilateral(mask: Tensor) -> np.ndarray | None:
    """The four corners (4 2, pixels around the picture's centre, in order round the outline) of a
    mask 1 1 H W in [0, 1], or None if it is not a quadrilateral.
    """
    h, w = mask.shape[-2:]
    values = mask[0, 0].double().numpy()
    quad = _largest_quad(values)
    if quad is None:
        return None
    middle = np.array([w / 2, h / 2])
    for _ in range(3):
        fitted = _fit_sides(values, quad)
        if fitted is None or np.abs(fitted - quad).max() > 2 * _REACH:
            break
        quad = fitted
    return quad - middle


def is_upright(quad: np.ndarray) -> bool:
    """Whether every side (of 4 2 corners) runs along an axis of the picture, within 1.5 degrees."""
    sides = np.abs(np.roll(quad, -1, axis=0) - quad)
    return bool((sides.min(1) <= _UPRIGHT * sides.max(1)).all())


def _largest_quad(mask: np.ndarray) -> np.ndarray | None:
    """Of the hull's points those four that span most, if they cover the mask."""
    ys, xs = np.nonzero(mask > 0.5)
    points = np.c_[xs + 0.5, ys + 0.5]
    if len(points) < 16 or np.ptp(xs) < 4 or np.ptp(ys) < 4:
        return None
    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:  # all on one line
        return None
    if len(hull) < 4:
        return None
    if len(hull) > _MOST_HULL:
        hull = hull[np.linspace(0, len(hull), _MOST_HULL, endpoint=False).astype(int)]
    quads = hull[np.array(list(itertools.combinations(range(len(hull)), 4)))]
    ahead = np.roll(quads, -1, axis=1)
    areas = 0.5 * np.abs((quads[..., 0] * ahead[..., 1] - quads[..., 1] * ahead[..., 0]).sum(1))
    best = int(areas.argmax())
    return quads[best] if areas[best] >= _COVER * len(points) else None


def _fit_sides(mask: np.ndarray, quad: np.ndarray) -> np.ndarray | None:
    """Where the four edges of the mask, each fitted by a line near a side of `quad`, meet."""
    lines = []
    for i in range(4):
        line = _fit_side(mask, quad[i], quad[(i + 1) % 4], quad.mean(0))
        if line is None:
            return None
        lines.append(line)
    meeting = []
    for i in range(4):
        normals = np.array([lines[i - 1][1], lines[i][1]])
        if abs(np.linalg.det(normals)) < 0.05:  # nearly parallel: no corner
            return None
        reach = [lines[i - 1][0] @ normals[0], lines[i][0] @ normals[1]]
        meeting.append(np.linalg.solve(normals, reach))
    return np.array(meeting)


def _fit_side(
    mask: np.ndarray, start: np.ndarray, end: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """A point of the mask's edge near the segment and the edge's normal; None: no edge there."""
    along = end - start
    length = float(np.hypot(*along))
    if length < 4:
        return None
    outward = np.array([along[1], -along[0]]) / length
    if outward @ ((start + end) / 2 - inside) < 0:
        outward = -outward
    # Near the corners the neighbouring side falls into the window.
    feet = start + np.linspace(0.12, 0.88, max(8, int(length)))[:, None] * along
    offsets = np.linspace(-_REACH, _REACH, int(2 * _REACH * _PER_PIXEL) + 1)
    points = feet[:, None] + offsets[None, :, None] * outward
    values = map_coordinates(
        mask, [points[..., 1] - 0.5, points[..., 0] - 0.5], order=1, mode="constant"
    )
    # What lies inside of the edge is 1: its mean over the window tells where the edge is.
    crossing = _REACH * (2 * values.mean(1) - 1)
    found = np.abs(crossing) < _REACH - 0.5
    if found.sum() < 4:
        return None
    return _fit_line(feet[found] + crossing[found, None] * outward)


def _fit_line(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust least squares across the line: a point on it and its normal."""
    weights = np.ones(len(points))
    center, normal = points.mean(0), np.zeros(2)
    for _ in range(4):
        center = np.average(points, 0, weights)
        spread = (points - center) * np.sqrt(weights)[:, None]
        normal = np.linalg.svd(spread, full_matrices=False)[2][1]
        weights = 1 / (1 + ((points - center) @ normal / 0.5) ** 2)
    return center, normal


def mask_box_corners(mask: Tensor) -> np.ndarray:
    """Corners of the box around a mask 1 1 H W that is not empty, normalised to [-1, 1], 4 2."""
    h, w = mask.shape[-2:]
    ys, xs = np.nonzero(mask[0, 0].numpy() > 0.5)
    box = corners((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return box / (w / 2, h / 2) - 1
