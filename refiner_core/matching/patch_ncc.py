"""Patch NCC of two pictures under a homography between them, and a hill climb to its maximum.

Registration by least squares believes every pixel, but where the draft is broken most of them are
wrong. Normalised cross-correlation of small patches, raised to a power, leaves those patches that
correlate clearly to decide.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..images.filters import local_means
from .homography import from_points
from .warping import warp

_WINDOW = 7  # px, side of a patch
_STRIDE = 2  # px from one patch to the next
# Variance of luminance and of edge orientation that counts as none.
_FLOOR = torch.tensor([0.05, 0.02]).reshape(1, 2, 1, 1)
_POWER = 3  # of a patch's correlation: half of it counts an eighth
_AT_ONCE = 40_000  # pixels that are compared at once: they stay in the cache
_STEPS = (2.0, 1.0, 0.5, 0.25)  # px that the corners move at once, one after the other
_ROUNDS = 6  # at most, per step; a step that no longer helps ends earlier
_LARGEST_STEP = 1 / 8  # of the region's shorter side: more would fold the box
_PRIOR_WEIGHT = 0.002  # what a mean squared corner distance of 1 px from the prior costs
_FARTHEST = 25.0  # px², squared distance from the prior beyond which the cost grows no more

# How the corners of a box (clockwise from the top left) move in each degree of freedom.
_SIGNS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
_X, _Y, _XY = _SIGNS[:, 0], _SIGNS[:, 1], _SIGNS[:, 0] * _SIGNS[:, 1]
_O, _I = np.zeros(4), np.ones(4)
_FREEDOMS = np.stack(
    [
        *(np.c_[_I, _O], np.c_[_O, _I]),  # shifts
        *(np.c_[_X, _Y], np.c_[-_Y, _X]),  # zoom and turn
        *(np.c_[_X, -_Y], np.c_[_Y, _X]),  # stretch and shear
        *(np.c_[_XY, _O], np.c_[_O, _XY]),  # perspective
    ]
)
_DIRECTIONS = np.stack([-_FREEDOMS, _FREEDOMS], 1).reshape(-1, 4, 2)  # each back and forth


def _local_mean(x: Tensor) -> Tensor:
    return local_means(x, _WINDOW, _STRIDE)


def _grouped(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Products of features B 3 H W, B 2 H W: of luminance, and summed over edge orientation."""
    out = torch.mul(a[:, :2], b[:, :2], out=out)
    out[:, 1:].addcmul_(a[:, 2:], b[:, 2:])
    return out


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
        squares = _local_mean(_grouped(self.fixed, self.fixed))
        self.spread = squares - _grouped(self.mean, self.mean)

    def __call__(self, maps: Tensor) -> Tensor:
        together = max(1, _AT_ONCE // self.fixed[0, 0].numel())
        return torch.cat([self._batch(part) for part in maps.float().split(together)])

    def _batch(self, maps: Tensor) -> Tensor:
        h, w = self.fixed.shape[-2:]
        seen, inside = warp(self.moving.expand(len(maps), -1, -1, -1), maps, h, w, "bilinear")
        mean = _local_mean(seen)
        products = seen.new_empty(len(maps), 5, h, w)
        _grouped(seen, seen, products[:, :2])
        _grouped(self.fixed, seen, products[:, 2:4])
        products[:, 4:] = inside
        square, shared, weight = _local_mean(products).split((2, 2, 1), 1)
        spread = (square - _grouped(mean, mean)).clamp_min_(0).add_(_FLOOR)
        own = self.spread.clamp_min(0).add_(_FLOOR)
        ncc = (shared - _grouped(self.mean, mean)).div_(spread.mul_(own).sqrt_()).clamp_min_(0)
        total = ncc.pow_(_POWER).sum(1, keepdim=True).mul_(weight).mul_(self.weight)
        return total.flatten(1).sum(1) / self.weight.sum().clamp_min(1e-6)


def hill_climb(
    ncc: PatchNcc,
    start: np.ndarray,
    box: np.ndarray,
    size: tuple[int, int],
    *,
    prior: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """The map near `start` of the highest patch NCC, by moving a box's corners in steps down to 1/4 px.

    Args:
        ncc: what is maximised.
        start: 3x3, fixed -> moving.
        box: corners 4 2 of the region in the fixed picture, normalised.
        size: (height, width) of the fixed picture in px.
        prior: a map known to be right up to its zoom, or None.

    Returns:
        the map and its patch NCC less the cost of its deviation from the prior.
    """
    pixel = np.array([2 / size[1], 2 / size[0]])

    def value(maps: np.ndarray) -> np.ndarray:
        found = ncc(torch.from_numpy(maps / maps[:, 2:, 2:])).numpy()
        return (
            found if prior is None else found - _PRIOR_WEIGHT * _deviation(prior, maps, box, pixel)
        )

    def moved(displacement: np.ndarray) -> np.ndarray:
        return from_points(box, box + displacement * pixel)

    best, most = start, float(value(start[None])[0])
    least_side = float((np.ptp(box, axis=0) / pixel).min())
    for step in _STEPS:
        if step > _LARGEST_STEP * least_side:
            continue
        moves = moved(step * _DIRECTIONS)
        for _ in range(_ROUNDS):
            single = value(best @ moves).reshape(-1, 2)
            helpful = single.max(1) > most
            if not helpful.any():
                break
            signs = np.where(single[:, 1] > single[:, 0], step, -step) * helpful
            joint = np.tensordot(signs, _FREEDOMS, 1)
            tries = best @ np.stack(
                [moves[int(single.argmax())], *moved(np.stack([joint, joint / 2]))]
            )
            found = np.append(single.max(), value(tries[1:]))
            best, most = tries[int(found.argmax())], float(found.max())
    return best, most


def _deviation(
    prior: np.ndarray, maps: np.ndarray, box: np.ndarray, pixel: np.ndarray
) -> np.ndarray:
    """Mean squared corner distance (px², at most 25) of maps N 3 3 from the prior, a zoom between
    them taken out, N.
    """
    corners = np.c_[box, np.ones(len(box))] @ (np.linalg.inv(prior) @ maps).swapaxes(1, 2)
    off = (corners[..., :2] / corners[..., 2:] - box) / pixel
    arm = (box - box.mean(0)) / pixel
    zoom = (off * arm).sum((1, 2), keepdims=True) / (arm * arm).sum()
    return np.minimum(_FARTHEST, np.square(off - zoom * arm).sum(2).mean(1))
