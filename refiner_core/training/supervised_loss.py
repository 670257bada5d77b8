"""The masked, area-normalized flow-matching loss of some items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import flow
from ..recipes.recipe import Recipe
from .config import LossSettings
from .dataset import Batch, Item, collate
from .losses import masked_flow_loss
from .objective import Learner
from .timestep_sampling import sample_timesteps


class SupervisedLoss:
    """How far the predicted velocity of noised targets is from the true one."""

    def __init__(self, settings: LossSettings, learner: Learner, seed: int) -> None:
        """Everything random that a whole batch shares follows from `seed` and the step."""
        self.settings, self.learner, self.seed = settings, learner, seed

    def __call__(
        self, items: Sequence[Item], generators: Sequence[torch.Generator], step: int
    ) -> Tensor:
        """The mean loss of some items.

        Args:
            generators: the source of everything random of each item.
            step: of the run.
        """
        pairs = list(zip(items, generators, strict=True))
        t = torch.cat(
            [draw_timestep(self.settings, item, self.learner.recipe, g) for item, g in pairs]
        )
        noise = torch.cat([torch.randn(item.target.shape, generator=g) for item, g in pairs])
        batch = self._batch(items, generators, step)
        t, noise = t.to(batch.target), noise.to(batch.target)
        x = flow.interpolate(batch.target, noise, t)
        predicted = self.learner.policy.velocity(x, t, batch.conditioning)
        o = self.settings
        return masked_flow_loss(
            predicted,
            flow.velocity_target(batch.target, noise),
            batch.mask if o.masked else torch.zeros_like(batch.mask),
            region=o.region,
            background=o.background,
            root=o.root,
        )

    def _batch(
        self, items: Sequence[Item], generators: Sequence[torch.Generator], step: int
    ) -> Batch:
        o, learner = self.settings, self.learner
        drop = [float(torch.rand(1, generator=g)) < o.caption_dropout for g in generators]
        texts = [learner.text("" if d else i.prompt) for d, i in zip(drop, items, strict=True)]
        batch = collate(items, texts, learner.recipe, o.guidance, learner.policy.device)
        rng = np.random.default_rng([self.seed, step, 41])
        if rng.random() < o.reference_dropout:
            return without_references(batch, learner.recipe)
        return batch


def without_references(batch: Batch, recipe: Recipe) -> Batch:
    """The batch with the draft as the only clean latent, at its own position index."""
    at = recipe.order.index("draft")
    c = batch.conditioning
    alone = replace(c, references=(c.references[at],), indices=(c.indices[at],))
    return replace(batch, conditioning=alone)


def draw_timestep(
    settings: LossSettings, item: Item, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """A noise level (1) by the distribution of the settings."""
    mu = 0.0
    if settings.shift:
        h, w = item.shape[0]
        mu = flow.resolution_shift((h // 2) * (w // 2)) if recipe.shift is None else recipe.shift
    return sample_timesteps(
        1,
        generator,
        settings.timesteps,
        mean=settings.mean,
        std=settings.std,
        uniform=settings.uniform,
        mu=mu,
    )
