"""Patch NCC of two pictures under a homography between them, and a hill climb to its maximum.

Registration by least squares believes every pixel, but where the draft is broken most of them are
wrong. Normalised cross-correlation of small patches, raised to a power, leaves those patches that
correlate clearly to decide.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .homography import apply, from_points
from .warping import warp

_WINDOW = 7  # px, side of a patch
_STRIDE = 2  # px from one patch to the next
_FLOORS = (0.05, 0.02)  # variance of luminance and of edge orientation that counts as none
_GROUPS = (slice(0, 1), slice(1, 3))  # channels: luminance, and the orientation of edges
_POWER = 3  # of a patch's correlation: half of it counts an eighth
_BATCH = 24  # maps evaluated at once, which bounds the memory
_STEPS = (2.0, 1.0, 0.5, 0.25)  # px that the corners move at once, one after the other
_ROUNDS = 6  # at most, per step; a step that no longer helps ends earlier
_LARGEST_STEP = 1 / 8  # of the region's shorter side: more would fold the box
_FARTHEST = 25.0  # px², squared distance from the prior beyond which the cost grows no more

# How the corners of a box (clockwise from the top left) move in each degree of freedom.
_SIGNS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
_X, _Y, _XY = _SIGNS[:, 0], _SIGNS[:, 1], _SIGNS[:, 0] * _SIGNS[:, 1]
_O, _I = np.zeros(4), np.ones(4)
_FREEDOMS = [
    *(np.c_[_I, _O], np.c_[_O, _I]),  # shifts
    *(np.c_[_X, _Y], np.c_[-_Y, _X]),  # zoom and turn
    *(np.c_[_X, -_Y], np.c_[_Y, _X]),  # stretch and shear
    *(np.c_[_XY, _O], np.c_[_O, _XY]),  # perspective
]


@cache
def _averaging(n: int) -> Tensor:
    """Takes the means of the patches along an axis of `n` pixels, `ceil(n / stride) n`."""
    centers = torch.arange(0, n, _STRIDE)[:, None]
    near = ((torch.arange(n) - centers).abs() <= _WINDOW // 2).float()
    return near / near.sum(1, keepdim=True)


def _local_mean(x: Tensor) -> Tensor:
    """Means of the patches: two products with a band are faster than pooling."""
    return _averaging(x.shape[-2]) @ x @ _averaging(x.shape[-1]).T


class PatchNcc:
    """Patch NCC of two pictures under many maps.

    Called with maps from `fixed` to `moving` (N 3 3, normalised coordinates) it gives N numbers,
    each the weighted mean over luminance and edge orientation of `max(0, ncc)**3`. What a map reads
    from outside of `moving` counts 0.

    Args:
        fixed, moving: features of the pictures, luminance and edge orientation as (cos 2a, sin 2a),
            1 3 h w; sizes may differ.
        weight: of the pixels of `fixed`, 1 1 h w.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, weight: Tensor) -> None:
        self.fixed, self.moving = fixed, moving
        self.weight = _local_mean(weight)
        self.mean = _local_mean(self.fixed)
        self.spread = _local_mean(self.fixed * self.fixed) - self.mean**2

    def __call__(self, maps: Tensor) -> Tensor:
        return torch.cat([self._batch(part) for part in maps.split(_BATCH)])

    def _batch(self, maps: Tensor) -> Tensor:
        h, w = self.fixed.shape[-2:]
        seen, inside = warp(self.moving.expand(len(maps), -1, -1, -1), maps, h, w, "bilinear")
        mean = _local_mean(seen)
        spread = _local_mean(seen * seen) - mean**2
        shared = _local_mean(self.fixed * seen) - self.mean * mean
        weight = self.weight * _local_mean(inside)
        total = torch.zeros(len(maps))
        for group, floor in zip(_GROUPS, _FLOORS, strict=True):
            a, b, both = (x[:, group].sum(1, keepdim=True) for x in (self.spread, spread, shared))
            ncc = both / ((a.clamp_min(0) + floor) * (b.clamp_min(0) + floor)).sqrt()
            total += (ncc.clamp_min(0) ** _POWER * weight).flatten(1).sum(1)
        return total / self.weight.sum().clamp_min(1e-6)


def hill_climb(
    ncc: PatchNcc,
    start: np.ndarray,
    box: np.ndarray,
    size: tuple[int, int],
    *,
    prior: np.ndarray | None = None,
    prior_weight: float = 0.002,
) -> tuple[np.ndarray, float]:
    """The map near `start` of the highest patch NCC, by moving a box's corners in steps down to 1/4 px.

    Args:
        ncc: what is maximised.
        start: 3x3, fixed -> moving.
        box: corners 4 2 of the region in the fixed picture, normalised.
        size: (height, width) of the fixed picture in px.
        prior: a map known to be right up to its zoom, or None.
        prior_weight: what a mean squared corner distance of 1 px from `prior` costs.

    Returns:
        the map and its patch NCC less the cost of its deviation from the prior.
    """
    pixel = np.array([2 / size[1], 2 / size[0]])

    def value(maps: list[np.ndarray]) -> np.ndarray:
        found = ncc(torch.from_numpy(np.stack([m / m[2, 2] for m in maps]))).numpy()
        if prior is not None:
            off = np.array([_deviation(prior, m, box, pixel) for m in maps])
            found = found - prior_weight * off
        return found

    def moved(displacement: np.ndarray) -> np.ndarray:
        return from_points(box, box + displacement * pixel)

    best, most = start, float(value([start])[0])
    least_side = float((np.ptp(box, axis=0) / pixel).min())
    for step in _STEPS:
        if step > _LARGEST_STEP * least_side:
            continue
        moves = [moved(sign * step * way) for way in _FREEDOMS for sign in (-1, 1)]
        for _ in range(_ROUNDS):
            single = value([best @ m for m in moves]).reshape(-1, 2)
            helpful = single.max(1) > most
            signs = np.where(single[:, 1] > single[:, 0], step, -step) * helpful
            joint = sum(
                (s * way for s, way in zip(signs, _FREEDOMS, strict=True)), np.zeros((4, 2))
            )
            tries = [
                best @ moves[int(single.argmax())],
                best @ moved(joint),
                best @ moved(joint / 2),
            ]
            found = value(tries)
            if found.max() <= most:
                break
            best, most = tries[int(found.argmax())], float(found.max())
    return best, most


def _deviation(prior: np.ndarray, matrix: np.ndarray, box: np.ndarray, pixel: np.ndarray) -> float:
    """Mean squared corner distance (px², at most 25) of two maps, a zoom between them taken out."""
    off = (apply(np.linalg.inv(prior) @ matrix, box) - box) / pixel
    arm = (box - box.mean(0)) / pixel
    off = off - (off * arm).sum() / (arm * arm).sum() * arm
    return min(_FARTHEST, float(np.square(off).sum(1).mean()))
