"""How much softer a draft's detail is than the reference's, from low resolution or defocus."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from ..images.filters import wide_blur

# Of the geometric mean of the region's sides: a reference blurred by less is as sharp as the draft.
LEAST_SOFTNESS = 0.0095
_FINEST = 0.5  # px, the least blur that is tried
_STEP = 1.25  # factor from one blur to the next
_MOST = 0.2  # of the region's side: the largest blur that is tried
_BROAD = 0.06  # of the region's side: the blur under which contrasts are compared
_FLAT = 1e-4  # variance that counts as none


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
