"""What a sample is worth: how near its region, its edges and its surroundings are to the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..scoring.pixels import sobel
from .config import ObjectiveSettings
from .views import Pixels

# Samples B 3 H W and what they are compared with -> named scores of B values, higher is better.
Reward = Callable[[Tensor, Pixels], Mapping[str, Tensor]]
_LEAST = 1e-3
_BACKGROUND = 1e-2


def _masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    area = (mask.sum((1, 2, 3)) * error.shape[1]).clamp_min(1)
    return (error * mask).sum((1, 2, 3)) / area


def pixel_reward(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    """`exp(-e / tau)` of the masked pixel, gradient and background error.

    tau is the draft's own error (at least 1e-3), so exp(-1) is "as bad as the draft" and 1 perfect;
    the draft has no error outside the mask, there tau is 1e-2 (20 dB).
    """
    target, draft, mask = (v.to(images) for v in (pixels.target, pixels.draft, pixels.mask))

    def score(a: Tensor, b: Tensor, broken: Tensor, where: Tensor, least: float) -> Tensor:
        tau = _masked_mean((broken - b).square(), where).clamp_min(least)
        return torch.exp(-_masked_mean((a - b).square(), where) / tau)

    edges = [sobel(v) for v in (images, target, draft)]
    return {
        "pixel": score(images, target, draft, mask, _LEAST),
        "gradient": score(edges[0], edges[1], edges[2], mask, _LEAST),
        "background": score(images, target, draft, 1 - mask, _BACKGROUND),
    }


def make_reward(settings: ObjectiveSettings, device: torch.device) -> Reward:
    """The reward of the settings.

    Raises:
        ValueError: DreamSim weights that cannot be read.
    """
    if settings.dreamsim is None:
        return pixel_reward
    raise ValueError("objective.dreamsim is not available yet; leave it empty.")
