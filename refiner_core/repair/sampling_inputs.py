"""What a sampler is given: the pictures encoded, noise levels, prompt, guidance and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..images.geometry import Extent
from ..interfaces import CleanInput, SamplingJob
from ..recipes.recipe import Recipe
from .request import RefineOptions


def clean_inputs(
    pictures: Sequence[tuple[str, Tensor]], recipe: Recipe, encode: Callable[[Tensor], Tensor]
) -> tuple[CleanInput, ...]:
    """Those pictures encoded, with their position indices.

    Args:
        encode: picture 1 3 H W to latent 1 C h w.
    """
    first = recipe.indices[0]
    return tuple(
        CleanInput(role, picture, encode(picture), first + i)
        for i, (role, picture) in enumerate(pictures)
    )


def sampling_job(
    recipe: Recipe,
    size: Extent,
    inputs: tuple[CleanInput, ...],
    options: RefineOptions,
    mask: Tensor | None = None,
) -> SamplingJob:
    """What a sampler needs to know, by the recipe.

    Args:
        size: of the crop, in px.
        mask: the region in the crop, 1 1 H W, which `options.model_mask` holds sampling to.
    """
    guidance, cfg = recipe.resolve_guidance(options.guidance)
    prompt = recipe.text(options.prompt, options.subject)
    job = SamplingJob(
        inputs,
        recipe.sigmas(size, options.steps),
        prompt,
        guidance,
        options.seed,
        cfg=cfg,
    )
    if mask is None or options.model_mask == 0:
        return job
    small = torch.nn.functional.adaptive_max_pool2d(mask, job.draft.shape[-2:])
    return replace(job, restrict=1 - options.model_mask * (1 - small))
