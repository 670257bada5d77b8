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
from .warping import LEAST_DEPTH, grid, sample, warp

MotionModel = Literal["shift_zoom", "similarity", "affine", "homography"]

_LEAST_CONTRAST = 0.02  # of full scale, below which a neighbourhood counts as flat
_EDGE_SIGMA = 0.7  # px, blur before edges are taken: noise has no orientation
_EDGE_FLOOR = 0.25  # times the mean edge energy: fainter edges count little
_LIGHT_SIGMA = 0.12  # of the shorter side: wider changes of luminance are light
_LEAST_LIGHT_SIGMA = 1.5  # px
_GUIDE_SIGMA = 1.5  # px: a blurred mask pulls from farther away
_GUIDE_FADING = 0.25  # of the guide's weight from one level to the next finer one
_TOGETHER = 6  # matrices that are scored at once: their pictures stay in the cache
_GUIDE_SHARE = 0.5  # of the guides' overlap in the choice between maps
# Gauss-Newton.
_LEAST_SEEN = 0.2  # of the weight that must fall inside the moving picture
_GAINS = (0.2, 5.0)  # of the moving picture's contrast, beyond which it is another thing
_KEPT_STARTS = 3  # that are refined
_ROUNDS = 12  # of Gauss-Newton per level, at most
_ROBUST = 1.5  # times the residuals' deviation: larger ones lose their say
_DAMPING = 1e-3  # Levenberg-Marquardt's, at first, in units of the normal matrix's diagonal
_LEAST_DAMPING = 1e-4
_MOST_DAMPING = 10  # at which the steps are too short to matter
_DAMPING_UP, _DAMPING_DOWN = 8, 3  # factors after a step that did harm, or good
_WORSE = 1.02  # times the lowest cost, above which a step did harm
_CONVERGED = 1e-4  # change of a parameter: about a hundredth of a pixel at 192 px

_EYE = torch.eye(3, dtype=torch.float64)
_ONE = torch.ones(())
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


def _matrix_entries(generators: list[Tensor]) -> Tensor:
    """The generators as rows of their nine entries, K 9."""
    return torch.stack(generators).flatten(1)


# Which of the sums over pixels belongs to two entries of a matrix: of the products of the directions
# in which its rows move a point (`_PAIRS`), and of the point's coordinates (1, x, y, x², xy, y²).
_PAIRS = torch.tensor([[0, 1, 3], [1, 2, 4], [3, 4, 5]])
_MONOMIALS = torch.tensor([[3, 4, 1], [4, 5, 2], [1, 2, 0]])


@dataclass(frozen=True)
class _Places:
    """Where a matrix reads the moving picture, for every pixel of the fixed one, N float64 each."""

    u: Tensor
    v: Tensor
    depth: Tensor
    """Over 0."""
    in_front: Tensor
    """Whether the point is in front of the plane, N bool."""

    @staticmethod
    def of(matrix: Tensor, points: Tensor) -> _Places:
        """For homogeneous points 3 N."""
        x, y, z = matrix @ points
        depth = z.clamp_min(LEAST_DEPTH)
        return _Places(x / depth, y / depth, depth, z > 0)


@dataclass(frozen=True)
class _Compared:
    """The two pictures of a level under a matrix: what a step of Gauss-Newton is made of."""

    cost: float
    """Sum over the channels of their robust mean squared residuals."""
    curvature: Tensor
    """Weighted products of the gradients (x x, x y, y y), summed over the channels, 3 N float64."""
    pull: Tensor
    """Weighted products of the gradients along x and y with the residuals, 2 N float64."""


class _Comparison:
    """Compares the pictures of a level under many matrices, all channels at once.

    The pictures' channels are compared up to light: the best gain and bias are taken out, and the
    unit is the fixed picture's own spread. The guide's channel has neither.
    """

    def __init__(self, level: Level) -> None:
        counted = level.weights[0].flatten(1).any(0).nonzero()[:, 0]
        self.points = grid(*level.fixed.shape[-2:])[counted].T.contiguous()
        x, y, one = self.points
        self.monomials = torch.stack([one, x, y, x * x, x * y, y * y]).T
        self.moving = torch.cat([level.moving, *_gradient(level.moving)], 1)
        self.target = level.fixed[0].flatten(1)[:, counted]
        self.weights = level.weights[0].flatten(1)[:, counted]
        weighted = self.weights * self.target
        self.moments = torch.cat([self.weights, weighted, weighted * self.target])
        self.least = _LEAST_SEEN * self.weights.sum(1)
        self.lit = torch.arange(len(self.target)) < PICTURE_CHANNELS

    def at(self, places: _Places) -> _Compared | None:
        """Under the matrix of these places, or None if too little of the moving picture is seen."""
        xy = torch.stack([places.u, places.v])[None, :, None]
        warped, inside = sample(self.moving, xy, places.in_front[None, None], "bicubic")
        seen, channels = inside.flatten(), len(self.target)
        moments = (self.moments @ seen).reshape(3, channels)
        if bool((moments[0] < self.least).any()):
            return None
        value, dx, dy = warped[0].flatten(1).split(channels)
        weights = self.weights * seen
        residual, gain = self._residuals(weights, moments, value)
        squares = residual * residual
        scale = _ROBUST * ((weights * squares).sum(1) / moments[0]).sqrt() + 1e-6
        # The pictures' large residuals lose their say, the guide's do not.
        doubt = torch.addcmul(_ONE, squares, (self.lit / scale.square())[:, None])
        weights.div_(doubt.square_())
        cost = (weights * squares).sum(1) / weights.sum(1).clamp_min(1e-9)
        pull = weights.mul_(gain[:, None])
        along_x, along_y = pull * dx, pull * dy
        pulls = torch.stack([(along_x * residual).sum(0), (along_y * residual).sum(0)])
        curvature = torch.stack(
            [gain @ (a * b) for a, b in ((along_x, dx), (along_x, dy), (along_y, dy))]
        )
        return _Compared(float(cost.sum()), curvature.double(), pulls.double())

    def _residuals(self, weights: Tensor, moments: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals C N, and the gain that the moving picture's gradients have in them, C.

        Args:
            weights, value: C N.
            moments: weighted sums of 1, of the target and of its square, 3 C.
        """
        total = moments[0]
        weighted = weights * value
        mean = self.lit * (weighted.sum(1) / total)
        target_mean, target_square = moments[1:] / total
        target_mean = self.lit * target_mean
        power = (weighted * value).sum(1) - total * mean * mean
        shared = (weighted * self.target).sum(1) - total * mean * target_mean
        gain = torch.where(self.lit, (shared / (power + 1e-9)).clamp(*_GAINS), 1.0)
        spread = (target_square - target_mean * target_mean).clamp_min(0).sqrt() + 1e-3
        unit = torch.where(self.lit, 1 / spread, 1.0)
        gain = gain * unit
        bias = gain * mean - unit * target_mean
        residual = torch.addcmul(bias[:, None], self.target, unit[:, None])
        return residual.addcmul_(value, gain[:, None], value=-1), gain

    def equations(
        self, compared: _Compared, places: _Places, entries: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normal matrix K K and right side K for the parameters whose generators are `entries`, K 9.

        A parameter moves a point along (u, v) by a combination of nine directions, one for each entry
        of the matrix, and these are products of a row's (1, 0), (0, 1) or (-u, -v) with a coordinate
        of the point: a few sums over the pixels hold the equations of every motion model.
        """
        u, v = places.u, places.v
        xx, xy, yy = compared.curvature
        along_u, along_v = xx * u + xy * v, xy * u + yy * v
        rows = torch.stack([xx, xy, yy, -along_u, -along_v, along_u * u + along_v * v])
        products = (rows / places.depth.square()) @ self.monomials
        full = products[_PAIRS[:, None, :, None], _MONOMIALS[None, :, None, :]].reshape(9, 9)
        x, y = compared.pull
        right = torch.stack([x, y, -(x * u + y * v)]).div_(places.depth) @ self.points.T
        return entries @ full @ entries.T, entries @ right.flatten()


def _refine(comparison: _Comparison, start: Tensor, generators: list[Tensor]) -> Tensor:
    """Gauss-Newton with Levenberg and Marquardt's damping on `fixed - gain * moving(matrix) - bias`."""
    entries = _matrix_entries(generators)
    matrix = kept = start
    kept_places = places = _Places.of(start, comparison.points)
    damping, best = _DAMPING, math.inf
    for _ in range(_ROUNDS):
        compared = comparison.at(places)
        if compared is None:
            break
        if compared.cost > best * _WORSE:
            damping *= _DAMPING_UP
            matrix, places = kept, kept_places
            if damping > _MOST_DAMPING:
                break
        else:
            best, kept, kept_places = min(best, compared.cost), matrix, places
            damping = max(damping / _DAMPING_DOWN, _LEAST_DAMPING)
        normal, right = comparison.equations(compared, places, entries)
        ridge = torch.diag(normal.diagonal() * damping + 1e-9 * normal.diagonal().max() + 1e-12)
        delta = torch.linalg.solve(normal + ridge, right)
        if float(delta.abs().max()) < _CONVERGED:
            break
        matrix = matrix + (delta @ entries).reshape(3, 3)
        places = _Places.of(matrix, comparison.points)
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
    parts = matrices.split(_TOGETHER)
    return torch.cat([_scores_together(level, part, guide_share) for part in parts])


def _scores_together(level: Level, matrices: Tensor, guide_share: float) -> Tensor:
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

    Returns:
        the map that fits best.
    """
    levels = pyramid(fixed, moving, weight, guide, finest, coarsest)
    starts = starts or [_EYE]
    share = _GUIDE_SHARE if guide is not None else 0.0
    first = levels[min(1, len(levels) - 1)]
    order = _scores(first, torch.stack(starts), share).argsort(descending=True)[:_KEPT_STARTS]
    rigid = _GENERATORS["shift_zoom" if model == "shift_zoom" else "similarity"]
    freer = _GENERATORS["affine"] if model in ("affine", "homography") else rigid
    tracks = [starts[int(i)] for i in order]
    ends = list(tracks)
    for depth, level in enumerate(levels[:-1]):
        free = freer if depth == len(levels) - 2 else rigid
        comparison = _Comparison(level)
        tracks = [_refine(comparison, m, free) for m in tracks]
    # The finest level costs as much as all others together: only the best track goes there.
    best = int(_scores(levels[max(0, len(levels) - 2)], torch.stack(tracks), share).argmax())
    freest, comparison = _GENERATORS[model], _Comparison(levels[-1])
    for free in [freer] if freest is freer else [freer, freest]:
        ends.append(_refine(comparison, tracks[best], free))
    quality = _scores(levels[-1], torch.stack(ends), share)
    chosen = ends[int(quality.argmax())]
    return Registration(chosen, float(_scores(levels[-1], chosen[None], 0.0)[0]))
