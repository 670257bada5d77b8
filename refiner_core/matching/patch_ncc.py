"""How well two pictures agree under a map between them, patch by patch, and climbing to the best.

Registration by least squares asks every pixel; where the draft is broken most of them lie. Here
each small neighbourhood is asked on its own (normalised cross-correlation), and only those that
agree clearly count.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .homography import apply, from_points
from .registration import PICTURE_CHANNELS, pyramid, warp

_WINDOW = 7  # px, side of a neighbourhood
_STRIDE = 2  # px from one neighbourhood to the next
_FLOORS = (0.05, 0.02)  # variance of luminance and of edge orientation that counts as none
_GROUPS = (slice(0, 1), slice(1, PICTURE_CHANNELS))
_CLARITY = 3  # power of a neighbourhood's correlation: half agreement counts an eighth
_AT_ONCE = 24  # maps evaluated in one batch
_STEPS = (2.0, 1.0, 0.5, 0.25)  # px
_ROUNDS = 6

# How the corners of a box (clockwise from the top left) move in each way a homography can move them.
_SIGNS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
_X, _Y, _XY = _SIGNS[:, 0], _SIGNS[:, 1], _SIGNS[:, 0] * _SIGNS[:, 1]
_O, _I = np.zeros(4), np.ones(4)
_WAYS = [
    np.c_[_I, _O], np.c_[_O, _I], np.c_[_X, _Y], np.c_[-_Y, _X], np.c_[_X, -_Y], np.c_[_Y, _X],
    np.c_[_XY, _O], np.c_[_O, _XY],
]  # fmt: skip


@cache
def _averaging(n: int) -> Tensor:
    """Takes the means of the neighbourhoods along an axis of `n` pixels, `ceil(n / stride) n`."""
    centers = torch.arange(0, n, _STRIDE)[:, None]
    near = ((torch.arange(n) - centers).abs() <= _WINDOW // 2).float()
    return near / near.sum(1, keepdim=True)


def _local_mean(x: Tensor) -> Tensor:
    """Means of the neighbourhoods: two products with a band are faster than pooling."""
    return _averaging(x.shape[-2]) @ x @ _averaging(x.shape[-1]).T


class Agreement:
    """Agreement of `moving` with `fixed` (1 3 h w) where `weight` (1 1 H W of fixed) is not 0.

    Called with maps fixed -> moving (N 3 3, normalised coordinates) it gives N numbers, each the
    weighted mean over luminance and edge orientation of `max(0, ncc)**3`; what a map reads from
    outside of `moving` counts 0.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, weight: Tensor, finest: int = 192) -> None:
        level = pyramid(fixed, moving, weight, None, finest, finest)[-1]
        self.fixed, self.moving = level.fixed, level.moving
        self.weight = _local_mean(level.weights[:, 1:2])
        self.mean = _local_mean(self.fixed)
        self.spread = _local_mean(self.fixed * self.fixed) - self.mean**2

    def __call__(self, maps: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in maps.split(_AT_ONCE)])

    def _some(self, maps: Tensor) -> Tensor:
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
            total += (ncc.clamp_min(0) ** _CLARITY * weight).flatten(1).sum(1)
        return total / self.weight.sum().clamp_min(1e-6)


def climb(
    agreement: Agreement,
    start: np.ndarray,
    box: np.ndarray,
    size: tuple[int, int],
    *,
    trust: np.ndarray | None = None,
    tether: float = 0.002,
) -> tuple[np.ndarray, float]:
    """The map near `start` that agrees best, by moving a box's corners in steps down to 1/4 px.

    Args:
        agreement: what is climbed.
        start: 3x3, fixed -> moving.
        box: corners 4 2 of the region in the fixed picture, normalised.
        size: (height, width) of the fixed picture in px.
        trust: a map known to be right up to its zoom, or None.
        tether: what a mean squared corner distance of 1 px from `trust` costs.

    Returns:
        the map and its agreement, the tether's cost taken off.
    """
    pixel = np.array([2 / size[1], 2 / size[0]])

    def value(maps: list[np.ndarray]) -> np.ndarray:
        found = agreement(torch.from_numpy(np.stack([m / m[2, 2] for m in maps]))).numpy()
        if trust is not None:
            found = found - tether * np.array([_strain(trust, m, box, pixel) for m in maps])
        return found

    def moved(displacement: np.ndarray) -> np.ndarray:
        return from_points(box, box + displacement * pixel)

    best, most = start, float(value([start])[0])
    least_side = float((np.ptp(box, axis=0) / pixel).min())
    for step in _STEPS:
        if step > least_side / 8:  # would fold the box
            continue
        moves = [moved(sign * step * way) for way in _WAYS for sign in (-1, 1)]
        for _ in range(_ROUNDS):
            single = value([best @ m for m in moves]).reshape(-1, 2)
            helpful = single.max(1) > most
            signs = np.where(single[:, 1] > single[:, 0], step, -step) * helpful
            joint = sum((s * way for s, way in zip(signs, _WAYS, strict=True)), np.zeros((4, 2)))
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


def _strain(trust: np.ndarray, matrix: np.ndarray, box: np.ndarray, pixel: np.ndarray) -> float:
    """Mean squared corner distance (px^2, at most 25) of two maps, a zoom between them taken out."""
    off = (apply(np.linalg.inv(trust) @ matrix, box) - box) / pixel
    arm = (box - box.mean(0)) / pixel
    off = off - (off * arm).sum() / (arm * arm).sum() * arm
    return min(25.0, float(np.square(off).sum(1).mean()))
