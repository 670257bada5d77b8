"""Stage 1: supervised fine-tuning with the masked, area-normalized flow-matching loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .. import flow
from ..recipes.recipe import Recipe
from .config import SftConfig
from .dataset import Batch, Item, collate, epoch_batches
from .losses import masked_flow_loss
from .objective import Learner, Term, Update
from .rollout import derive_seed
from .timestep_sampling import sample_timesteps


class SftObjective:
    """Predict the velocity of noised targets.

    Everything random of a sample follows from (seed, step, its place in the batch), so that neither
    the number of processes nor the micro-batch changes what is learnt.

    Raises:
        ValueError: the batch cannot be split evenly over processes and micro-batches.
    """

    updates = 1
    metrics = ("loss",)
    copies: tuple[str, ...] = ()
    log_every = 10

    def __init__(self, config: SftConfig, learner: Learner) -> None:
        self.config, self.learner = config, learner
        config.check_processes(learner.processes.count)
        self._step = 0
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        run = self.config.run
        return epoch_batches(self.learner.dataset.shapes, run.batch, run.seed, epoch)

    def indices(self) -> list[int]:
        """The items of the current step's batch."""
        epoch, at = divmod(self._step, self._per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        return self._order[1][at]

    def begin(self, step: int, skip: Callable[[str], None]) -> dict[str, float]:
        """Choose the batch of the step."""
        self._step = step
        return {}

    def update(self, number: int) -> Update:
        """The batch in micro-batches."""
        run, processes = self.config.run, self.learner.processes
        mine = range(processes.rank, run.batch, processes.count)
        micro_batches = [
            list(mine[at : at + run.micro_batch]) for at in range(0, len(mine), run.micro_batch)
        ]
        terms = [partial(self._term, places) for places in micro_batches]
        return Update(terms, terms[0], self._describe)

    def end(self, step: int) -> None:
        """Nothing is left to do."""

    def _describe(self) -> str:
        ids = ", ".join(self.learner.dataset[i].id for i in self.indices()[:4])
        return f"a batch with {ids}"

    def _term(self, places: Sequence[int]) -> Term:
        batch = self.indices()
        items = [self.learner.dataset[batch[p]] for p in places]
        loss = self.loss(items, places) * (len(places) / self.config.run.batch)
        return Term(loss, {"loss": float(loss.detach())})

    def loss(self, items: Sequence[Item], places: Sequence[int]) -> Tensor:
        """The mean loss of some items at their places in the current batch."""
        seeds = [derive_seed(self.config.run.seed, self._step, p) for p in places]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        pairs = list(zip(items, generators, strict=True))
        t = torch.cat([self._timestep(item, g) for item, g in pairs])
        noise = torch.cat([torch.randn(item.target.shape, generator=g) for item, g in pairs])
        batch = self._batch(items, generators)
        t, noise = t.to(batch.target), noise.to(batch.target)
        x = flow.interpolate(batch.target, noise, t)
        predicted = self.learner.policy.velocity(x, t, batch.conditioning)
        o = self.config.loss
        return masked_flow_loss(
            predicted,
            flow.velocity_target(batch.target, noise),
            batch.mask if o.masked else torch.zeros_like(batch.mask),
            region=o.region,
            background=o.background,
            root=o.root,
        )

    def _timestep(self, item: Item, generator: torch.Generator) -> Tensor:
        o = self.config.loss
        mu = 0.0
        if o.shift:
            h, w = item.shape[0]
            own = self.learner.recipe.shift
            mu = flow.resolution_shift((h // 2) * (w // 2)) if own is None else own
        return sample_timesteps(
            1, generator, o.timesteps, mean=o.mean, std=o.std, uniform=o.uniform, mu=mu
        )

    def _batch(self, items: Sequence[Item], generators: Sequence[torch.Generator]) -> Batch:
        o, learner = self.config.loss, self.learner
        drop = [float(torch.rand(1, generator=g)) < o.caption_dropout for g in generators]
        texts = [learner.text("" if d else i.prompt) for d, i in zip(drop, items, strict=True)]
        batch = collate(items, texts, learner.recipe, o.guidance, learner.policy.device)
        rng = np.random.default_rng([self.config.run.seed, self._step, 41])
        if rng.random() < o.reference_dropout:
            return without_references(batch, learner.recipe)
        return batch


def without_references(batch: Batch, recipe: Recipe) -> Batch:
    """The batch with the draft as the only clean latent, at its own position index."""
    at = recipe.order.index("draft")
    c = batch.conditioning
    alone = replace(c, references=(c.references[at],), indices=(c.indices[at],))
    return replace(batch, conditioning=alone)
