"""What makes the siblings of one case differ where noise alone hardly does.

A sampler that stays at high noise gives nearly the same picture from every seed: rewards of such
siblings differ by less than the noise of their gradients. The pipeline's own knobs do reach the
picture: the strength of the starting noise, how much of the reference is laid over the draft, and
whether the surroundings are held to the draft. Siblings are drawn with these turned, each its own
way, and the refiner learns to paint the better ones with the knobs where they always are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.engine import Codec
from ..recipes import Recipe
from ..repair.views import prefill
from .config import RolloutSettings
from .views import View


@dataclass(frozen=True)
class Knobs:
    """One sibling: `noise` scale of its starting noise, `share` of the reference laid over the
    region, `held` whether its surroundings are held to the draft.
    """

    noise: float
    share: float
    held: bool


@dataclass(frozen=True)
class Siblings:
    """What B siblings see in place of their case's own inputs.

    `references` clean latents B C h w in the recipe's order; `noise` B 1 1 1 scales of the starting
    noise; `clean` 1 C h w the draft's latent and `free` B 1 h w, 0 where they are held to it.
    """

    references: tuple[Tensor, ...]
    noise: Tensor
    clean: Tensor
    free: Tensor


def explores(settings: RolloutSettings) -> bool:
    """Whether siblings differ by more than their noise."""
    return any((settings.explore_noise, settings.explore_share, settings.explore_background))


def turn_knobs(settings: RolloutSettings, prefill: float, seed: int) -> list[Knobs]:
    """Every sibling's knobs: each spread evenly over its range, in an order of its own (a Latin
    hypercube, McKay et al. 1979).
    """
    rng = np.random.default_rng([seed, 31])
    count = settings.group
    noise, share, held = ((rng.permutation(count) + 0.5) / count for _ in range(3))
    shares = np.clip(prefill + settings.explore_share * (2 * share - 1), 0, 1)
    return [
        Knobs(
            float(1 - settings.explore_noise * n), float(s), bool(h < settings.explore_background)
        )
        for n, s, h in zip(noise, shares, held, strict=True)
    ]


def make_siblings(
    view: View, knobs: list[Knobs], codec: Codec, recipe: Recipe, device: torch.device
) -> Siblings:
    """Inputs of siblings with these knobs, on the codec's device; `view` must have its pixels."""
    pixels = view.pixels
    assert pixels is not None
    at = recipe.order.index("draft")
    drafts = [pixels.draft]
    if recipe.prefill:
        drafts += [prefill(pixels.draft, pixels.reference, pixels.mask, k.share) for k in knobs]
    clean, *seen = codec.encode(torch.cat(drafts).to(device)).float().split(1)
    varied = torch.cat(seen) if seen else view.references[at].to(device)
    references = tuple(
        (varied if i == at else z.to(device)).expand(len(knobs), *z.shape[1:])
        for i, z in enumerate(view.references)
    )
    free = [view.mask if k.held else torch.ones_like(view.mask) for k in knobs]
    noise = torch.tensor([k.noise for k in knobs]).reshape(-1, 1, 1, 1)
    return Siblings(references, noise, clean, torch.cat(free))
