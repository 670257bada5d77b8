"""The supervised loss: masked flow matching, normalised by area for each sample on its own."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_flow_loss(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    region: float = 1.0,
    background: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """`region * sum(w e m) / (C sum m) + background * mean(w e (1-m))`, e = (v - target)^2.

    The first term is a mean over the masked latent pixels, so a small logo counts as much as a
    large one; the second keeps the model from forgetting to copy what surrounds it. An empty mask
    (a draft without fault) leaves the plain mean.

    Args:
        predicted, target: velocities `B C h w`.
        mask: region in latent pixels, `B 1 h w`, 0 or 1.
        region, background: the weights of the two terms.
        weight: one factor per sample, `B`.

    Returns:
        the mean over the batch.
    """
    error = (predicted.float() - target.float()).square()
    area = mask.sum((1, 2, 3))
    inside = (error * mask).sum((1, 2, 3)) / (area * error.shape[1]).clamp_min(1)
    outside = (error * (1 - mask)).mean((1, 2, 3))
    loss = torch.where(area > 0, region * inside + background * outside, error.mean((1, 2, 3)))
    return (loss if weight is None else loss * weight).mean()
