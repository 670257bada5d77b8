"""Colour of the surroundings as the yardstick: what changed outside the region is the model's cast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur
from ..images.masks import bounds, dilate

_GAIN_LIMITS = (0.6, 1.6)  # beyond which the surroundings do not show the same thing
_FEWEST_PIXELS = 64  # of a ring on which a gain can be measured
_GAIN_PRIOR = 1e-3  # variance below which the surroundings count as flat
_LIGHT_SIGMA = 0.012  # of the shorter side: what a small error of the alignment leaves
_TOLERANCE = 1e-2  # squared difference, summed over channels, that still counts as the same thing
_WINDOW = 9  # px, side of the neighbourhoods that are compared
_FLAT = 5e-5  # variance of luminance that counts as none
_LEAST_TRUST = 0.1  # weight of a pixel whose neighbourhoods do not correlate
_FINEST = 192  # px of the shorter side at which light is measured
_ROUNDS = 4  # of reweighting
_RIM = 0.1  # of the region's shorter side: how far around it light is read


@dataclass(frozen=True)
class ColorGain:
    """A line per channel that takes a colour cast out: `result * gain + offset`."""

    gain: tuple[float, ...]
    """Per channel, 3."""
    offset: tuple[float, ...]
    """Per channel, 3, in [-1, 1]."""

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
        gain = float((dx * dy).mean() + _GAIN_PRIOR) / float((dx * dx).mean() + _GAIN_PRIOR)
        gain = min(max(gain, _GAIN_LIMITS[0]), _GAIN_LIMITS[1])
        gains.append(gain)
        offsets.append(float(y.mean() - gain * x.mean()))
    return ColorGain(tuple(gains), tuple(offsets))


def ring_error(a: Tensor, b: Tensor, ring: Tensor) -> float:
    """Mean absolute difference over the ring, in [0, 1]."""
    total = ring.sum() * a.shape[1] * len(a)
    return float(((a - b).abs() * ring).sum() / total.clamp_min(1)) if total > 0 else 0.0


def _likeness(a: Tensor, b: Tensor) -> Tensor:
    """Local correlation of two pictures' luminance, H W in [0, 1]: which pixels show the same thing."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)

    a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    around_a, around_b = mean(a), mean(b)
    spread_a = (mean(a * a) - around_a**2).clamp_min(0) + _FLAT
    spread_b = (mean(b * b) - around_b**2).clamp_min(0) + _FLAT
    shared = mean(a * b) - around_a * around_b
    return (shared / (spread_a * spread_b).sqrt()).clamp(0, 1)[0, 0]


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    order = values.argsort()
    below = weights[order].cumsum(0)
    return values[order][int((below < 0.5 * below[-1]).sum())]


def _columns(picture: Tensor) -> Tensor:
    """Terms of the light's fit for `picture` 3 h w: 3 (h w) 4, float64."""
    h, w = picture.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    terms = [torch.ones_like(picture), picture, picture * x, picture * y]
    return torch.stack(terms, -1).flatten(1, 2).double()


def match_light(reference: Tensor, draft: Tensor, mask: Tensor) -> Tensor:
    """The aligned reference under the draft's light, 1 3 H W.

    Per channel `draft ~ offset + (gain + gx x + gy y) * reference`, least squares, over the region
    (`mask`, 1 1 H W) and a narrow rim around it, where the surface often goes on unbroken. What is
    broken in the draft, or is not the same surface, has little say: a pixel counts by how well its
    neighbourhood correlates in both pictures, and is reweighted by its own error (Geman-McClure).
    """
    small = [_at_most(x, _FINEST) for x in (reference, draft, mask)]
    fit = _light(small[0], small[1], small[2])
    matched = (_columns(reference[0]) @ fit[..., None])[..., 0]
    return matched.reshape(reference.shape).to(reference.dtype).clamp(0, 1)


def _light(reference: Tensor, draft: Tensor, mask: Tensor) -> Tensor:
    """Offset, gain and gradient by x and y of every channel, 3 4. The pictures are blurred for it:
    light is smooth, and so is what a small error of the alignment leaves.
    """
    sigma = max(0.5, _LIGHT_SIGMA * min(reference.shape[-2:]))
    basis = _columns(blur(reference, sigma)[0])
    aim = blur(draft, sigma)[0].flatten(1).double()
    trust = _LEAST_TRUST + (1 - _LEAST_TRUST) * _likeness(reference, draft) ** 2
    base = (_with_rim(mask)[0, 0] * trust).flatten().double()
    # Without evidence: no offset, gain 1, no gradient.
    prior = torch.tensor([1e-3, 1e-3, 1e-2, 1e-2], dtype=torch.float64) * base.sum()
    usual = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    fit = usual.expand(3, 4)
    for _ in range(_ROUNDS):
        residual = (aim - (basis @ fit[..., None])[..., 0]).square().sum(0)
        robust = 1 / (1 + residual / (_weighted_median(residual, base) + _TOLERANCE)) ** 2
        wt = (base * robust)[None, :, None]
        normal = basis.transpose(1, 2) @ (basis * wt) + torch.diag(prior)
        right = basis.transpose(1, 2) @ (aim[..., None] * wt) + (prior * usual)[:, None]
        fit = torch.linalg.solve(normal, right)[..., 0]
    return fit


def _at_most(x: Tensor, side: int) -> Tensor:
    """`x` averaged down until its shorter side is at most `side` pixels."""
    share = side / min(x.shape[-2:])
    size = [round(n * share) for n in x.shape[-2:]]
    return F.interpolate(x, size, mode="area") if share < 1 else x


def _with_rim(mask: Tensor) -> Tensor:
    """The mask, a tenth of its shorter side wider all around."""
    box = bounds(mask)
    return mask if box is None else dilate(mask, max(1, round(_RIM * min(box.extent))))
