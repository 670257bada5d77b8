"""Stage 1: supervised fine-tuning with the masked, area-normalized flow-matching loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import flow
from ..recipes.recipe import Recipe
from .batch_objective import BatchObjective
from .config import LossSettings, RunConfig, SftConfig
from .dataset import Batch, Item, collate
from .losses import masked_flow_loss
from .objective import Learner, StepCost, Term
from .timestep_sampling import sample_timesteps


class SftSettings(RunConfig, Protocol):
    """Settings of a run that has this loss."""

    @property
    def loss(self) -> LossSettings: ...


class SftObjective(BatchObjective):
    """Predict the velocity of noised targets."""

    def __init__(self, config: SftSettings, learner: Learner) -> None:
        super().__init__(config, learner)
        self.settings = config.loss

    @staticmethod
    def cost(config: SftConfig, steps: int) -> StepCost:
        """See `StepCost`."""
        return StepCost(plain=0, learnt=config.run.batch)

    def term(self, items: Sequence[Item], places: Sequence[int], weight: float) -> Term:
        """The masked flow-matching loss."""
        loss = self.loss(items, places) * weight
        return Term(loss, {"loss": float(loss.detach())})

    def loss(self, items: Sequence[Item], places: Sequence[int]) -> Tensor:
        """The mean loss of some items at their places in the current batch."""
        generators = self.generators(places)
        pairs = list(zip(items, generators, strict=True))
        t = torch.cat(
            [draw_timestep(self.settings, item, self.learner.recipe, g) for item, g in pairs]
        )
        noise = torch.cat([torch.randn(item.target.shape, generator=g) for item, g in pairs])
        batch = self._batch(items, generators)
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

    def _batch(self, items: Sequence[Item], generators: Sequence[torch.Generator]) -> Batch:
        o, learner = self.settings, self.learner
        drop = [float(torch.rand(1, generator=g)) < o.caption_dropout for g in generators]
        texts = [learner.text("" if d else i.prompt) for d, i in zip(drop, items, strict=True)]
        batch = collate(items, texts, learner.recipe, o.guidance, learner.policy.device)
        rng = np.random.default_rng([self.run.seed, self._step, 41])
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
