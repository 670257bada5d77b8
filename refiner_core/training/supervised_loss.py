"""The masked, area-normalized flow-matching loss of some items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import flow
from ..models.kontext import Conditioning
from ..recipes.recipe import Recipe
from .config import LossSettings
from .dataset import Batch, Item, collate
from .losses import contrast_loss, masked_flow_errors, mean_loss
from .objective import Learner
from .timestep_sampling import sample_timesteps


class SupervisedLoss:
    """How far the predicted velocity of noised targets is from the true one."""

    def __init__(self, settings: LossSettings, learner: Learner, seed: int) -> None:
        """Everything random that a whole batch shares follows from `seed` and the step."""
        self.settings, self.learner, self.seed = settings, learner, seed

    def __call__(
        self,
        items: Sequence[Item],
        generators: Sequence[torch.Generator],
        step: int,
        others: Sequence[Sequence[Item]] = (),
    ) -> Tensor:
        """The mean loss of some items, with the weighted contrast; arguments as for `parts`."""
        matching, contrast = self.parts(items, generators, step, others)
        return matching + self.settings.contrast * contrast

    def parts(
        self,
        items: Sequence[Item],
        generators: Sequence[torch.Generator],
        step: int,
        others: Sequence[Sequence[Item]] = (),
    ) -> tuple[Tensor, Tensor]:
        """The mean matching loss of some items, and the mean contrast of their references with those
        of others, 0 where there is nothing to tell apart.

        Args:
            generators: the source of everything random of each item.
            step: of the run.
            others: of each item, as many as of every other one; see `BatchObjective.others`.
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
        target = flow.velocity_target(batch.target, noise)
        mask = batch.mask if o.masked else torch.zeros_like(batch.mask)
        weights = {"region": o.region, "background": o.background}
        loss = mean_loss(masked_flow_errors(predicted, target, mask, **weights), o.root)
        if not o.contrast or len(batch.conditioning.references) < len(items[0].references):
            return loss, torch.zeros_like(loss)
        errors = [masked_flow_errors(predicted, target, mask, **weights)]
        for conditioning in with_others(batch, others, self.learner.recipe):
            other = self.learner.policy.velocity(x, t, conditioning)
            errors.append(masked_flow_errors(other, target, mask, **weights))
        together = torch.stack(errors, 1)
        return loss, contrast_loss(together, o.contrast_temperature, o.contrast_scale).mean()

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


def with_others(
    batch: Batch, others: Sequence[Sequence[Item]], recipe: Recipe
) -> Iterator[Conditioning]:
    """The conditioning of a batch with the references of other items in place of its own."""
    at = recipe.order.index("reference")
    for chosen in zip(*others, strict=True):
        references = list(batch.conditioning.references)
        references[at] = torch.cat([i.references[at] for i in chosen]).to(references[at])
        yield replace(batch.conditioning, references=tuple(references))


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
