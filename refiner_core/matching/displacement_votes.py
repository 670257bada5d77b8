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

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur, local_means, luminance

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
_AT_ONCE = 100_000  # pixels of displaced pictures that are compared at once: they stay in the cache
# Standard deviations of the terms 1, u, v, u², uv, v² in half sides of the region. A can that is
# turned bends by up to 0.17 u²; with 0.05 for u² fits stopped short of it.
PRIOR = torch.tensor([0.15, 0.12, 0.12, 0.2, 0.08, 0.1], dtype=torch.float64)


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
_CHANNELS = 5


def surface_features(image: Tensor, sigma: float) -> Tensor:
    """What is compared of pictures B 3 H W, B 5 H W: luminance with the light evened out over
    `sigma` px, the orientation of edges as (cos 2a, sin 2a), and two colour differences.
    """
    y = luminance(image)
    centred = y - blur(y, sigma)
    contrast = blur(centred * centred, sigma).clamp_min(0).sqrt()
    even = centred / (contrast + _CONTRAST_FLOOR * _whole_mean(contrast) + _LEAST_CONTRAST)
    padded = F.pad(blur(even, _ORIENTATION_SIGMA), (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    energy = dx * dx + dy * dy
    orientation = torch.cat([dx * dx - dy * dy, 2 * dx * dy], 1)
    orientation = orientation / (energy + _ORIENTATION_FLOOR * _whole_mean(energy) + 1e-6)
    red, green, blue = image[:, :3].split(1, 1)
    return torch.cat(
        [even, blur(orientation, 1.0), red - green, blue - (red + green) / 2],
        1,
    )


def _whole_mean(x: Tensor) -> Tensor:
    """Mean of every picture of B 1 H W, B 1 1 1."""
    return x.mean((1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class Described:
    """What is compared of a picture, with the statistics of its neighbourhoods at one level."""

    features: Tensor
    """Of `surface_features`, 5 h w."""
    mean: Tensor
    """Of the features in every neighbourhood, 5 H W."""
    power: Tensor
    """Variance there, summed over each group's channels, 3 H W."""

    texture: Tensor
    """How much there is to compare there, H W in [0, 1]."""

    @staticmethod
    def of(features: Tensor, level: FitLevel) -> list[Described]:
        """For the features of several pictures, B 5 h w."""
        mean, power = _statistics(features, level.window, level.stride)
        parts = zip(features, mean, power, _texture(power), strict=True)
        return [Described(*part) for part in parts]


def _statistics(features: Tensor, window: int, stride: int) -> tuple[Tensor, Tensor]:
    """Means, `... 5 H W`, and variances summed by group, `... 3 H W`, of the neighbourhoods of
    features `... 5 h w`.
    """
    squares = torch.stack([_product(features, features, g) for g in _GROUPS], -3)
    means = local_means(torch.cat([features, squares], -3), window, stride)
    mean, square = means.split((_CHANNELS, len(_GROUPS)), -3)
    own = torch.stack([_product(mean, mean, g) for g in _GROUPS], -3)
    return mean, (square - own).clamp_min_(0)


def _texture(power: Tensor) -> Tensor:
    """How much there is to compare, `... H W` in [0, 1], from the groups' variances `... 3 H W`."""
    return sum(
        (
            g.share / _TOTAL_SHARE * own / (own + g.floor)
            for g, own in zip(_GROUPS, power.unbind(-3), strict=True)
        ),
        torch.zeros(()),
    )


def _channels(group: _Group) -> range:
    return range(*group.channels.indices(_CHANNELS))


def _product(a: Tensor, b: Tensor, group: _Group, out: Tensor | None = None) -> Tensor:
    """Sum of the products of a group's channels, for `... C H W` of which one may be displaced."""
    first, *others = _channels(group)
    total = torch.mul(a[..., first, :, :], b[..., first, :, :], out=out)
    for channel in others:
        total.addcmul_(a[..., channel, :, :], b[..., channel, :, :])
    return total


def _less_product(total: Tensor, a: Tensor, b: Tensor, group: _Group) -> Tensor:
    """`total - _product(a, b, group)`, made in `total`."""
    for channel in _channels(group):
        total.addcmul_(a[..., channel, :, :], b[..., channel, :, :], value=-1)
    return total


def _scales(power: Tensor) -> Tensor:
    """What a group's covariance, 3 H W, is multiplied by in each of two pictures to be its part of the
    correlation: the root of its share over the standard deviation.
    """
    parts = [
        math.sqrt(g.share / _TOTAL_SHARE) * (own + g.floor).rsqrt()
        for own, g in zip(power, _GROUPS, strict=True)
    ]
    return torch.stack(parts)


def _displaced(x: Tensor, size: tuple[int, int], radius: int, stride: int = 1) -> Tensor:
    """Views of `size` of C H W at all displacements, `dy dx C h w`; only every `stride`-th pixel."""
    h, w = size
    views = x.unfold(1, h, 1).unfold(2, w, 1)[:, : 2 * radius + 1, : 2 * radius + 1]
    return views[..., ::stride, ::stride].movedim(0, 2)


def correlation(fixed: Described, moving: Described, inside: Tensor, level: FitLevel) -> Tensor:
    """Correlation of every neighbourhood of two pictures, H W in [-1, 1].

    Args:
        fixed, moving: described at this level, of one size.
        inside: 1 1 h w, 0 where `moving` shows nothing.
    """
    scales = zip(_GROUPS, _scales(fixed.power), _scales(moving.power), strict=True)
    total = torch.zeros_like(fixed.power[0])
    for group, own, other in scales:
        shared = local_means(
            _product(fixed.features, moving.features, group), level.window, level.stride
        )
        shared = _less_product(shared, fixed.mean, moving.mean, group)
        total.addcmul_(shared.mul_(own), other)
    return total * inside[0, 0, :: level.stride, :: level.stride]


def correlation_volume(fixed: Described, moving: Tensor, inside: Tensor, level: FitLevel) -> Tensor:
    """Correlation of every neighbourhood with `moving` displaced, `dy dx H W` in [-1, 1].

    Args:
        fixed: described at this level.
        moving: features 1 5 h w.
        inside: 1 1 h w, 0 where `moving` shows nothing.
    """
    size = (fixed.features.shape[-2], fixed.features.shape[-1])
    r, window, step = level.radius, level.window, level.stride
    n = 2 * r + 1
    moving = F.pad(moving, (r, r, r, r), mode="replicate")[0]
    mean, power = _statistics(moving, window, 1)
    there = _displaced(moving, size, r)
    shown = _displaced(F.pad(inside, (r, r, r, r))[0], size, r, step)[:, :, 0]
    there_mean = _displaced(mean, size, r, step)
    there_scale = _displaced(_scales(power), size, r, step)
    own_scale = _scales(fixed.power)
    volume = torch.zeros(shown.shape)
    rows = max(1, _AT_ONCE // (n * size[0] * size[1]))
    product = torch.empty(rows, n, *size)  # new memory for each would take as long as the product
    for part in torch.arange(n).split(rows):
        part = slice(int(part[0]), int(part[-1]) + 1)
        for i, group in enumerate(_GROUPS):
            out = product[: part.stop - part.start]
            shared = local_means(_product(fixed.features, there[part], group, out), window, step)
            shared = _less_product(shared, fixed.mean, there_mean[part], group)
            volume[part].addcmul_(shared.mul_(there_scale[part, :, i]), own_scale[i])
    return volume.mul_(shown)


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
    likelihood = (_SHARPNESS * volume).exp_().flatten(2)
    scratch = torch.empty_like(likelihood)
    share = weight.double().flatten()
    share = share / share.mean().clamp_min(1e-9)
    threshold = math.exp(_SHARPNESS * level.outlier)
    precision = torch.diag(PRIOR**-2)
    first = _FIRST_SIGMA * level.radius
    change = torch.zeros(terms.shape[-1], 2, dtype=torch.float64)
    for i in range(_ROUNDS):
        sigma = first * (_LAST_SIGMA / first) ** (i / (_ROUNDS - 1))
        expected = (terms @ change) * half
        mean, evidence = _votes(likelihood, expected.T.float(), sigma, scratch)
        weights = (share * (evidence / (evidence + threshold)).square())[:, None]
        squares = terms.T @ (terms * weights)
        right = terms.T @ (mean.T / half * weights)
        noise = _OVERLAP * ((_OWN_NOISE + sigma) / half) ** 2
        change = torch.linalg.solve(
            squares / noise[:, None, None] + precision,
            (right / noise - present * PRIOR[:, None] ** -2).T,
        ).T
    return change


def _votes(
    likelihood: Tensor, expected: Tensor, sigma: float, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean displacement that every neighbourhood votes for, 2 N in px, and its evidence, N.

    Args:
        likelihood: of the displacements, `dy dx N`.
        expected: the displacements along x and y that are expected, 2 N in px.
        sigma: their standard deviation, in px.
        scratch: memory of the likelihood's size that is overwritten: new memory takes longer.
    """
    radius = len(likelihood) // 2
    steps = torch.arange(-radius, radius + 1).to(likelihood)
    # A Gaussian of both axes is the product of one along each.
    near = (steps[:, None] - expected[:, None]).div_(sigma).square_().mul_(-0.5).exp_()
    near_x, near_y = near
    votes_x = torch.mul(likelihood, near_y[:, None], out=scratch).sum(0).mul_(near_x)
    votes_y = torch.mul(likelihood, near_x, out=scratch).sum(1).mul_(near_y)
    votes = votes_x.sum(0)
    mean = torch.stack([steps @ votes_x, steps @ votes_y]) / votes.clamp_min(1e-12)
    evidence = votes / near.sum(1).prod(0).clamp_min(1e-12)
    return mean.double(), evidence.double()
