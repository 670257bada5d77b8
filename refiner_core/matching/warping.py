"""Resampling a picture under a map in normalised coordinates, [-1, 1] from edge to edge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def grid(height: int, width: int) -> Tensor:
    """Pixel centres in normalised coordinates, homogeneous, `(H W) 3` float64."""
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2 - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy, torch.ones_like(xx)], -1).reshape(-1, 3)


def warp(
    image: Tensor, matrix: Tensor, height: int, width: int, mode: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """Resample `image` B C h w into a picture of `height` x `width` (bicubic, edges repeated).

    `matrix` is one 3x3 for all or `B 3 3`.

    Returns:
        the picture B C H W and a mask B 1 H W, 1 where it was read from inside `image`.
    """
    matrix = matrix.expand(len(image), 3, 3)
    p = grid(height, width) @ matrix.transpose(1, 2)
    xy = (p[..., :2] / p[..., 2:].clamp_min(1e-6)).reshape(len(image), height, width, 2)
    xy = xy.to(image)
    out = F.grid_sample(image, xy, mode, "border", align_corners=False)
    inside = ((xy.abs() <= 1).all(-1) & (p[..., 2].reshape(xy.shape[:3]) > 0)).to(image)
    return out, inside[:, None]
