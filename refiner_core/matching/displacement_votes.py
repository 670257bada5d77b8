"""How small neighbourhoods of two pictures vote for the displacement between them.

Every neighbourhood of the fixed picture is compared with the moving one at all displacements within
a few pixels (normalised cross-correlation). Each then votes for its displacement, as far as it
resembles the moving picture at all, and the few coefficients of a polynomial are fitted to the
votes under a prior: expectation maximisation over a mixture of a true displacement and "not the
same". Melted letters vote at random and cancel out; a polynomial of second order cannot follow them
one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur, luminance

_ORIENTATION_SIGMA = 0.7  # px, blur before edges are taken: noise has no orientation
_ORIENTATION_FLOOR = 1.0  # times the mean edge energy: fainter edges count little
_CONTRAST_FLOOR = 0.5  # times the mean contrast: fainter texture is not evened out
_LEAST_CONTRAST = 0.02  # of full scale, below which a whole picture counts as flat
_SHARPNESS = 6.0  # of the votes: correlation to log likelihood
_OVERLAP = 4.0  # neighbourhoods that overlap so much that they count as one observation
_ROUNDS = 6  # of expectation maximisation; the coefficients move by under 1 % in a seventh
_FIRST_SIGMA = 0.7  # of the largest displacement, how far apart votes may lie at first
_LAST_SIGMA = 1.0  # px, how far apart votes may lie at the end of a fit
_OWN_NOISE = 1.0  # px, error of a neighbourhood's best displacement
_AT_ONCE = 200_000  # pixels of displaced pictures that are compared at once: they stay in the cache
# Standard deviations of the terms 1, u, v, u², uv, v² in half sides of the region.
PRIOR = torch.tensor([0.12, 0.08, 0.08, 0.05, 0.05, 0.05], dtype=torch.float64)


@dataclass(frozen=True)
class FitLevel:
    """One resolution at which the pictures are compared."""

    size: int
    """Geometric mean of the region's sides, in px."""
    radius: int
    """Largest displacement that is tried, in px."""
    window: int
    """Side of a neighbourhood, in px."""
    stride: int
    """From one neighbourhood to the next, in px."""
    outlier: float
    """Correlation below which a neighbourhood is rather taken for something else."""


@dataclass(frozen=True)
class _Group:
    """Channels of `surface_features` that are correlated together."""

    channels: slice
    """Which ones."""
    floor: float
    """Variance that counts as none."""
    share: float
    """Weight of their correlation in the total."""


_GROUPS = (
    _Group(slice(0, 1), 0.05, 1.0),
    _Group(slice(1, 3), 0.02, 1.0),
    _Group(slice(3, 5), 0.002, 0.6),
)
_TOTAL_SHARE = sum(g.share for g in _GROUPS)


def surface_features(image: Tensor, sigma: float) -> Tensor:
    """What is compared of a picture 1 3 H W, 1 5 H W: luminance with the light evened out over
    `sigma` px, the orientation of edges as (cos 2a, sin 2a), and two colour differences.
    """
    y = luminance(image)
    centred = y - blur(y, sigma)
    contrast = blur(centred * centred, sigma).clamp_min(0).sqrt()
    even = centred / (contrast + _CONTRAST_FLOOR * contrast.mean() + _LEAST_CONTRAST)
    padded = F.pad(blur(even, _ORIENTATION_SIGMA), (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    energy = dx * dx + dy * dy
    orientation = torch.cat([dx * dx - dy * dy, 2 * dx * dy], 1)
    orientation = orientation / (energy + _ORIENTATION_FLOOR * energy.mean() + 1e-6)
    red, green, blue = image[:, :3].split(1, 1)
    return torch.cat(
        [even, blur(orientation, 1.0), red - green, blue - (red + green) / 2],
        1,
    )


@lru_cache(64)
def _averaging(n: int, window: int, stride: int) -> Tensor:
    """Takes the means of the neighbourhoods along an axis of `n` pixels, `ceil(n / stride) n`."""
    centers = torch.arange(0, n, stride)[:, None]
    near = ((torch.arange(n) - centers).abs() <= window // 2).float()
    return near / near.sum(1, keepdim=True)


def _means(x: Tensor, window: int, stride: int) -> Tensor:
    """Means of the neighbourhoods: two products with a band are faster than pooling."""
    rows = _averaging(x.shape[-2], window, stride)
    return rows @ x @ _averaging(x.shape[-1], window, stride).T


def _texture(spread: Tensor) -> Tensor:
    """How much there is to compare, H W in [0, 1], from the features' variances 1 5 H W."""
    total = torch.zeros_like(spread[0, 0])
    for group in _GROUPS:
        power = spread[0, group.channels].sum(0).clamp_min(0)
        total += group.share * power / (power + group.floor)
    return total / _TOTAL_SHARE


def neighbourhood_texture(features: Tensor, level: FitLevel) -> Tensor:
    """How much there is to compare in each neighbourhood, H W in [0, 1], from features 1 5 h w."""
    k, step = level.window, level.stride
    spread = _means(features * features, k, step) - _means(features, k, step) ** 2
    return _texture(spread)


def _displaced(x: Tensor, size: tuple[int, int], radius: int, stride: int = 1) -> Tensor:
    """Views of `size` of C H W at all displacements, `dy dx C h w`; only every `stride`-th pixel."""
    h, w = size
    views = x.unfold(1, h, 1).unfold(2, w, 1)[:, : 2 * radius + 1, : 2 * radius + 1]
    return views[..., ::stride, ::stride].movedim(0, 2)


def _power(spread: Tensor, group: _Group) -> Tensor:
    """Variance of a group's channels with its floor, H W, from the features' variances C H W."""
    return _summed(spread[group.channels]).clamp_min(0) + group.floor


def _summed(channels: Tensor) -> Tensor:
    """Sum of one or two channels `... C H W`; adding them is faster than summing over the axis."""
    first = channels[..., 0, :, :]
    return first if channels.shape[-3] == 1 else first + channels[..., 1, :, :]


def correlation_volume(fixed: Tensor, moving: Tensor, inside: Tensor, level: FitLevel) -> Tensor:
    """Correlation of every neighbourhood with `moving` displaced, `dy dx H W` in [-1, 1].

    Args:
        fixed, moving: features 1 5 h w.
        inside: 1 1 h w, 0 where `moving` shows nothing.
    """
    h, w = size = (fixed.shape[-2], fixed.shape[-1])
    r, k, step = level.radius, level.window, level.stride
    n = 2 * r + 1
    moving = F.pad(moving, (r, r, r, r), mode="replicate")[0]
    inside = F.pad(inside, (r, r, r, r))[0]
    fixed = fixed[0]
    mean = _means(fixed, k, step)
    spread = _means(fixed * fixed, k, step) - mean**2
    other_mean = _means(moving, k, 1)
    other_spread = _means(moving * moving, k, 1) - other_mean**2
    there, shown = _displaced(moving, size, r), _displaced(inside, size, r, step)[:, :, 0]
    there_mean = _displaced(other_mean, size, r, step)
    powers = [
        _power(spread, g) * _displaced(_power(other_spread, g)[None], size, r, step)[:, :, 0]
        for g in _GROUPS
    ]
    parts: list[Tensor] = []
    rows = max(1, _AT_ONCE // (n * h * w))
    for dy in range(0, n, rows):
        part = slice(dy, dy + rows)
        total = torch.zeros(1)
        for group, power in zip(_GROUPS, powers, strict=True):
            c = group.channels
            shared = _means(_summed(fixed[c] * there[part, :, c]), k, step)
            shared = shared - _summed(mean[c] * there_mean[part, :, c])
            total = total + group.share * shared / power[part].sqrt()
        parts.append(total / _TOTAL_SHARE * shown[part])
    return torch.cat(parts)


def fit_polynomial(
    volume: Tensor, weight: Tensor, terms: Tensor, half: Tensor, present: Tensor, level: FitLevel
) -> Tensor:
    """The change of a polynomial's coefficients, 6 2, that the neighbourhoods vote for.

    Args:
        volume: `dy dx H W` from `correlation_volume`.
        weight: of the neighbourhoods, H W.
        terms: of the polynomial at their places, (H W) 6.
        half: half sides of the region in px of the level, 2.
        present: coefficients, 6 2, to which the change is added: the prior holds for the sum.
    """
    steps = torch.arange(-level.radius, level.radius + 1).double()
    likelihood = (_SHARPNESS * volume.double()).exp().flatten(2)
    share = weight.double().flatten()
    share = share / share.mean().clamp_min(1e-9)
    threshold = math.exp(_SHARPNESS * level.outlier)
    precision = torch.diag(PRIOR**-2)
    first = _FIRST_SIGMA * level.radius
    change = torch.zeros(terms.shape[-1], 2, dtype=torch.float64)
    for i in range(_ROUNDS):
        sigma = first * (_LAST_SIGMA / first) ** (i / (_ROUNDS - 1))
        expected = (terms @ change) * half
        # A Gaussian of both axes is the product of one along each.
        near_x, near_y = (
            (-0.5 * ((steps[:, None] - expected[:, axis]) / sigma).square()).exp()
            for axis in range(2)
        )
        votes_x = (likelihood * near_y[:, None]).sum(0) * near_x
        votes_y = (likelihood * near_x).sum(1) * near_y
        votes = votes_x.sum(0)
        both = torch.stack([steps @ votes_x, steps @ votes_y], -1)
        mean = both / votes[:, None].clamp_min(1e-12)
        evidence = votes / (near_x.sum(0) * near_y.sum(0)).clamp_min(1e-12)
        weights = share * (evidence / (evidence + threshold)).square()
        squares = terms.T @ (terms * weights[:, None])
        right = terms.T @ (mean / half * weights[:, None])
        for axis in range(2):
            noise = _OVERLAP * ((_OWN_NOISE + sigma) / half[axis]) ** 2
            change[:, axis] = torch.linalg.solve(
                squares / noise + precision,
                right[:, axis] / noise - present[:, axis] * PRIOR**-2,
            )
    return change
