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

MotionModel = Literal["shift_zoom", "similarity", "affine", "homography"]

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
    """`matrix` fixed -> moving (normalised); `score` weighted correlation in [-1, 1] after it."""

    matrix: Tensor
    score: float


def grid(height: int, width: int) -> Tensor:
    """Pixel centres in normalised coordinates, homogeneous, `(H W) 3` float64."""
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2 - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy, torch.ones_like(xx)], -1).reshape(-1, 3)


def warp(
    image: Tensor, matrix: Tensor, height: int, width: int, mode: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """Resample `image` B C h w into a picture of `height` x `width` (bicubic, edges repeated).

    `matrix` is one 3x3 for all or `B 3 3`.

    Returns:
        the picture B C H W and a mask B 1 H W, 1 where it was read from inside `image`.
    """
    matrix = matrix.expand(len(image), 3, 3)
    p = grid(height, width) @ matrix.transpose(1, 2)
    xy = (p[..., :2] / p[..., 2:].clamp_min(1e-6)).reshape(len(image), height, width, 2)
    xy = xy.to(image)
    out = F.grid_sample(image, xy, mode, "border", align_corners=False)
    inside = ((xy.abs() <= 1).all(-1) & (p[..., 2].reshape(xy.shape[:3]) > 0)).to(image)
    return out, inside[:, None]


def luminance(image: Tensor) -> Tensor:
    """B 3 H W (or B 1 H W) to B 1 H W."""
    if image.shape[1] == 1:
        return image
    weights = image.new_tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)
    return (image[:, :3] * weights).sum(1, keepdim=True)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with repeated edges; `sigma` in pixels."""
    if sigma < 0.15:
        return x
    radius = max(1, math.ceil(3 * sigma))
    k = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    k = torch.exp(-0.5 * (k / sigma) ** 2)
    k = (k / k.sum()).reshape(1, 1, 1, -1)
    c = x.shape[1]
    x = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = F.conv2d(x, k.expand(c, 1, 1, -1), groups=c)
    x = F.pad(x, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(x, k.transpose(2, 3).expand(c, 1, -1, 1), groups=c)


def _normalised(image: Tensor, sigma: float) -> Tensor:
    """Luminance with local mean removed and local contrast evened out: light plays no part."""
    y = luminance(image)
    centred = y - blur(y, sigma)
    contrast = blur(centred * centred, sigma).clamp_min(0).sqrt()
    return centred / (contrast + 0.02)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences by x and y in normalised units."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    gx = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) * (x.shape[-1] / 4)
    gy = (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) * (x.shape[-2] / 4)
    return gx, gy


PICTURE_CHANNELS = 3  # channels of `_features`
_SHARES = (0.6, 1.0, 1.0)


def _features(image: Tensor, sigma: float) -> Tensor:
    """What is compared, B 3 H W: luminance with the light evened out, and the orientation of edges
    as `(cos 2a, sin 2a)` scaled by their strength. Doubling the angle forgets which side of an edge
    is the brighter one: a sign on a dark wall and the same sign on a bright one agree.
    """
    even = _normalised(image, sigma)
    gx, gy = _gradient(blur(even, 0.7))
    gx, gy = gx / image.shape[-1], gy / image.shape[-2]
    energy = gx * gx + gy * gy
    floor = 0.25 * energy.mean((1, 2, 3), keepdim=True) + 1e-6
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
    """One pyramid level: channels of the fixed and the moving picture and each channel's weight
    map, all at the level's size. The first `PICTURE_CHANNELS` channels are the picture's (see `_features`),
    the last one, if there is one more, is the guide.
    """

    fixed: Tensor
    moving: Tensor
    weights: Tensor


def _cost(level: Level, matrix: Tensor) -> tuple[list[Tensor], Tensor] | None:
    """Residuals and weights of every channel, robust, with the moving picture's gradients."""
    h, w = level.fixed.shape[-2:]
    gx, gy = _gradient(level.moving)
    warped, inside = warp(torch.cat([level.moving, gx, gy], 1), matrix, h, w)
    seen = inside.flatten().double()
    n = level.fixed.shape[1]
    stack = warped[0].flatten(1).double()
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    for c in range(n):
        wt = level.weights[0, c].flatten().double() * seen
        if wt.sum() < 0.2 * level.weights[0, c].sum():
            return None
        value, dx, dy = stack[c], stack[n + c], stack[2 * n + c]
        target = level.fixed[0, c].flatten().double()
        gain = torch.ones((), dtype=torch.float64)
        if c < PICTURE_CHANNELS:  # light: the best gain and bias are taken out, a mask has neither
            value = value - (wt * value).sum() / wt.sum()
            target = target - (wt * target).sum() / wt.sum()
            gain = (wt * value * target).sum() / ((wt * value * value).sum() + 1e-9)
            gain = gain.clamp(0.2, 5.0)
        residual = target - gain * value
        if c < PICTURE_CHANNELS:  # one unit for all channels: the fixed picture's own spread
            spread = ((wt * target * target).sum() / wt.sum()).sqrt() + 1e-3
            residual, gain = residual / spread, gain / spread
        scale = 1.5 * ((wt * residual * residual).sum() / wt.sum()).sqrt() + 1e-6
        weights.append(wt / (1 + (residual / scale) ** 2) ** 2 if c < PICTURE_CHANNELS else wt)
        rows.append(torch.stack([residual, gain * dx, gain * dy]))
    return rows, torch.stack(weights)


def _refine(level: Level, start: Tensor, generators: list[Tensor], rounds: int) -> Tensor:
    """Damped Gauss-Newton at one level on `fixed - gain * moving(matrix) - bias`."""
    h, w = level.fixed.shape[-2:]
    points = grid(h, w)
    moves = [points @ g.T for g in generators]
    matrix = kept = start
    damping, best = 1e-3, math.inf
    for _ in range(rounds):
        found = _cost(level, matrix)
        if found is None:
            break
        rows, weights = found
        cost = sum(
            float((wt * r[0] * r[0]).sum() / wt.sum().clamp_min(1e-9))
            for r, wt in zip(rows, weights, strict=True)
        )
        if cost > best * 1.02:
            damping *= 8
            matrix = kept
            if damping > 10:
                break
        else:
            best, kept, damping = min(best, cost), matrix, max(damping / 3, 1e-4)
        p = points @ matrix.T
        z = p[:, 2].clamp_min(1e-6)
        u, v = p[:, 0] / z, p[:, 1] / z
        flow = [((d[:, 0] - u * d[:, 2]) / z, (d[:, 1] - v * d[:, 2]) / z) for d in moves]
        size = len(generators)
        normal, right = (
            torch.zeros(size, size, dtype=torch.float64),
            torch.zeros(size, dtype=torch.float64),
        )
        for (residual, dx, dy), wt in zip(rows, weights, strict=True):
            jacobian = torch.stack([dx * du + dy * dv for du, dv in flow], 1)
            normal += jacobian.T @ (jacobian * wt[:, None])
            right += jacobian.T @ (wt * residual)
        ridge = torch.diag(normal.diagonal() * damping + 1e-9 * normal.diagonal().max() + 1e-12)
        delta = torch.linalg.solve(normal + ridge, right)
        matrix = matrix + sum(
            (float(a) * g for a, g in zip(delta, generators, strict=True)), torch.zeros_like(_EYE)
        )
        if float(delta.abs().max()) < 1e-4:  # about a hundredth of a pixel at 192 px
            break
    return kept


def pyramid(
    fixed: Tensor, moving: Tensor, weight: Tensor, guide: tuple[Tensor, Tensor] | None,
    finest: int, coarsest: int,
) -> list[Level]:  # fmt: skip
    """What is compared at every size, coarse to fine: the shorter side from about `coarsest` to
    `finest` px. Arguments as for `register`.
    """
    sizes = _sizes(fixed.shape[-2], fixed.shape[-1], finest, coarsest)
    aspect = moving.shape[-1] / moving.shape[-2]
    levels = []
    for depth, (h, w) in enumerate(sizes):
        mh = max(4, round(math.sqrt(h * w / aspect)))
        size = (mh, max(4, round(mh * aspect)))
        sigma = max(1.5, 0.12 * min(h, w))
        f = _features(_level(fixed.float(), (h, w)), sigma)
        m = _features(_level(moving.float(), size), sigma)
        share = torch.tensor(_SHARES).reshape(1, PICTURE_CHANNELS, 1, 1)
        weights = _level(weight.float(), (h, w)) * share
        if guide is not None:
            # The guide leads the coarse levels and fades out: a mask is rough, a picture is not.
            guiding = 1.0 * 0.25**depth
            f = torch.cat([f, blur(_level(guide[0].float(), (h, w)), 1.5)], 1)
            m = torch.cat([m, blur(_level(guide[1].float(), size), 1.5)], 1)
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
    """Align `moving` to `fixed`, both `1 C H W`, where `weight` `1 1 H W` (of fixed) is not 0.

    `starts` (rough guesses, else the identity) are compared at a coarse level; the `keep` best are
    refined through the pyramid with growing freedom (similarity first, then `model`), the best of
    them at the finest level, and the one that fits best is returned.
    `guide` holds rough masks of the same thing in both pictures, 1 1 H W each: they pull the
    coarse levels and count in every choice. Coordinates are normalised: sizes may differ.
    """
    levels = pyramid(fixed, moving, weight, guide, finest, coarsest)
    starts = starts or [_EYE]
    share = 0.5 if guide is not None else 0.0
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
