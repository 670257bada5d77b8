"""Resampling a picture under a map in normalised coordinates, [-1, 1] from edge to edge."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_DEPTH = 1e-6  # what points behind the plane are divided by


@lru_cache(64)
@torch.inference_mode(False)  # what is kept must also serve where gradients are taken
def centers(n: int) -> Tensor:
    """Pixel centres along an axis of `n` pixels, normalised, float64. Not to be written to."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1


def grid(height: int, width: int) -> Tensor:
    """Pixel centres in normalised coordinates, homogeneous, `(H W) 3` float64."""
    yy, xx = torch.meshgrid(centers(height), centers(width), indexing="ij")
    return torch.stack([xx, yy, torch.ones_like(xx)], -1).reshape(-1, 3)


def _mapped_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """`grid` under matrices B 3 3, homogeneous, B 3 H W: a sum of what each axis gives, which takes a
    fraction of the time of a product with every point.
    """
    columns = matrix[:, :, :1] * centers(width).to(matrix)
    rows = matrix[:, :, 1:2] * centers(height).to(matrix) + matrix[:, :, 2:]
    return columns[:, :, None] + rows[..., None]


def sample(image: Tensor, xy: Tensor, in_front: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Read `image` B C h w at places.

    Args:
        xy: normalised places, B 2 H W.
        in_front: B H W, whether a place is in front of the plane.
        mode: of interpolation, "bilinear" or "bicubic"; edges are repeated.

    Returns:
        the picture B C H W and a mask B 1 H W, 1 where it was read from inside `image`.
    """
    xy = xy.to(image)
    out = F.grid_sample(image, xy.movedim(1, -1), mode, "border", align_corners=False)
    inside = (xy.abs().amax(1) <= 1).logical_and_(in_front).to(image)
    return out, inside[:, None]


def warp(
    image: Tensor, matrix: Tensor, height: int, width: int, mode: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """Resample `image` B C h w into a picture of `height` x `width` (bicubic, edges repeated).

    `matrix` is one 3x3 for all or `B 3 3`; places are computed in its type.

    Returns:
        the picture B C H W and a mask B 1 H W, 1 where it was read from inside `image`.
    """
    p = _mapped_grid(matrix.expand(len(image), 3, 3), height, width)
    depth = p[:, 2]
    in_front = depth > 0
    return sample(image, p[:, :2] / depth.clamp_min(LEAST_DEPTH)[:, None], in_front, mode)
