"""A draft whose detail is only soft, from low resolution or defocus: how soft it is, and which of its
frequencies are nearer to the truth than the reference's.

What is soft is not wrong: below its resolution such a draft has its light, its shadows and the place
of everything, where another photograph of the thing has those of another place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .tone import mask_sides, wide_blur

# Of the geometric mean of the region's sides: a reference blurred by less is as sharp as the draft.
LEAST_SOFTNESS = 0.0095
_FINEST = 0.5  # px, the least blur that is tried
_STEP = 1.25  # factor from one blur to the next
_MOST = 0.2  # of the region's side: the largest blur that is tried
_BROAD = 0.06  # of the region's side: the blur under which contrasts are compared
_FLAT = 1e-4  # variance that counts as none
# The draft's own frequencies.
_CERTAIN = 0.014  # softness at which all of them are taken
_BANDS = 4
_FINEST_BAND = 0.008  # of the region's longer side: sigma of the finest band's lower end
_NEIGHBOURHOOD = 1.5  # times a band's sigma: where the two are compared
_CORRELATED = (-0.2, 0.2)  # of a band with the reference's: none of it is taken, and all


def _edges(picture: Tensor, mask: Tensor) -> float:
    """Mean squared difference of neighbouring pixels inside a mask."""
    x = picture.mean(1, keepdim=True)
    right = (x[..., :, 1:] - x[..., :, :-1]).square() * mask[..., :, 1:] * mask[..., :, :-1]
    down = (x[..., 1:, :] - x[..., :-1, :]).square() * mask[..., 1:, :] * mask[..., :-1, :]
    return float(right.sum() + down.sum()) / max(1.0, float(mask.sum()))


def _contrast(picture: Tensor, mask: Tensor, side: float) -> float:
    """Variance of a picture's coarse luminance inside a mask."""
    x = wide_blur(picture.mean(1, keepdim=True), _BROAD * side)
    total = max(1.0, float(mask.sum()))
    mean = float((x * mask).sum()) / total
    return float(((x - mean).square() * mask).sum()) / total + _FLAT


def softness(draft: Tensor, reference: Tensor, mask: Tensor) -> float:
    """The blur that makes an aligned reference as soft as the draft inside a region.

    Their contrasts may differ, which is told from their coarse luminance.

    Args:
        draft, reference: float 1 3 h w.
        mask: the region, 1 1 h w.

    Returns:
        sigma in px; 0 where it is under `LEAST_SOFTNESS` of the region's side, the geometric mean of
        a rectangle's sides.
    """
    inner = 1 - F.max_pool2d(1 - (mask > 0.5).float(), 3, 1, 1)
    side = math.sqrt(float(inner.sum()))

    contrast = _contrast(reference, inner, side) / _contrast(draft, inner, side)
    wanted, sigma = _edges(draft, inner) * min(4.0, max(0.25, contrast)), _FINEST
    while sigma < _MOST * side and _edges(wide_blur(reference, sigma), inner) > wanted:
        sigma *= _STEP
    return sigma if sigma > _FINEST and sigma >= LEAST_SOFTNESS * side else 0.0


def soft_draft_step(lit: Tensor, draft: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """What the low frequencies of a soft draft have beyond the reference's.

    The difference is taken band by band from the coarsest, as long as the bands of both correlate:
    beside a badly aligned edge the draft's would leave a halo. Where the draft's band is weaker than
    the reference's, it is filled up with the latter.

    Args:
        lit, draft: the aligned reference under the draft's light and the draft, float 1 3 h w.
        mask: the region, 1 1 h w.
        inside: where the reference shows anything, 1 1 h w.

    Returns:
        what to add to the lit reference, 1 3 h w; 0 for a draft that is not soft.
    """
    step = torch.zeros_like(lit)
    counted = mask * inside
    side = math.sqrt(max(1.0, float(counted.sum())))
    soft = softness(draft, lit, counted) / side
    if soft == 0:
        return step
    finest = max(1.0, _FINEST_BAND * mask_sides(mask)[0])
    sigmas = [finest * 2**band for band in range(_BANDS + 1)]
    drafts, references = ([wide_blur(x, sigma) for sigma in sigmas] for x in (draft, lit))
    share = torch.ones_like(mask)
    for band in reversed(range(_BANDS)):
        own = drafts[band] - drafts[band + 1]
        other = references[band] - references[band + 1]
        correlation, strength = _compared(own, other, inside, _NEIGHBOURHOOD * sigmas[band + 1])
        low, high = _CORRELATED
        share = torch.minimum(share, ((correlation - low) / (high - low)).clamp(0, 1))
        if band == _BANDS - 1:
            step = share * (drafts[_BANDS] - references[_BANDS])
        step = step + share * (own - strength * other)
    return inside * step * min(1.0, (soft - LEAST_SOFTNESS) / (_CERTAIN - LEAST_SOFTNESS))


def _compared(own: Tensor, other: Tensor, inside: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Local correlation of two bands, and the strength of the first against the second, at most 1."""
    near = wide_blur(inside, sigma).clamp_min(1e-3)

    def mean(x: Tensor) -> Tensor:
        return wide_blur(x.sum(1, keepdim=True) * inside, sigma) / near

    shared = mean(own * other) + _FLAT
    power, other_power = (mean(x * x).clamp_min(0) + _FLAT for x in (own, other))
    return shared / (power * other_power).sqrt(), (power / other_power).sqrt().clamp(0, 1)
