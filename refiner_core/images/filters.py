"""Luminance and Gaussian blur of pictures."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_SIGMA = 0.15  # px; a narrower Gaussian leaves its neighbours less than a billionth
_RADIUS = 3  # sigmas on either side, beyond which a Gaussian holds 0.3 % of its weight
_LARGEST_PRODUCT = 512  # px, longer side up to which products with bands are the faster way


def luminance(image: Tensor) -> Tensor:
    """Luminance (ITU-R BT.601) of B 3 H W, as B 1 H W; B 1 H W is returned as it is."""
    if image.shape[1] == 1:
        return image
    weights = image.new_tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)
    return (image[:, :3] * weights).sum(1, keepdim=True)


def _gaussian(sigma: float) -> Tensor:
    """The weights of a Gaussian of `sigma` px, from the left end to the right; their sum is 1."""
    radius = max(1, math.ceil(_RADIUS * sigma))
    k = torch.arange(-radius, radius + 1, dtype=torch.float32)
    k = torch.exp(-0.5 * (k / sigma) ** 2)
    return k / k.sum()


@lru_cache(32)
@torch.inference_mode(False)  # what is kept must also serve where gradients are taken
def _band(n: int, sigma: float) -> Tensor:
    """Blurs an axis of `n` pixels with repeated ends, n n: a row for each result."""
    weights = _gaussian(sigma)
    reach = torch.arange(len(weights)) - len(weights) // 2
    places = (torch.arange(n)[:, None] + reach).clamp(0, n - 1)
    return torch.zeros(n, n).scatter_add_(1, places, weights.expand(n, -1))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of B C H W with repeated edges; `sigma` in pixels."""
    if sigma < _LEAST_SIGMA:
        return x
    if max(x.shape[-2:]) <= _LARGEST_PRODUCT:
        down, along = (_band(n, sigma).to(x) for n in x.shape[-2:])
        return down @ (x @ along.T)
    k = _gaussian(sigma).to(x)
    radius, c = len(k) // 2, x.shape[1]
    x = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = F.conv2d(x, k.expand(c, 1, 1, -1), groups=c)
    x = F.pad(x, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(x, k[:, None].expand(c, 1, -1, 1), groups=c)


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
