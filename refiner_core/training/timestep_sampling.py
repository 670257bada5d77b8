"""Which noise levels a training step uses."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .. import flow

TimestepSampling = Literal["uniform", "logit_normal", "mode", "cosmap"]
LEAST = 0.02  # below this there is nothing left to learn and x0 / t explodes
_MODE = 1.29


def sample_timesteps(
    count: int,
    generator: torch.Generator,
    kind: TimestepSampling = "logit_normal",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    uniform: float = 0.0,
    mu: float = 0.0,
) -> Tensor:
    """`count` noise levels in [0.02, 1].

    Args:
        kind: "logit_normal" `sigmoid(N(mean, std))`; "mode" and "cosmap" of Stable Diffusion 3
            (arXiv 2403.03206, section 3.1, scale 1.29); "uniform".
        uniform: share that is drawn uniformly whatever the kind, so that no level is forgotten.
        mu: exponential shift towards high noise, as the sampler's schedule has it; not applied to
            the uniformly drawn share.

    Raises:
        ValueError: an unknown kind.
    """
    normal = torch.randn(count, generator=generator)
    u = torch.rand(count, generator=generator)
    flat = torch.rand(count, generator=generator) * (1 - LEAST) + LEAST
    pick = torch.rand(count, generator=generator) < uniform
    if kind == "uniform":
        t = u
    elif kind == "logit_normal":
        t = torch.sigmoid(normal * std + mean)
    elif kind == "mode":
        t = 1 - u - _MODE * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    elif kind == "cosmap":
        t = 1 - 1 / (torch.tan(math.pi * u / 2) + 1)
    else:
        raise ValueError(
            f"times must be one of {', '.join(get_args(TimestepSampling))}, got {kind!r}."
        )
    t = flow.shift(t.clamp(1e-6, 1), mu)
    return torch.where(pick, flat, t).clamp(LEAST, 1.0)
