"""Finding the transform between two pictures of the same thing, where a weight says to look.

One masked, robust, coarse-to-fine Gauss-Newton serves two steps of the pipeline: *drift* (an edit
model moved its output by a few pixels or a percent of zoom against the draft) and *alignment*
(the reference shows the detail in another pose than the draft).

A transform is a 3x3 float64 matrix in normalised coordinates of the crop, [-1, 1] from edge to
edge, mapping a point of the fixed picture to the point of the moving picture it is read from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur, luminance
from .warping import grid, warp

MotionModel = Literal["shift_zoom", "similarity", "affine", "homography"]

_LEAST_CONTRAST = 0.02  # of full scale, below which a neighbourhood counts as flat
_EDGE_SIGMA = 0.7  # px, blur before edges are taken: noise has no orientation
_EDGE_FLOOR = 0.25  # times the mean edge energy: fainter edges count little
_LIGHT_SIGMA = 0.12  # of the shorter side: wider changes of luminance are light
_LEAST_LIGHT_SIGMA = 1.5  # px
_GUIDE_SIGMA = 1.5  # px: a blurred mask pulls from farther away
_GUIDE_FADING = 0.25  # of the guide's weight from one level to the next finer one
_GUIDE_SHARE = 0.5  # of the guides' overlap in the choice between maps
# Gauss-Newton.
_LEAST_SEEN = 0.2  # of the weight that must fall inside the moving picture
_GAINS = (0.2, 5.0)  # of the moving picture's contrast, beyond which it is another thing
_ROBUST = 1.5  # times the residuals' deviation: larger ones lose their say
_DAMPING = 1e-3  # Levenberg-Marquardt's, at first, in units of the normal matrix's diagonal
_LEAST_DAMPING = 1e-4
_MOST_DAMPING = 10  # at which the steps are too short to matter
_DAMPING_UP, _DAMPING_DOWN = 8, 3  # factors after a step that did harm, or good
_WORSE = 1.02  # times the lowest cost, above which a step did harm
_CONVERGED = 1e-4  # change of a parameter: about a hundredth of a pixel at 192 px

_EYE = torch.eye(3, dtype=torch.float64)
# Generators of each motion model: the derivative of the matrix by each parameter.
_UNIT = {(r, c): torch.zeros(3, 3, dtype=torch.float64) for r in range(3) for c in range(3)}
for (_r, _c), _m in _UNIT.items():
    _m[_r, _c] = 1.0
_ZOOM = _UNIT[0, 0] + _UNIT[1, 1]
_TURN = _UNIT[1, 0] - _UNIT[0, 1]
_GENERATORS: dict[str, list[Tensor]] = {
    "shift_zoom": [_UNIT[0, 2], _UNIT[1, 2], _ZOOM],
    "similarity": [_UNIT[0, 2], _UNIT[1, 2], _ZOOM, _TURN],
    "affine": [_UNIT[r, c] for r in (0, 1) for c in (0, 1, 2)],
    "homography": [_UNIT[r, c] for r in range(3) for c in range(3) if (r, c) != (2, 2)],
}


@dataclass(frozen=True)
class Registration:
    """What `register` found."""

    matrix: Tensor
    """3 3 float64, from the fixed picture to the moving one, both in normalised coordinates."""
    score: float
    """Weighted correlation of the two under it, -1 to 1."""


def _normalised(image: Tensor, sigma: float) -> Tensor:
    """Luminance with local mean removed and local contrast evened out: light plays no part."""
    y = luminance(image)
    centred = y - blur(y, sigma)
    contrast = blur(centred * centred, sigma).clamp_min(0).sqrt()
    return centred / (contrast + _LEAST_CONTRAST)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences by x and y in normalised units."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    gx = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) * (x.shape[-1] / 4)
    gy = (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) * (x.shape[-2] / 4)
    return gx, gy


PICTURE_CHANNELS = 3  # channels of `_features`
_SHARES = (0.6, 1.0, 1.0)  # of luminance and the two of orientation, which light leaves alone


def _features(image: Tensor, sigma: float) -> Tensor:
    """What is compared, B 3 H W: luminance with the light evened out, and the orientation of edges
    as `(cos 2a, sin 2a)` scaled by their strength. Doubling the angle forgets which side of an edge
    is the brighter one: a sign on a dark wall and the same sign on a bright one agree.
    """
    even = _normalised(image, sigma)
    gx, gy = _gradient(blur(even, _EDGE_SIGMA))
    gx, gy = gx / image.shape[-1], gy / image.shape[-2]
    energy = gx * gx + gy * gy
    floor = _EDGE_FLOOR * energy.mean((1, 2, 3), keepdim=True) + 1e-6
    orientation = torch.cat([gx * gx - gy * gy, 2 * gx * gy], 1) / (energy + floor)
    return torch.cat([even, blur(orientation, 1.0)], 1)


def correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted correlation over all but the batch dimension, `B`."""
    total = weight.flatten(1).sum(1).clamp_min(1e-6)

    def mean(v: Tensor) -> Tensor:
        return (v * weight).flatten(1).sum(1) / total

    def centred(v: Tensor) -> Tensor:
        return v - mean(v).reshape(-1, 1, 1, 1)

    a, b = centred(a), centred(b)
    return mean(a * b) / (mean(a * a) * mean(b * b)).sqrt().clamp_min(1e-8)


def _level(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size, mode="area") if image.shape[-2:] != size else image


def _sizes(height: int, width: int, finest: int, coarsest: int) -> list[tuple[int, int]]:
    """Pyramid sizes coarse to fine; the shorter side runs from about `coarsest` to `finest`."""
    short = min(height, width)
    side = min(short, finest)
    sides = [side]
    while sides[-1] / 2 >= coarsest:
        sides.append(sides[-1] // 2)
    return [
        (max(4, round(height * s / short)), max(4, round(width * s / short)))
        for s in reversed(sides)
    ]


@dataclass(frozen=True)
class Level:
    """Two pictures at one level of the pyramid.

    The first `PICTURE_CHANNELS` channels are the picture's (see `_features`); one more is the
    guide's.
    """

    fixed: Tensor
    """Channels of the fixed picture, 1 C h w."""
    moving: Tensor
    """Channels of the moving picture, 1 C by its own size at this level."""
    weights: Tensor
    """Of every pixel of the fixed picture's channels, 1 C h w."""


def _cost(level: Level, moving: Tensor, matrix: Tensor) -> tuple[list[Tensor], Tensor] | None:
    """Residuals and weights of every channel, robust, with the moving picture's gradients.

    Args:
        moving: the moving picture's channels, their gradients along x and those along y, 1 3C h w.
    """
    h, w = level.fixed.shape[-2:]
    warped, inside = warp(moving, matrix, h, w)
    seen = inside.flatten().double()
    n = level.fixed.shape[1]
    stack = warped[0].flatten(1).double()
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    for c in range(n):
        wt = level.weights[0, c].flatten().double() * seen
        if wt.sum() < _LEAST_SEEN * level.weights[0, c].sum():
            return None
        value, dx, dy = stack[c], stack[n + c], stack[2 * n + c]
        target = level.fixed[0, c].flatten().double()
        gain = torch.ones((), dtype=torch.float64)
        if c < PICTURE_CHANNELS:  # light: the best gain and bias are taken out, a mask has neither
            value = value - (wt * value).sum() / wt.sum()
            target = target - (wt * target).sum() / wt.sum()
            gain = (wt * value * target).sum() / ((wt * value * value).sum() + 1e-9)
            gain = gain.clamp(*_GAINS)
        residual = target - gain * value
        if c < PICTURE_CHANNELS:  # one unit for all channels: the fixed picture's own spread
            spread = ((wt * target * target).sum() / wt.sum()).sqrt() + 1e-3
            residual, gain = residual / spread, gain / spread
        scale = _ROBUST * ((wt * residual * residual).sum() / wt.sum()).sqrt() + 1e-6
        weights.append(wt / (1 + (residual / scale) ** 2) ** 2 if c < PICTURE_CHANNELS else wt)
        rows.append(torch.stack([residual, gain * dx, gain * dy]))
    return rows, torch.stack(weights)


def _refine(level: Level, start: Tensor, generators: list[Tensor], rounds: int) -> Tensor:
    """Gauss-Newton with Levenberg and Marquardt's damping on `fixed - gain * moving(matrix) - bias`."""
    h, w = level.fixed.shape[-2:]
    points = grid(h, w).T.contiguous()
    moves = torch.stack(generators) @ points  # K 3 N
    moving = torch.cat([level.moving, *_gradient(level.moving)], 1)
    matrix = kept = start
    damping, best = _DAMPING, math.inf
    for _ in range(rounds):
        found = _cost(level, moving, matrix)
        if found is None:
            break
        rows, weights = found
        cost = sum(
            float((wt * r[0] * r[0]).sum() / wt.sum().clamp_min(1e-9))
            for r, wt in zip(rows, weights, strict=True)
        )
        if cost > best * _WORSE:
            damping *= _DAMPING_UP
            matrix = kept
            if damping > _MOST_DAMPING:
                break
        else:
            best, kept, damping = (
                min(best, cost),
                matrix,
                max(damping / _DAMPING_DOWN, _LEAST_DAMPING),
            )
        p = matrix @ points
        z = p[2].clamp_min(1e-6)
        u, v = p[0] / z, p[1] / z
        du, dv = (moves[:, 0] - u * moves[:, 2]) / z, (moves[:, 1] - v * moves[:, 2]) / z  # K N
        size = len(generators)
        normal, right = (
            torch.zeros(size, size, dtype=torch.float64),
            torch.zeros(size, dtype=torch.float64),
        )
        for (residual, dx, dy), wt in zip(rows, weights, strict=True):
            jacobian = dx * du + dy * dv
            weighted = jacobian * wt
            normal += weighted @ jacobian.T
            right += weighted @ residual
        ridge = torch.diag(normal.diagonal() * damping + 1e-9 * normal.diagonal().max() + 1e-12)
        delta = torch.linalg.solve(normal + ridge, right)
        matrix = matrix + sum(
            (float(a) * g for a, g in zip(delta, generators, strict=True)), torch.zeros_like(_EYE)
        )
        if float(delta.abs().max()) < _CONVERGED:
            break
    return kept


def pyramid(
    fixed: Tensor,
    moving: Tensor,
    weight: Tensor,
    guide: tuple[Tensor, Tensor] | None,
    finest: int,
    coarsest: int,
) -> list[Level]:
    """What is compared at every size, coarse to fine: the shorter side from about `coarsest` to
    `finest` px. Arguments as for `register`.
    """
    sizes = _sizes(fixed.shape[-2], fixed.shape[-1], finest, coarsest)
    aspect = moving.shape[-1] / moving.shape[-2]
    levels = []
    for depth, (h, w) in enumerate(sizes):
        mh = max(4, round(math.sqrt(h * w / aspect)))
        size = (mh, max(4, round(mh * aspect)))
        sigma = max(_LEAST_LIGHT_SIGMA, _LIGHT_SIGMA * min(h, w))
        f = _features(_level(fixed.float(), (h, w)), sigma)
        m = _features(_level(moving.float(), size), sigma)
        share = torch.tensor(_SHARES).reshape(1, PICTURE_CHANNELS, 1, 1)
        weights = _level(weight.float(), (h, w)) * share
        if guide is not None:
            # The guide leads the coarse levels and fades out: a mask is rough, a picture is not.
            guiding = _GUIDE_FADING**depth
            f = torch.cat([f, blur(_level(guide[0].float(), (h, w)), _GUIDE_SIGMA)], 1)
            m = torch.cat([m, blur(_level(guide[1].float(), size), _GUIDE_SIGMA)], 1)
            weights = torch.cat([weights, torch.full_like(weights[:, :1], guiding)], 1)
        levels.append(Level(f, m, weights))
    return levels


def _scores(level: Level, matrices: Tensor, guide_share: float) -> Tensor:
    """Correlation of the pictures under each matrix, plus `guide_share` of the guides' overlap."""
    n = len(matrices)
    soft = level.moving
    height, width = level.fixed.shape[-2:]
    warped, inside = warp(soft.expand(n, -1, -1, -1), matrices, height, width, "bilinear")
    fixed = level.fixed.expand(n, -1, -1, -1)
    weight = level.weights[:, :1]
    seen = inside * weight
    share = seen.flatten(1).sum(1) / weight.sum().clamp_min(1e-6)
    per_channel = torch.stack(
        [
            correlation(fixed[:, c : c + 1], warped[:, c : c + 1], seen)
            for c in range(PICTURE_CHANNELS)
        ]
    )
    shares = torch.tensor(_SHARES).reshape(-1, 1)
    score = (per_channel * shares).sum(0) / shares.sum()
    score = score * share.sqrt()
    if guide_share and level.fixed.shape[1] > PICTURE_CHANNELS:
        a, b = level.fixed[:, PICTURE_CHANNELS:], warped[:, PICTURE_CHANNELS:] * inside
        overlap = torch.minimum(a, b).flatten(1).sum(1) / torch.maximum(a, b).flatten(1).sum(1)
        score = score + guide_share * overlap
    return score


def register(
    fixed: Tensor,
    moving: Tensor,
    weight: Tensor,
    model: MotionModel,
    starts: list[Tensor] | None = None,
    *,
    guide: tuple[Tensor, Tensor] | None = None,
    finest: int = 192,
    coarsest: int = 24,
    keep: int = 3,
    rounds: int = 12,
) -> Registration:
    """Align one picture to another of the same thing.

    The starts are compared at a coarse level; the best are refined through the pyramid with growing
    freedom (similarity first, then `model`), the best of them at the finest level.

    Args:
        fixed, moving: 1 C h w; sizes may differ, as coordinates are normalised.
        weight: of the pixels of `fixed`, 1 1 h w.
        model: the freedom of the finest level.
        starts: rough guesses, 3 3 each; None = the identity.
        guide: rough masks of the same thing in both pictures, 1 1 h w each, which pull the coarse
            levels and count in every choice.
        finest, coarsest: shorter side of the pyramid's levels, in px.
        keep: starts that are refined.
        rounds: of Gauss-Newton per level, at most.

    Returns:
        the map that fits best.
    """
    levels = pyramid(fixed, moving, weight, guide, finest, coarsest)
    starts = starts or [_EYE]
    share = _GUIDE_SHARE if guide is not None else 0.0
    first = levels[min(1, len(levels) - 1)]
    order = _scores(first, torch.stack(starts), share).argsort(descending=True)[:keep]
    rigid = _GENERATORS["shift_zoom" if model == "shift_zoom" else "similarity"]
    freer = _GENERATORS["affine"] if model in ("affine", "homography") else rigid
    tracks = [starts[int(i)] for i in order]
    ends = list(tracks)
    for depth, level in enumerate(levels[:-1]):
        free = freer if depth == len(levels) - 2 else rigid
        tracks = [_refine(level, m, free, rounds) for m in tracks]
    # The finest level costs as much as all others together: only the best track goes there.
    best = int(_scores(levels[max(0, len(levels) - 2)], torch.stack(tracks), share).argmax())
    freest = _GENERATORS[model]
    for free in [freer] if freest is freer else [freer, freest]:
        ends.append(_refine(levels[-1], tracks[best], free, rounds))
    quality = _scores(levels[-1], torch.stack(ends), share)
    chosen = ends[int(quality.argmax())]
    return Registration(chosen, float(_scores(levels[-1], chosen[None], 0.0)[0]))
