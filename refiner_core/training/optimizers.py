"""The optimizer and its learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from .config import OptimizerSettings
from .trainable import Trainable


def make_optimizer(trainable: Trainable, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW over the trainable weights.

    Raises:
        ModuleNotFoundError: 8-bit moments were requested and bitsandbytes is not installed.
    """
    parameters = list(trainable.parameters.values())
    kwargs: dict[str, Any] = {
        "lr": settings.rate,
        "betas": (0.9, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    if not settings.eight_bit:
        return torch.optim.AdamW(parameters, fused=parameters[0].device.type != "meta", **kwargs)
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ModuleNotFoundError(
            "optimizer.eight_bit needs bitsandbytes: pip install bitsandbytes. Or set it to false."
        ) from e
    return bitsandbytes.optim.AdamW8bit(parameters, **kwargs)


def rate_at(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The learning rate of update `step` of `steps`: a linear warm-up, then constant or a cosine to 0."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return settings.rate * warm
    return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
