"""A mask of what differs between two pictures of the same thing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.filters import blur
from ..images.tensors import to_float
from .color import match_light
from .registration import register
from .warping import warp

_SMOOTH = 2.0  # px, blur before comparing: single noisy pixels do not count


def difference_mask(
    image: Tensor,
    other: Tensor,
    *,
    threshold: float = 0.12,
    aligned: bool = True,
) -> Tensor:
    """Where `image` differs from `other` after pose and light are matched, 1 1 H W, 0 or 1.

    Args:
        image, other: 1 3 H W in any stored type; sizes may differ.
        threshold: largest channel difference that still counts as equal, 0..1.
        aligned: find the homography from `image` to `other` first; else `other` is only resized.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}.")
    a, b = to_float(image).cpu(), to_float(other).cpu()
    h, w = a.shape[-2:]
    everywhere = torch.ones(1, 1, h, w)
    matrix = torch.eye(3, dtype=torch.float64)
    if aligned:
        matrix = register(a, b, everywhere, "homography").matrix
    moved, inside = warp(b, matrix, h, w)
    moved = match_light(moved, a, inside)
    apart = (blur(a, _SMOOTH) - blur(moved, _SMOOTH)).abs().amax(1, keepdim=True)
    return ((apart > threshold) & (inside > 0)).float()
