"""Luminance, Gaussian blur and means of neighbourhoods of pictures."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_SIGMA = 0.15  # px; a narrower Gaussian leaves its neighbours less than a billionth
_RADIUS = 3  # sigmas on either side, beyond which a Gaussian holds 0.3 % of its weight
_STRIP = 64  # rows whose means are taken at once: a band's product with more is mostly zeros
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


@lru_cache(64)
def _averaging(n: int, window: int, stride: int) -> Tensor:
    """Takes the means of the neighbourhoods along an axis of `n` pixels, `ceil(n / stride) n`."""
    centers = torch.arange(0, n, stride)[:, None]
    near = ((torch.arange(n) - centers).abs() <= window // 2).float()
    return near / near.sum(1, keepdim=True)


@lru_cache(64)
def _strips(n: int, window: int, stride: int) -> list[tuple[slice, Tensor]]:
    """`_averaging` cut into strips: which pixels each of them reads, and its part of the band."""
    strips: list[tuple[slice, Tensor]] = []
    for band in _averaging(n, window, stride).split(max(1, _STRIP // stride)):
        used = band.any(0).nonzero()
        first, last = int(used[0]), int(used[-1])
        strips.append((slice(first, last + 1), band[:, first : last + 1].contiguous()))
    return strips


def local_means(x: Tensor, window: int, stride: int) -> Tensor:
    """Means of neighbourhoods of `... h w`, one at every `stride`-th pixel: two products with a band
    are faster than pooling.
    """
    strips = _strips(x.shape[-2], window, stride)
    rows = [band @ x[..., used, :] for used, band in strips]
    joined = torch.cat(rows, -2) if len(rows) > 1 else rows[0]
    return joined @ _averaging(x.shape[-1], window, stride).T
