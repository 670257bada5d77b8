"""Luminance and Gaussian blur of pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_SIGMA = 0.15  # px; a narrower Gaussian leaves its neighbours less than a billionth
_RADIUS = 3  # sigmas on either side, beyond which a Gaussian holds 0.3 % of its weight


def luminance(image: Tensor) -> Tensor:
    """Luminance (ITU-R BT.601) of B 3 H W, as B 1 H W; B 1 H W is returned as it is."""
    if image.shape[1] == 1:
        return image
    weights = image.new_tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)
    return (image[:, :3] * weights).sum(1, keepdim=True)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of B C H W with repeated edges; `sigma` in pixels."""
    if sigma < _LEAST_SIGMA:
        return x
    radius = max(1, math.ceil(_RADIUS * sigma))
    k = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    k = torch.exp(-0.5 * (k / sigma) ** 2)
    k = (k / k.sum()).reshape(1, 1, 1, -1)
    c = x.shape[1]
    x = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = F.conv2d(x, k.expand(c, 1, 1, -1), groups=c)
    x = F.pad(x, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(x, k.transpose(2, 3).expand(c, 1, -1, 1), groups=c)


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def wide_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of B C H W with repeated edges; a wide one is made at a smaller size."""
    sizes: list[torch.Size] = []
    while sigma > 3 and min(x.shape[-2:]) > 8:
        sizes.append(x.shape[-2:])
        x, sigma = _half(x), sigma / 2
    x = blur(x, sigma)
    for size in reversed(sizes):
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x
