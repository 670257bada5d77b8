"""Plane homographies as 3x3 float64 arrays acting on pixel coordinates (x, y, 1)."""

from __future__ import annotations

import numpy as np
from PIL import Image


def from_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homographies (`... 3 3`) that map four points `source` (4 2) onto `target` (`... 4 2`)."""
    own = np.c_[source, np.ones(4)]
    equations = np.zeros((*target.shape[:-1], 2, 8))
    equations[..., 0, :3] = equations[..., 1, 3:6] = own
    equations[..., 6:] = -target[..., None] * source[:, None]
    shape = target.shape[:-2]
    h = np.linalg.solve(equations.reshape(*shape, 8, 8), target.reshape(*shape, 8, 1))[..., 0]
    return np.concatenate([h, np.ones((*shape, 1))], -1).reshape(*shape, 3, 3)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points N 2."""
    p = np.c_[points, np.ones(len(points))] @ matrix.T
    return p[:, :2] / p[:, 2:]


def corners(box: tuple[float, float, float, float]) -> np.ndarray:
    """The corners of (x0, y0, x1, y1), clockwise from the top left, 4 2."""
    x0, y0, x1, y1 = box
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def warp(image: Image.Image, matrix: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resample `image` by `matrix` (source pixel -> target pixel) into a picture of `size`."""
    inverse = np.linalg.inv(matrix)
    inverse = inverse / inverse[2, 2]
    return image.transform(
        size, Image.Transform.PERSPECTIVE, inverse.flatten()[:8].tolist(), Image.Resampling.BICUBIC
    )
