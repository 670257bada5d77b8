"""Sampling jobs for tests of engines, from latents alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refiner_core.interfaces import CleanInput, SamplingJob


def job_of(
    latents: Sequence[Tensor],
    sigmas: Tensor,
    roles: Sequence[str] = ("draft", "reference"),
    **fields: Any,
) -> SamplingJob:
    """A job that shows the model those latents at the positions 1, 2, ..."""
    blank = torch.zeros(1, 3, 8, 8)
    inputs = tuple(
        CleanInput(role, blank, latent, i)
        for i, (role, latent) in enumerate(zip(roles, latents, strict=True), 1)
    )
    return SamplingJob(inputs, sigmas, **({"prompt": "", "guidance": None, "seed": 0} | fields))
