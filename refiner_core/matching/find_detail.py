"""Finding the detail: where in the reference lies what a region of the draft shows, or should show.

With a box on both sides many maps near box onto box are tried, and the best is refined. Without one
on the reference the region is first searched for in all of it, at any size and at turns up to 45
degrees, and the best places are refined in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.geometry import Box, Extent
from ..images.masks import Region, bounds
from ..images.tensors import to_float
from .displacement_votes import FitLevel, surface_features
from .surface_fit import COARSE, FINE, MIDDLE, SURROUNDINGS_SHARE, SurfaceMatcher
from .surface_map import SurfaceMap, box_to_box

_TURNS = (0, -10, 10, -20, 20, -30, 30, -42, 42)  # degrees
_ZOOMS = (1.0, 0.82, 1.2)  # of the detail's box against the region's
# Of the region's sides, along x and y: people draw boxes generously, and a detail in parts resembles
# itself elsewhere too.
_SHIFTS = ((-0.15, 0.0), (0.15, 0.0), (0.0, -0.15), (0.0, 0.15))
_LED = 9  # starts that are also fitted to the surroundings alone
_KEPT = 7  # starts that are followed after the first fit
_LAST_FITS = (MIDDLE, MIDDLE, FINE, FINE, FINE, FINE, FINE)
_OVERSHOOT = 1.6  # of a last fine fit's change: a fit goes part of the way
_AS_GOOD = 0.98  # of the best quality: from here on the last, finest fit is taken
_AS_GOOD_LESS = 0.002  # taken off besides, for qualities near 0
# Levels whose fits from the last map on are averaged: melted print misleads each of them by another
# pixel or two.
_AVERAGED = (
    FitLevel(80, 3, 13, 3, 0.5),
    FitLevel(112, 3, 21, 4, 0.55),
    FitLevel(144, 4, 21, 5, 0.55),
)
_LARGEST = 2048  # px of the reference's longer side for matching
# Search of the whole reference.
_TEMPLATE = 24  # px, geometric mean of the region's sides
_SEARCH_TURNS = tuple(range(-45, 46, 15))  # degrees
_SEARCH_ZOOMS = tuple(
    0.2 * 1.2**i for i in range(19)
)  # reference pixels per draft pixel, 0.2 to 5.3
_OUTSIDE = 0.15  # of the region's side may lie outside of the reference
_PLACES = 8  # of the whole reference that are refined
_FLAT = 0.25  # of the usual texture: what has less resembles nothing
_LEAST_SEARCHED = 12  # px, shorter side of a place in the reference
# Patch NCC inside the region below which the detail counts as not found: on photographs, unrelated
# references reach 0.017, wrong places in the right reference 0.024, and right ones 0.05 and more.
_SURE = 0.035
# Likewise, below which a match is believed but named as weak: of 78 pairs of photographs, 5 of the
# 15 repairs that are further from the truth than the draft by 1.5 dB, and 12 of the 41 better ones.
_CLEARLY = 0.05
# Of the coarse level alone: enough to end the search, and to prefer a fit to the marks.
_CLEAR = 0.04
_BETTER_THAN_MARKS = 0.008
# Change of the region's sides against the marks' from which the marks may show only a part.
_OTHER_SIZE = 0.2
_CLEARLY_BETTER = 1.2  # times the quality of a fit to the marks
_LEAST_CONTRAST = 0.02  # standard deviation in the reference below which a mark shows nothing


@dataclass(frozen=True)
class FoundDetail:
    """Where the detail was found."""

    surface: SurfaceMap
    """From the draft's pixels to the reference."""
    score: float
    """Patch NCC of the pictures inside the region, 0 to 1."""
    around: float
    """Patch NCC of the pictures around the region, 0 to 1."""
    sure: bool
    """Whether that is enough to believe it."""
    searched: bool
    """Whether the whole reference was searched."""
    empty: bool
    """Whether the reference shows nothing there but one colour."""
    reference: Extent
    """Size of the reference in px."""

    def box(self) -> Box:
        """The box around the detail in the reference, in px."""
        return self.surface.reach(self.surface.box, self.reference)

    @property
    def zoom(self) -> float:
        """Pixels of the reference per pixel of the draft."""
        return self.surface.zoom(self.reference)

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": "searched" if self.searched else "surface",
            "score": round(self.score, 3),
            "score_around": round(self.around, 3),
            "sure": self.sure,
            "weak": self.score < _CLEARLY,
            "found_at": list(self.box()),
            "turn_degrees": round(self.surface.turn(self.reference), 2),
            "zoom": round(self.zoom, 3),
            "bend": round(float(self.surface.bend[3:].abs().max()), 3),
        }


def find_detail(
    draft: Tensor,
    region: Region,
    reference: Tensor,
    reference_mask: Tensor | None,
    known: SurfaceMap | None = None,
) -> FoundDetail:
    """Find what a region of the draft shows in the reference.

    Args:
        draft: the whole picture, 1 3 H W in any stored type.
        region: what is repaired in it.
        reference: 1 3 h w in any stored type.
        reference_mask: the detail in it, 1 1 h w, above 0 somewhere; None searches all of it.
        known: another method's result, which is taken where it fits better.

    Returns:
        the best fit. Where both pictures are marked and nothing fits, the marks alone decide.

    Raises:
        ValueError: the reference mask is empty.
    """
    size = Extent(reference.shape[-1], reference.shape[-2])
    bounded = _bounded(reference)
    matcher = SurfaceMatcher(draft, region, bounded, size)
    surface, searched = _found(matcher, bounded, reference_mask, known)
    score, around = matcher.agreement(surface)
    empty = matcher.contrast(surface, COARSE) < _LEAST_CONTRAST
    return FoundDetail(surface, score, around, score > _SURE, searched, empty, size)


def _found(
    matcher: SurfaceMatcher,
    reference: Tensor,
    reference_mask: Tensor | None,
    known: SurfaceMap | None,
) -> tuple[SurfaceMap, bool]:
    """Where the detail is, and whether all of the reference was searched for it.

    A mask may show other parts of a surface than the region: a wordmark's own alpha marks its letters
    where the region is the whole sign. If it fits badly, inside and around, or at another size than the
    marks say, the detail is also searched for, and found if it lies around what is marked. If nothing
    fits, the marks alone decide.
    """
    if reference_mask is None:
        surface = _best(matcher, _searched(matcher, reference))
        return max((surface, known or surface), key=matcher.quality), True
    detail = bounds(reference_mask)
    if detail is None:
        raise ValueError("The reference mask is empty; mark the detail or leave it out.")
    starts = list(_near_boxes(matcher.box, detail, matcher.reference))
    near = matcher.marked(starts[0])
    surface = max((_best(near, starts), known or starts[0]), key=near.quality)
    clear = max(matcher.patch_ncc(surface, COARSE)) > _CLEAR
    if clear and _as_marked(surface, starts[0]):
        return surface, False
    other = _best(matcher, _searched(matcher, reference))
    around = other.reach(other.box, matcher.reference)
    x, y = detail.center
    marked = around.x0 <= x < around.x1 and around.y0 <= y < around.y1
    if marked and matcher.patch_ncc(other, COARSE)[0] > _CLEAR:
        better = matcher.quality(other) > _CLEARLY_BETTER * matcher.quality(surface)
        if better or not clear:
            return other, True
    if matcher.patch_ncc(surface, COARSE)[0] > _BETTER_THAN_MARKS:
        return surface, False
    return max((starts[0], known or starts[0]), key=near.quality), False


def _as_marked(surface: SurfaceMap, marks: SurfaceMap) -> bool:
    """Whether a map shows the region in about the size that its box and the detail's have."""
    along = surface.difference(marks)
    return float(torch.stack([along[1, 0], along[2, 1]]).abs().max()) < _OTHER_SIZE


def _bounded(reference: Tensor) -> Tensor:
    """The reference as float, averaged down to what matching needs at the most."""
    scale = _LARGEST / max(reference.shape[-2:])
    picture = to_float(reference)
    if scale >= 1:
        return picture
    return F.interpolate(
        picture, [max(8, round(n * scale)) for n in picture.shape[-2:]], mode="area"
    )


def _near_boxes(box: Box, detail: Box, size: Extent) -> Iterator[SurfaceMap]:
    yield box_to_box(box, detail, size)
    for x, y in _SHIFTS:
        right, down = round(x * detail.extent.width), round(y * detail.extent.height)
        yield box_to_box(box, detail.moved(right, down), size, 0, 1.0)
    for zoom in _ZOOMS:
        for turn in _TURNS:
            yield box_to_box(box, detail, size, turn, zoom)


def _best(matcher: SurfaceMatcher, starts: list[SurfaceMap]) -> SurfaceMap:
    """The best of the maps that the starts lead to."""

    def first_look(surface: SurfaceMap) -> float:
        inside, around = matcher.patch_ncc(surface, COARSE)
        return inside + SURROUNDINGS_SHARE * around - matcher.cost(surface)

    matcher.look(starts, COARSE)
    # Parts of the detail in the wrong order mislead the search; its surroundings do not.
    both = [matcher.improve_both(start, COARSE) for start in starts[:_LED]]
    coarse = [whole for whole, _ in both]
    coarse += [matcher.improve(start, COARSE) for start in starts[_LED:]]
    coarse += [around for _, around in both]
    coarse = [s for s in coarse if s.zoom(matcher.reference) > 0] or coarse
    matcher.look(coarse, COARSE)
    coarse.sort(key=first_look, reverse=True)
    middle = [matcher.improve(start, MIDDLE) for start in coarse[:_KEPT]]
    best = max(middle, key=matcher.quality)
    matcher = matcher.softened(best)
    return _averaged(matcher, _refined(matcher, best))


def _refined(matcher: SurfaceMatcher, surface: SurfaceMap) -> SurfaceMap:
    """The map after the last fits: the finest, or another where that agrees clearly less."""
    found: list[tuple[float, SurfaceMap]] = []
    for level in _LAST_FITS:
        change = matcher.improve(surface, level).bend - surface.bend
        surface = surface.bent(change * (_OVERSHOOT if level is FINE else 1))
        found.append((matcher.quality(surface), surface))
    best = max(found, key=lambda pair: pair[0])
    return surface if found[-1][0] > _AS_GOOD * best[0] - _AS_GOOD_LESS else best[1]


def _averaged(matcher: SurfaceMatcher, surface: SurfaceMap) -> SurfaceMap:
    """The mean of the maps that fits at several levels make of one."""
    changes = [matcher.improve(surface, level).bend - surface.bend for level in _AVERAGED]
    return surface.bent(torch.stack(changes).mean(0))


def _searched(matcher: SurfaceMatcher, reference: Tensor) -> list[SurfaceMap]:
    """Maps of the places in the whole reference that resemble the region most."""
    box, size = matcher.box, matcher.reference
    scale = _TEMPLATE / math.sqrt(box.extent.width * box.extent.height)
    templates = [(turn, *matcher.template(scale, turn)) for turn in _SEARCH_TURNS]
    largest = max(max(template.shape[-2:]) for _, template, _ in templates)
    found: list[tuple[float, SurfaceMap]] = []
    for zoom in _SEARCH_ZOOMS:
        fits = zoom * min(box.extent) >= _LEAST_SEARCHED and all(
            zoom * own <= (1 + _OUTSIDE) * other
            for own, other in zip(box.extent, size, strict=True)
        )
        if fits:
            spectrum = _Spectrum.of(_at_zoom(reference, size, zoom / scale), largest)
            for turn, template, weight in templates:
                for value, (x, y) in _peaks(spectrum, template, weight):
                    found.append((value, _placed(box, size, (x, y), zoom, turn)))
    found.sort(key=lambda pair: -pair[0])
    if not found:
        return [box_to_box(box, Box(0, 0, *size), size, 0.0)]
    return [surface for _, surface in found[:_PLACES]]


def _at_zoom(reference: Tensor, size: Extent, step: float) -> Tensor:
    """Features of the reference at one pixel every `step` px of its full `size`, 1 5 h w."""
    wanted = [max(6, round(n / step)) for n in (size.height, size.width)]
    smaller = wanted[0] < reference.shape[-2]
    picture = F.interpolate(reference, wanted, mode="area" if smaller else "bilinear")
    return surface_features(picture, max(1.5, 0.12 * _TEMPLATE))


@dataclass(frozen=True)
class _Spectrum:
    """The reference at one zoom, ready for being compared with templates at all places."""

    size: tuple[int, int]
    """Height and width of the reference in pixels of this zoom."""
    transformed: Tensor
    """Fourier transforms of its features and of the sum of their squares, 6 h w."""
    padded: list[int]
    """Height and width of what was transformed: what is beyond the reference is 0."""
    power: float
    """Sum of the squares."""

    @staticmethod
    def of(features: Tensor, largest: int) -> _Spectrum:
        """For features 1 5 h w and templates of at most `largest` px to a side."""
        height, width = features.shape[-2:]
        squares = features.square().sum(1)
        size = [_quick_length(n + largest) for n in (height, width)]
        both = torch.cat([features[0], squares])
        power = float(squares.sum())
        return _Spectrum((height, width), torch.fft.rfft2(both, s=size), size, power)

    def correlated(self, template: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of products of the features with a template 5 h w, and of their squares with a weight
        h w: each `padded`, with the template's corner at every place.
        """
        moving = torch.fft.rfft2(torch.cat([template, weight[None]]), s=self.padded)
        products = self.transformed * moving.conj()
        pair = torch.stack([products[:-1].sum(0), products[-1]])
        shared, power = torch.fft.irfft2(pair, s=self.padded)
        return shared, power


def _quick_length(least: int) -> int:
    """The smallest length from `least` without a prime factor over 5: it is transformed quickly."""
    rest = least
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return least if rest == 1 else _quick_length(least + 1)


def _margin(side: int) -> int:
    """How many px of a template's side may lie outside of the reference."""
    return int(_OUTSIDE * side) + 1


def _peaks(
    reference: _Spectrum, template: Tensor, weight: Tensor
) -> list[tuple[float, tuple[float, float]]]:
    """The two best places of a template: correlation, and its centre as shares of the picture.

    Args:
        reference: transformed for templates of this size.
        template, weight: 5 h w and h w.
    """
    h, w = template.shape[-2:]
    height, width = reference.size
    pad_y, pad_x = _margin(h), _margin(w)
    rows, columns = height + 2 * pad_y, width + 2 * pad_x
    if rows < h or columns < w:
        return []
    shared, power = (
        x.roll((pad_y, pad_x), (0, 1))[: rows - h + 1, : columns - w + 1]
        for x in reference.correlated(template * weight, weight)
    )
    own = (template.square().sum(0) * weight).sum()
    usual = _FLAT * reference.power / (rows * columns) * weight.sum()
    score = shared / ((power.clamp_min(0) + usual) * own + 1e-6).sqrt()
    places: list[tuple[float, tuple[float, float]]] = []
    for _ in range(2):
        y, x = divmod(int(score.argmax()), score.shape[-1])
        center = ((x - pad_x + w / 2) / width, (y - pad_y + h / 2) / height)
        places.append((float(score[y, x]), center))
        score[max(0, y - h // 2) : y + h // 2 + 1, max(0, x - w // 2) : x + w // 2 + 1] = -1
    return places


def _placed(
    box: Box, size: Extent, center: tuple[float, float], zoom: float, turn: float
) -> SurfaceMap:
    """The map with the region's centre at `center` (shares of the reference's sides)."""
    half_width, half_height = box.extent.width * zoom / 2, box.extent.height * zoom / 2
    x, y = center[0] * size.width, center[1] * size.height
    detail = Box(
        round(x - half_width), round(y - half_height), round(x + half_width), round(y + half_height)
    )
    return box_to_box(box, detail, size, turn)
