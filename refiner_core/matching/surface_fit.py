"""Fitting a surface map to two pictures of one thing, one of them broken where it matters.

Every small neighbourhood of the draft is compared with the reference at all displacements near the
present map (normalised cross-correlation). Each neighbourhood then votes for its displacement, as
far as it resembles the reference at all, and the map's few coefficients are fitted to the votes
under a prior: expectation maximisation over a mixture of a true displacement and "not the same".
Melted letters vote at random and cancel out; a map of second order cannot follow them one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.geometry import Box, Extent
from ..images.masks import Region
from ..images.tensors import to_float
from .registration import blur, luminance
from .surface_map import TERMS, SurfaceMap, pixel_centers, polynomial, warp_surface

_SURROUNDINGS = 0.45  # of the region's shorter side: how far around it is looked
_SURROUNDINGS_WEIGHT = 0.8  # of a neighbourhood outside the region against one inside
_LIGHT_SIGMA = 0.12  # of the level's size: wider changes of luminance are light
_ORIENTATION_FLOOR = 1.0  # times the mean edge energy: fainter edges count little
_CONTRAST_FLOOR = 0.5  # times the mean contrast: fainter texture is not evened out
_SHARPNESS = 6.0  # of the votes: correlation to log likelihood
_NEIGHBOURS = 4.0  # neighbourhoods overlap: so many of them are one observation
_ROUNDS = 6
_LAST_SIGMA = 1.0  # px, how far apart votes may lie at the end of a fit
_CHANCE = 0.3  # correlation that unrelated texture reaches too
# Standard deviations of the bend's terms, in half sides of the region.
_PRIOR = torch.tensor([0.12, 0.08, 0.08, 0.05, 0.05, 0.05], dtype=torch.float64)
_PRIOR_COST = 0.0002  # of one squared standard deviation, in agreement


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


COARSE = FitLevel(28, 5, 9, 2, 0.45)
MIDDLE = FitLevel(56, 4, 9, 3, 0.45)
FINE = FitLevel(112, 3, 11, 4, 0.55)


@dataclass(frozen=True)
class _Group:
    """Channels of `_features` that are correlated together."""

    channels: slice
    floor: float
    """Variance that counts as none."""
    share: float


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
    even = centred / (contrast + _CONTRAST_FLOOR * contrast.mean() + 0.02)
    padded = F.pad(blur(even, 0.7), (1, 1, 1, 1), mode="replicate")
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


def correlation_volume(fixed: Tensor, moving: Tensor, inside: Tensor, level: FitLevel) -> Tensor:
    """Correlation of every neighbourhood with `moving` displaced, `dy dx H W` in [-1, 1].

    Args:
        fixed, moving: features 1 5 h w.
        inside: 1 1 h w, 0 where `moving` shows nothing.
    """
    h, w = fixed.shape[-2:]
    r, k, step = level.radius, level.window, level.stride
    n = 2 * r + 1
    moving, inside = F.pad(moving, (r, r, r, r), mode="replicate"), F.pad(inside, (r, r, r, r))
    mean = _means(fixed, k, step)
    spread = _means(fixed * fixed, k, step) - mean**2
    other_mean = _means(moving, k, 1)
    other_spread = _means(moving * moving, k, 1) - other_mean**2

    def row(x: Tensor, dy: int, stride: int) -> Tensor:
        """All displacements of one row, n C h w."""
        shifted = [x[..., dy : dy + h : stride, dx : dx + w : stride] for dx in range(n)]
        return torch.cat(shifted)

    rows: list[Tensor] = []
    for dy in range(n):
        products = fixed * row(moving, dy, 1)
        there, there_spread = row(other_mean, dy, step), row(other_spread, dy, step)
        total = torch.zeros(n, *mean.shape[-2:])
        for group in _GROUPS:
            c = group.channels
            shared = _means(products[:, c].sum(1, keepdim=True), k, step)[:, 0]
            shared = shared - (mean[:, c] * there[:, c]).sum(1)
            a = spread[:, c].sum(1).clamp_min(0) + group.floor
            b = there_spread[:, c].sum(1).clamp_min(0) + group.floor
            total += group.share * shared / (a * b).sqrt()
        rows.append(total / _TOTAL_SHARE * row(inside, dy, step)[:, 0])
    return torch.stack(rows)


def fit_bend(
    volume: Tensor, weight: Tensor, terms: Tensor, half: Tensor, bend: Tensor, level: FitLevel
) -> Tensor:
    """The change of a map's bend, 6 2, that the neighbourhoods vote for.

    Args:
        volume: `dy dx H W` from `correlation_volume`.
        weight: of the neighbourhoods, H W.
        terms: `polynomial` at their places, (H W) 6.
        half: half sides of the region in px of the level, 2.
        bend: of the present map, 6 2: the prior holds for the sum.
    """
    steps = torch.arange(-level.radius, level.radius + 1).double()
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    moves = torch.stack([dx.flatten(), dy.flatten()], -1)
    likelihood = (_SHARPNESS * volume.double()).exp().flatten(0, 1).flatten(1)
    share = weight.double().flatten()
    share = share / share.mean().clamp_min(1e-9)
    threshold = math.exp(_SHARPNESS * level.outlier)
    precision = torch.diag(_PRIOR**-2)
    first = 0.7 * level.radius
    change = torch.zeros(TERMS, 2, dtype=torch.float64)
    for i in range(_ROUNDS):
        sigma = first * (_LAST_SIGMA / first) ** (i / (_ROUNDS - 1))
        expected = (terms @ change) * half
        near = (-0.5 * torch.cdist(moves, expected).square() / sigma**2).exp()
        votes = likelihood * near
        mean = votes.T @ moves / votes.sum(0)[:, None].clamp_min(1e-12)
        evidence = votes.sum(0) / near.sum(0).clamp_min(1e-12)
        weights = share * (evidence / (evidence + threshold)).square()
        squares = terms.T @ (terms * weights[:, None])
        right = terms.T @ (mean / half * weights[:, None])
        for axis in range(2):
            noise = _NEIGHBOURS * ((1 + sigma) / half[axis]) ** 2
            change[:, axis] = torch.linalg.solve(
                squares / noise + precision,
                right[:, axis] / noise - bend[:, axis] * _PRIOR**-2,
            )
    return change


@dataclass(frozen=True)
class _Seen:
    """The draft around the region at one level."""

    scale: float
    """Pixels of the level per pixel of the draft."""
    features: Tensor
    """1 5 h w."""
    mask: Tensor
    """The region at the neighbourhoods' places, H W."""
    x: Tensor
    """Of those places, in px of the draft, H W."""
    y: Tensor


class SurfaceMatcher:
    """A draft's region and a reference, ready for comparing them under many maps.

    Args:
        draft: the whole picture, 1 3 H W in any stored type.
        region: what is repaired in it.
        reference: float 1 3 h w, may be averaged down.
        full_size: of the reference, in px.
    """

    def __init__(self, draft: Tensor, region: Region, reference: Tensor, full_size: Extent) -> None:
        self.box = box = region.box
        around = round(_SURROUNDINGS * min(box.extent))
        self.window = Box(
            max(0, box.x0 - around),
            max(0, box.y0 - around),
            min(draft.shape[-1], box.x1 + around),
            min(draft.shape[-2], box.y1 + around),
        )
        self.reference = full_size
        self._shrunk = full_size.width / reference.shape[-1]
        self._pyramid = [reference]
        while min(self._pyramid[-1].shape[-2:]) > 24:
            self._pyramid.append(F.avg_pool2d(self._pyramid[-1], 2))
        w = self.window
        self._draft = to_float(draft[..., w.y0 : w.y1, w.x0 : w.x1])
        self._mask = torch.zeros(1, 1, w.extent.height, w.extent.width)
        self._mask[..., box.y0 - w.y0 : box.y1 - w.y0, box.x0 - w.x0 : box.x1 - w.x0] = region.mask
        self._levels: dict[FitLevel, _Seen] = {}

    def _level(self, level: FitLevel) -> _Seen:
        if level not in self._levels:
            scale = min(1.0, level.size / self._side)
            size = [max(8, round(n * scale)) for n in self._draft.shape[-2:]]
            small = F.interpolate(self._draft, size, mode="area")
            mask = F.interpolate(self._mask, size, mode="area")[0, 0]
            x, y = pixel_centers(self.window, Extent(size[1], size[0]))
            s = level.stride
            features = surface_features(small, max(1.5, _LIGHT_SIGMA * level.size))
            self._levels[level] = _Seen(scale, features, mask[::s, ::s], x[::s, ::s], y[::s, ::s])
        return self._levels[level]

    def _moving(self, surface: SurfaceMap, level: FitLevel) -> tuple[Tensor, Tensor]:
        """Features of the reference under a map, and where it shows anything."""
        seen = self._level(level)
        zoom = abs(surface.zoom(self.reference)) / seen.scale / self._shrunk
        depth = math.floor(math.log2(max(1.0, zoom)) + 0.3)
        picture = self._pyramid[min(depth, len(self._pyramid) - 1)]
        size = Extent(seen.features.shape[-1], seen.features.shape[-2])
        view, inside = warp_surface(picture, surface, self.window, size)
        inside = 1 - F.max_pool2d(1 - inside, 3, 1, 1)
        return surface_features(view, max(1.5, _LIGHT_SIGMA * level.size)), inside

    def _textures(self, moving: Tensor, level: FitLevel) -> tuple[Tensor, Tensor]:
        k, s = level.window, level.stride
        fixed = self._level(level).features
        return tuple(  # pyright: ignore[reportReturnType] (two of them)
            _texture(_means(f * f, k, s) - _means(f, k, s) ** 2) for f in (fixed, moving)
        )

    def template(self, scale: float, turn: float) -> tuple[Tensor, Tensor]:
        """Features of the region turned by `turn` degrees at `scale` px per px of the draft, 5 h w,
        and what of them belongs to the region, h w.
        """
        size = [max(6, round(n * scale)) for n in self._draft.shape[-2:]]
        small = F.interpolate(self._draft, size, mode="area")
        mask = F.interpolate(self._mask, size, mode="area")
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        half_w, half_h = (n * scale / 2 for n in self.box.extent)
        reach_x, reach_y = abs(c) * half_w + abs(s) * half_h, abs(s) * half_w + abs(c) * half_h
        x = torch.arange(max(5, round(2 * reach_x))) + 0.5 - reach_x
        y = torch.arange(max(5, round(2 * reach_y))) + 0.5 - reach_y
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        b, w = self.box, self.window
        middle_x = (b.center[0] - w.x0) / w.extent.width * 2 - 1
        middle_y = (b.center[1] - w.y0) / w.extent.height * 2 - 1
        points = torch.stack(
            [
                middle_x + (c * xx + s * yy) * 2 / size[1],
                middle_y + (c * yy - s * xx) * 2 / size[0],
            ],
            -1,
        )[None].to(small)
        both = torch.cat([small, mask], 1)
        turned = F.grid_sample(both, points, "bilinear", "border", align_corners=False)
        features = surface_features(turned[:, :3], max(1.5, _LIGHT_SIGMA * scale * self._side))[0]
        weight = turned[0, 3]
        mean = (features * weight).sum((1, 2), keepdim=True) / weight.sum().clamp_min(1e-6)
        return features - mean, weight

    @property
    def _side(self) -> float:
        """Geometric mean of the region's sides, px of the draft."""
        return math.sqrt(self.box.extent.width * self.box.extent.height)

    def improve(self, surface: SurfaceMap, level: FitLevel) -> SurfaceMap:
        """The map after one fit at a level."""
        seen = self._level(level)
        moving, inside = self._moving(surface, level)
        volume = correlation_volume(seen.features, moving, inside, level)
        own, other = self._textures(moving, level)
        share = _SURROUNDINGS_WEIGHT + (1 - _SURROUNDINGS_WEIGHT) * seen.mask
        u, v = surface.region_coordinates(seen.x.flatten(), seen.y.flatten())
        half = torch.tensor(self.box.extent, dtype=torch.float64) * seen.scale / 2
        weight = (own * other).sqrt() * share
        change = fit_bend(volume, weight, polynomial(u, v), half, surface.bend, level)
        return surface.bent(change)

    def agreement(self, surface: SurfaceMap, level: FitLevel) -> tuple[float, float]:
        """How far the pictures agree inside the region and around it, each 0 to 1.

        Only correlation beyond what unrelated texture reaches counts, and only where both pictures
        have something to show.
        """
        seen = self._level(level)
        moving, inside = self._moving(surface, level)
        flat = FitLevel(level.size, 0, level.window, level.stride, level.outlier)
        found = correlation_volume(seen.features, moving, inside, flat)[0, 0]
        found = ((found - _CHANCE) / (1 - _CHANCE)).clamp_min(0).square()
        own, other = self._textures(moving, level)
        found = found * (own * other).sqrt()

        def mean(where: Tensor) -> float:
            return float((found * where).sum() / (own * where).sum().clamp_min(1e-6))

        return mean(seen.mask), mean(1 - seen.mask)

    def quality(self, surface: SurfaceMap) -> float:
        """One number by which maps are compared: agreement at two levels less the prior's cost."""
        coarse, _ = self.agreement(surface, COARSE)
        middle, around = self.agreement(surface, MIDDLE)
        return 0.5 * (coarse + middle) + 0.7 * around - self.cost(surface)

    def cost(self, surface: SurfaceMap) -> float:
        """What the prior takes off a map's agreement."""
        return _PRIOR_COST * float((surface.bend / _PRIOR[:, None]).square().sum())
