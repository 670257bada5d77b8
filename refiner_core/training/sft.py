"""Stage 1: supervised fine-tuning with the masked, area-normalised flow-matching loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import flow
from ..recipes.recipe import Recipe
from .config import SftConfig
from .dataset import Batch, View, Views, epoch_batches, stack
from .distributed import Workers
from .loss import masked_flow_loss
from .optimizers import make_optimizer, rate_at
from .policy import Policy
from .rollout import case_seed
from .timestep_sampling import draw_times
from .trainable import Trainable

MOST_SKIPPED = 20


class SftTrainer:
    """A network and the views it learns from; `step` is the number of updates done.

    Everything random of a sample follows from (seed, step, its place in the batch), so neither the
    number of processes nor the micro-batch changes what is learnt.

    Raises:
        ValueError: the batch cannot be dealt evenly to processes and micro-batches.
    """

    def __init__(
        self, config: SftConfig, policy: Policy, trainable: Trainable, views: Views,
        text: Callable[[str], tuple[Tensor, Tensor]], recipe: Recipe,
        workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self.config, self.policy, self.trainable = config, policy, trainable
        self.views, self.text, self.recipe = views, text, recipe
        self.workers = workers or Workers()
        self.optimizer = make_optimizer(trainable, config.optimizer)
        if config.optimizer.ema:
            trainable.keep("ema")
        self.step = 0
        self.skipped = 0
        self._plan: tuple[int, list[list[int]]] = (-1, [])
        config.check_processes(self.workers.count)
        run = config.run
        self._per_epoch = len(epoch_batches(views.shapes, run.batch, run.seed, 0))

    def cases(self) -> list[int]:
        """The views of the present step."""
        run = self.config.run
        epoch, at = divmod(self.step, self._per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, epoch_batches(self.views.shapes, run.batch, run.seed, epoch))
        return self._plan[1][at]

    def train_step(self) -> dict[str, float]:
        """One update; `loss`, gradient `norm` and `rate`. A batch that gives NaN changes nothing.

        Raises:
            ValueError: twenty batches in a row were not finite.
        """
        run = self.config.run
        cases = self.cases()
        mine = range(self.workers.rank, run.batch, self.workers.count)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for at in range(0, len(mine), run.micro_batch):
            places = mine[at : at + run.micro_batch]
            part = self.loss([self.views[cases[p]] for p in places], list(places))
            part = part * (len(places) / run.batch)
            part.backward()
            loss += float(part.detach())
        self.workers.sum_gradients(self.trainable.parameters.values())
        loss = self.workers.sum(loss)
        parameters = self.trainable.parameters.values()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip))
        rate = rate_at(self.config.optimizer, self.step, run.max_steps)
        self._update(loss, norm, rate, cases)
        self.step += 1
        return {"loss": loss, "norm": norm, "rate": rate}

    def _update(self, loss: float, norm: float, rate: float, cases: list[int]) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            ids = ", ".join(self.views[c].id for c in cases[:4])
            self.workers.say(
                f"step {self.step}: loss {loss}, gradient {norm}; the batch ({ids}) is skipped."
            )
            if self.skipped >= MOST_SKIPPED:
                raise ValueError(
                    f"{self.skipped} batches in a row were not finite. Lower optimizer.rate (now "
                    f"{self.config.optimizer.rate:g}) or look at the data; the last checkpoint is "
                    "from before."
                )
            return
        self.skipped = 0
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        o = self.config.optimizer
        if o.ema and (self.step + 1) % o.ema_every == 0:
            n = self.step // o.ema_every
            self.trainable.blend("ema", min(o.ema, (1 + n) / (10 + n)))

    def loss(self, views: list[View], places: list[int]) -> Tensor:
        """The loss of some views of the present batch, at their places in it."""
        seeds = [case_seed(self.config.run.seed, self.step, p) for p in places]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        t = torch.cat([self._times(v, g) for v, g in zip(views, generators, strict=True)])
        noise = torch.cat(
            [
                torch.randn(v.target.shape, generator=g)
                for v, g in zip(views, generators, strict=True)
            ]
        )
        batch = self._batch(views, generators)
        t, noise = t.to(batch.target), noise.to(batch.target)
        x = flow.interpolate(batch.target, noise, t)
        predicted = self.policy.velocity(x, t, batch.conditioning)
        o = self.config.loss
        return masked_flow_loss(
            predicted, flow.velocity_target(batch.target, noise),
            batch.mask if o.masked else torch.zeros_like(batch.mask),
            region=o.region, background=o.background,
        )  # fmt: skip

    def _times(self, view: View, generator: torch.Generator) -> Tensor:
        o = self.config.loss
        mu = 0.0
        if o.shift:
            h, w = view.shape[0]
            mu = self.recipe.shift
            mu = flow.resolution_shift((h // 2) * (w // 2)) if mu is None else mu
        return draw_times(
            1, generator, o.times, mean=o.mean, std=o.std, uniform=o.uniform, mu=mu
        )  # fmt: skip

    def _batch(self, views: list[View], generators: list[torch.Generator]) -> Batch:
        o = self.config.loss
        drop = [float(torch.rand(1, generator=g)) < o.caption_dropout for g in generators]
        texts = [self.text("" if d else v.prompt) for d, v in zip(drop, views, strict=True)]
        batch = stack(views, texts, self.recipe, o.guidance, self.policy.device)
        rng = np.random.default_rng([self.config.run.seed, self.step, 41])
        return (
            without_references(batch, self.recipe) if rng.random() < o.reference_dropout else batch
        )


def without_references(batch: Batch, recipe: Recipe) -> Batch:
    """The batch with the draft as the only clean latent, at its own position index."""
    at = recipe.order.index("draft")
    c = batch.conditioning
    alone = replace(c, references=(c.references[at],), indices=(c.indices[at],))
    return replace(batch, conditioning=alone)
