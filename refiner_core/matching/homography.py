"""Plane homographies as 3x3 float64 arrays acting on pixel coordinates (x, y, 1)."""

from __future__ import annotations

import numpy as np
from PIL import Image


def from_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homography that maps four points `source` (4 2) onto `target` (4 2)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    h = np.linalg.solve(np.asarray(rows, np.float64), np.asarray(values, np.float64))
    return np.append(h, 1.0).reshape(3, 3)


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
