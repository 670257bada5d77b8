"""The training loop that all objectives share: rate, gradients, updates, moving average, skipping."""

from __future__ import annotations

import math

import torch

from .config import OptimizerSettings
from .distributed import Processes
from .objective import Objective, Update
from .optimizers import make_optimizer, rate_at
from .trainable import Trainable

_MOST_SKIPPED = 20


class Trainer:
    """Trains the weights for an objective, step by step.

    `step` counts steps and `updates` the optimizer updates that were applied.
    """

    def __init__(
        self,
        objective: Objective,
        trainable: Trainable,
        settings: OptimizerSettings,
        steps: int,
        processes: Processes | None = None,
    ) -> None:
        """Start at step 0 of `steps`, with the copies that the objective needs."""
        self.objective, self.trainable, self.settings = objective, trainable, settings
        self.processes = processes or Processes()
        self.optimizer = make_optimizer(trainable, settings)
        for role in (*objective.copies, *(("ema",) if settings.ema else ())):
            trainable.snapshot(role)
        self.step = self.updates = 0
        self._planned = steps * objective.updates
        self._skipped = 0

    def train_step(self) -> dict[str, float]:
        """One step; its metrics, which are means over its updates.

        Raises:
            ValueError: twenty updates or groups in a row were not finite.
        """
        metrics = self.objective.begin(self.step, self._skip)
        means: dict[str, float] = {}
        count = self.objective.updates
        for number in range(count):
            found = self._update(self.objective.update(number), self.step * count + number)
            for key, value in found.items():
                means[key] = means.get(key, 0.0) + value / count
        self.objective.end(self.step)
        self.step += 1
        return metrics | means

    def _update(self, update: Update, number: int) -> dict[str, float]:
        """The `number`th update of the run, unless there is nothing to learn from."""
        rate = self._set_rate(number)
        sums = dict.fromkeys(self.objective.metrics, 0.0)
        if self.processes.sum(float(len(update.terms))) == 0:
            return {**sums, "norm": 0.0, "rate": rate}
        self._compute_spares(update)
        # Only now, since even 0 times what is not finite leaves a gradient that is not finite.
        self.optimizer.zero_grad(set_to_none=True)
        for compute in update.terms:
            term = compute()
            term.value.backward()
            for key, value in term.metrics.items():
                sums[key] += value
        sums = {k: self.processes.sum(v) for k, v in sums.items()}
        parameters = list(self.trainable.parameters.values())
        self.processes.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if math.isfinite(norm) and all(math.isfinite(v) for v in sums.values()):
            self._apply()
        else:
            self._skip(f"loss {sums['loss']:g}, gradient norm {norm:g}; {update.describe()}")
        return {**sums, "norm": norm, "rate": rate}

    def _compute_spares(self, update: Update) -> None:
        """Make as many forward passes as the busiest process, where that is needed."""
        if self.processes.sharding is None:
            return
        mine = len(update.terms)
        most = int(self.processes.gather(torch.tensor([mine])).max())
        for _ in range(most - mine):
            update.spare().value.backward()

    def _set_rate(self, number: int) -> float:
        rate = rate_at(self.settings, number, self._planned)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _apply(self) -> None:
        self.optimizer.step()
        self.updates += 1
        self._skipped = 0
        if self.settings.ema and self.updates % self.settings.ema_every == 0:
            self.trainable.ema("ema", ema_decay(self.settings.ema, self.updates))

    def _skip(self, reason: str) -> None:
        """Report what is left out; too much of it in a row ends the run.

        Raises:
            ValueError: it has happened twenty times since the last update.
        """
        self._skipped += 1
        self.processes.log(f"step {self.step} skipped: {reason}")
        if self._skipped >= _MOST_SKIPPED:
            raise ValueError(
                f"{self._skipped} updates or groups in a row were not finite. Lower optimizer.rate "
                f"(now {self.settings.rate:g}) or check the data. The last checkpoint was saved before "
                "that."
            )


def ema_decay(decay: float, updates: int) -> float:
    """The decay of the moving average after some updates: `min(decay, (1 + n) / (10 + n))`.

    The warm-up counts updates, as Flow-GRPO and diffusers do, whatever the interval of the average.
    """
    return min(decay, (1 + updates) / (10 + updates))
