"""Fitting a surface map to two pictures of one thing, one of them broken where it matters."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import wide_blur
from ..images.geometry import Box, Extent
from ..images.masks import Region
from ..images.tensors import to_float
from .displacement_votes import (
    PRIOR,
    Described,
    FitLevel,
    correlation,
    correlation_volume,
    fit_polynomial,
    surface_features,
)
from .softness import softness
from .surface_map import RegionPoints, SurfaceMap, sample_surface

COARSE = FitLevel(28, 5, 9, 2, 0.45)
MIDDLE = FitLevel(56, 4, 9, 3, 0.45)
FINE = FitLevel(112, 3, 15, 4, 0.55)

_SURROUNDINGS = 0.45  # of the region's shorter side: how far around it is looked
_SURROUNDINGS_WEIGHT = 0.8  # of a neighbourhood outside the region against one inside
_LIGHT_SIGMA = 0.12  # of the level's size: wider changes of luminance are light
_LEAST_LIGHT_SIGMA = 1.5  # px
_LEAST_SIDE = 24  # px, shorter side below which the reference is not averaged down further
_CHANCE = 0.3  # correlation that unrelated texture reaches too
SURROUNDINGS_SHARE = 3.0  # of the patch NCC around the region, where nothing is broken
_TOGETHER = 8  # small views that are described together: they stay in the cache
_PRIOR_COST = 0.0002  # of one squared standard deviation of the prior, in patch NCC
_MARKED_COST = 0.004  # the same against what two marks say, growing with the logarithm only
# Deviations of photographs' true maps from box onto box, as standard deviations of the terms 1, u, v,
# u², uv, v² in half sides of the region: smaller than the prior, with few large ones.
_MARKED = torch.tensor([0.13, 0.1, 0.1, 0.06, 0.03, 0.03], dtype=torch.float64)


@dataclass(frozen=True)
class _Seen:
    """The draft around the region at one level."""

    scale: float
    """Pixels of the level per pixel of the draft."""
    picture: Tensor
    """1 3 h w."""
    described: Described
    """What is compared of it."""
    region: Tensor
    """At all pixels, 1 1 h w in [0, 1]."""
    mask: Tensor
    """The region at the neighbourhoods' places, H W."""
    points: RegionPoints
    """All pixels, h w."""
    terms: Tensor
    """Of the polynomial at the neighbourhoods' places, (H W) 6."""


@dataclass(frozen=True)
class _Shown:
    """The reference under a map at one level."""

    surface: SurfaceMap
    """The map."""
    described: Described
    """What is compared of it."""
    inside: Tensor
    """1 1 h w, 0 where the reference shows nothing or ends."""


def _eroded(inside: Tensor) -> Tensor:
    """The smallest of each pixel and its eight neighbours in 1 1 h w; much faster than pooling."""
    for axis in (2, 3):
        n = inside.shape[axis]
        near = inside.clone()
        for own, other in ((0, 1), (1, 0)):
            part = near.narrow(axis, own, n - 1)
            torch.minimum(part, inside.narrow(axis, other, n - 1), out=part)
        inside = near
    return inside


def _halved(picture: Tensor) -> Tensor:
    """Means of 2x2 pixels of `... h w`, without an odd last row or column; faster than pooling."""
    height, width = (n // 2 * 2 for n in picture.shape[-2:])
    rows = picture[..., 0:height:2, :width] + picture[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)


def _light_sigma(size: float) -> float:
    """Blur in px that leaves the light of a picture in which the region has that size."""
    return max(_LEAST_LIGHT_SIGMA, _LIGHT_SIGMA * size)


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
        while min(self._pyramid[-1].shape[-2:]) > _LEAST_SIDE:
            self._pyramid.append(_halved(self._pyramid[-1]))
        w = self.window
        self._draft = to_float(draft[..., w.y0 : w.y1, w.x0 : w.x1])
        self._mask = torch.zeros(1, 1, w.extent.height, w.extent.width)
        self._mask[..., box.y0 - w.y0 : box.y1 - w.y0, box.x0 - w.x0 : box.x1 - w.x0] = region.mask
        self._levels: dict[FitLevel, _Seen] = {}
        self._known: dict[tuple[int, FitLevel], _Shown] = {}
        self._softness = 0.0  # px of the draft by which the reference is blurred inside the region
        self._marked: SurfaceMap | None = None  # box onto box, where people have drawn both

    def _level(self, level: FitLevel) -> _Seen:
        if level not in self._levels:
            scale = min(1.0, level.size / self._side)
            size = [max(8, round(n * scale)) for n in self._draft.shape[-2:]]
            small = F.interpolate(self._draft, size, mode="area")
            region = F.interpolate(self._mask, size, mode="area")
            described = Described.of(surface_features(small, _light_sigma(level.size)), level)[0]
            points = RegionPoints.of_window(self.box, self.window, Extent(size[1], size[0]))
            s = level.stride
            terms = points.terms[::s, ::s].flatten(0, 1)
            mask = region[0, 0, ::s, ::s]
            self._levels[level] = _Seen(scale, small, described, region, mask, points, terms)
        return self._levels[level]

    def _view(self, surface: SurfaceMap, level: FitLevel) -> tuple[Tensor, Tensor]:
        """The reference under a map, and where it shows anything."""
        seen = self._level(level)
        zoom = abs(surface.zoom(self.reference)) / seen.scale / self._shrunk
        depth = math.floor(math.log2(max(1.0, zoom)) + 0.3)
        picture = self._pyramid[min(depth, len(self._pyramid) - 1)]
        view, inside = sample_surface(picture, surface, seen.points)
        if self._softness:
            view = torch.lerp(view, wide_blur(view, self._softness * seen.scale), seen.region)
        return view, inside

    def look(self, surfaces: Sequence[SurfaceMap], level: FitLevel) -> None:
        """Have what the reference shows under several maps at hand: together it takes less time."""
        new = [s for s in surfaces if (id(s), level) not in self._known]
        for start in range(0, len(new), _TOGETHER):
            part = new[start : start + _TOGETHER]
            views = [self._view(surface, level) for surface in part]
            features = surface_features(
                torch.cat([view for view, _ in views]), _light_sigma(level.size)
            )
            described = Described.of(features, level)
            for surface, (_, inside), own in zip(part, views, described, strict=True):
                self._known[id(surface), level] = _Shown(surface, own, _eroded(inside))

    def _shown(self, surface: SurfaceMap, level: FitLevel) -> _Shown:
        """What the reference shows under a map; the same map is often asked for again."""
        self.look([surface], level)
        return self._known[id(surface), level]  # the entry keeps the map, and so its id, alive

    def softened(self, surface: SurfaceMap) -> SurfaceMatcher:
        """A matcher whose reference is as soft inside the region as the draft is there: sharp edges
        beside blurred ones resemble nothing. Around the region both stay sharp.

        Args:
            surface: about where the region lies in the reference.
        """
        seen = self._level(FINE)
        view, _ = self._view(surface, FINE)
        sigma = softness(seen.picture, view, seen.region) / seen.scale  # px of the draft
        if sigma == 0:
            return self
        soft = copy.copy(self)
        soft._softness, soft._known = sigma, {}
        return soft

    def marked(self, surface: SurfaceMap) -> SurfaceMatcher:
        """A matcher that takes maps for less likely the more they differ from what two marks say.

        Args:
            surface: the region's box onto the detail's.
        """
        expecting = copy.copy(self)
        expecting._marked = surface
        return expecting

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
        features = surface_features(turned[:, :3], _light_sigma(scale * self._side))[0]
        weight = turned[0, 3]
        mean = (features * weight).sum((1, 2), keepdim=True) / weight.sum().clamp_min(1e-6)
        return features - mean, weight

    @property
    def _side(self) -> float:
        """Geometric mean of the region's sides, px of the draft."""
        return math.sqrt(self.box.extent.width * self.box.extent.height)

    def improve(self, surface: SurfaceMap, level: FitLevel) -> SurfaceMap:
        """The map after one fit at a level."""
        return self._fitted(surface, level, self._volume(surface, level), 1)

    def improve_both(self, surface: SurfaceMap, level: FitLevel) -> tuple[SurfaceMap, SurfaceMap]:
        """The map after one fit at a level, and after one to the surroundings alone."""
        volume = self._volume(surface, level)
        whole, around = (self._fitted(surface, level, volume, inside) for inside in (1, 0))
        return whole, around

    def _volume(self, surface: SurfaceMap, level: FitLevel) -> Tensor:
        seen, shown = self._level(level), self._shown(surface, level)
        return correlation_volume(
            seen.described, shown.described.features[None], shown.inside, level
        )

    def _fitted(
        self, surface: SurfaceMap, level: FitLevel, volume: Tensor, inside_weight: float
    ) -> SurfaceMap:
        """The map after a fit to a volume; `inside_weight` is that of neighbourhoods in the region."""
        seen, shown = self._level(level), self._shown(surface, level)
        share = _SURROUNDINGS_WEIGHT + (inside_weight - _SURROUNDINGS_WEIGHT) * seen.mask
        weight = (seen.described.texture * shown.described.texture).sqrt() * share
        half = torch.tensor(self.box.extent, dtype=torch.float64) * seen.scale / 2
        change = fit_polynomial(volume, weight, seen.terms, half, surface.bend, level)
        return surface.bent(change)

    def patch_ncc(self, surface: SurfaceMap, level: FitLevel) -> tuple[float, float]:
        """Patch NCC inside the region and around it, each 0 to 1.

        Only correlation beyond what unrelated texture reaches counts, and only where both pictures
        have something to show.
        """
        seen, shown = self._level(level), self._shown(surface, level)
        found = correlation(seen.described, shown.described, shown.inside, level)
        found = ((found - _CHANCE) / (1 - _CHANCE)).clamp_min(0).square()
        found = found * (seen.described.texture * shown.described.texture).sqrt()

        def mean(where: Tensor) -> float:
            return float(
                (found * where).sum() / (seen.described.texture * where).sum().clamp_min(1e-6)
            )

        return mean(seen.mask), mean(1 - seen.mask)

    def contrast(self, surface: SurfaceMap, level: FitLevel) -> float:
        """Standard deviation of what the reference shows in the region, in units of full scale."""
        view, inside = self._view(surface, level)
        s = level.stride
        shown = view[0, :, ::s, ::s][:, (self._level(level).mask * inside[0, 0, ::s, ::s]) > 0.5]
        return float(shown.std(1).max()) if shown.shape[1] > 1 else 0.0

    def quality(self, surface: SurfaceMap) -> float:
        """One number by which maps are compared: patch NCC at two levels less the prior's cost."""
        inside, around = self.agreement(surface)
        return inside + SURROUNDINGS_SHARE * around - self.cost(surface)

    def agreement(self, surface: SurfaceMap) -> tuple[float, float]:
        """Patch NCC inside the region, the mean of two levels, and around it at the finer one."""
        coarse, _ = self.patch_ncc(surface, COARSE)
        middle, around = self.patch_ncc(surface, MIDDLE)
        return 0.5 * (coarse + middle), around

    def cost(self, surface: SurfaceMap) -> float:
        """What the prior takes off a map's patch NCC."""
        if self._marked is None:
            return _PRIOR_COST * float((surface.bend / PRIOR[:, None]).square().sum())
        apart = surface.difference(self._marked) / _MARKED[:, None]
        return _MARKED_COST * float(apart.square().log1p().sum())
