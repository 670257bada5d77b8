"""Colour of the surroundings as the yardstick: what changed outside the region is the model's cast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .registration import blur

_GAIN_LIMITS = (0.6, 1.6)
_FEWEST_PIXELS = 64
_TOLERANCE = 5e-3  # squared difference, summed over channels, that still counts as the same thing


@dataclass(frozen=True)
class ColorGain:
    """`result * gain + offset` per channel (3 each), found on the ring outside the region."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]

    def apply(self, image: Tensor, strength: float = 1.0) -> Tensor:
        gain = image.new_tensor(self.gain).reshape(1, -1, 1, 1)
        offset = image.new_tensor(self.offset).reshape(1, -1, 1, 1)
        return image + strength * (image * gain + offset - image)


def measure_gain(result: Tensor, draft: Tensor, ring: Tensor) -> ColorGain | None:
    """The per-channel line that maps `result` to `draft` over `ring` (1 1 h w), least squares.

    A flat surrounding fixes no gain: the fit is drawn towards gain 1. None if the ring is smaller
    than 64 pixels: there is nothing to measure on.
    """
    where = ring[0, 0] > 0.5
    if int(where.sum()) < _FEWEST_PIXELS:
        return None
    gains: list[float] = []
    offsets: list[float] = []
    for channel in range(3):
        x = result[:, channel][:, where].double().flatten()
        y = draft[:, channel][:, where].double().flatten()
        dx, dy = x - x.mean(), y - y.mean()
        prior = 1e-3  # variance below which the surroundings count as flat
        gain = float((dx * dy).mean() + prior) / float((dx * dx).mean() + prior)
        gain = min(max(gain, _GAIN_LIMITS[0]), _GAIN_LIMITS[1])
        gains.append(gain)
        offsets.append(float(y.mean() - gain * x.mean()))
    return ColorGain(tuple(gains), tuple(offsets))


def ring_error(a: Tensor, b: Tensor, ring: Tensor) -> float:
    """Mean absolute difference over the ring, in [0, 1]."""
    total = ring.sum() * a.shape[1] * len(a)
    return float(((a - b).abs() * ring).sum() / total.clamp_min(1)) if total > 0 else 0.0


def _by_moments(picture: Tensor, aim: Tensor, weight: Tensor) -> Tensor:
    """Per channel (rows of 3 N) offset and gain that give `picture` the mean and spread of `aim`,
    no gradient: 3 4. Unlike least squares it does not lose contrast where the two show other things.
    """
    total = weight.sum().clamp_min(1e-9)

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = (values * weight).sum(1) / total
        return mean, ((values - mean[:, None]).square() * weight).sum(1) / total

    (mean, spread), (aim_mean, aim_spread) = moments(picture), moments(aim)
    gain = ((aim_spread + 1e-4) / (spread + 1e-4)).sqrt().clamp(0.2, 5)
    nothing = torch.zeros_like(gain)
    return torch.stack([aim_mean - gain * mean, gain, nothing, nothing], 1)


def match_light(reference: Tensor, draft: Tensor, weight: Tensor, rounds: int = 2) -> Tensor:
    """The aligned reference under the draft's light, 1 3 H W.

    Per channel `draft ~ offset + (gain + gx x + gy y) * reference` over `weight` (1 1 H W), least
    squares, reweighted so that what is broken in the draft, or is not the same surface, loses its
    say (Geman-McClure). It begins where mean and spread agree and takes few rounds: more of them
    drift to less contrast where the two show different things. Both pictures are blurred first:
    light is smooth, and so is what a small error of the alignment leaves.
    """
    h, w = reference.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    sigma = max(0.5, 0.012 * min(h, w))
    soft, aim = blur(reference, sigma)[0], blur(draft, sigma)[0].flatten(1).double()

    def columns(picture: Tensor) -> Tensor:
        terms = [torch.ones_like(picture), picture, picture * x, picture * y]
        return torch.stack(terms, -1).flatten(1, 2).double()

    basis = columns(soft)
    base = weight[0, 0].flatten().double()
    # Without evidence: no offset, gain 1, no gradient.
    prior = torch.tensor([1e-3, 1e-3, 1e-2, 1e-2], dtype=torch.float64) * base.sum()
    usual = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    fit = _by_moments(soft.flatten(1).double(), aim, base)
    for _ in range(rounds):
        residual = (aim - (basis @ fit[..., None])[..., 0]).square().sum(0)
        inside = residual[base > 0.3]
        if len(inside) == 0:
            break
        robust = 1 / (1 + residual / (inside.median() + _TOLERANCE)) ** 2
        wt = (base * robust)[None, :, None]
        normal = basis.transpose(1, 2) @ (basis * wt) + torch.diag(prior)
        right = basis.transpose(1, 2) @ (aim[..., None] * wt) + (prior * usual)[:, None]
        fit = torch.linalg.solve(normal, right)[..., 0]
    matched = (columns(reference[0]) @ fit[..., None])[..., 0]
    return matched.reshape(1, 3, h, w).to(reference.dtype).clamp(0, 1)
