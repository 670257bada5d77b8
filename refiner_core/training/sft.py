"""Stage 1: supervised fine-tuning with the masked, area-normalized flow-matching loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .batch_objective import BatchObjective
from .config import SftConfig
from .dataset import Item
from .objective import Learner, StepCost, Term
from .supervised_loss import SupervisedLoss


class SftObjective(BatchObjective):
    """Predict the velocity of noised targets."""

    def __init__(self, config: SftConfig, learner: Learner) -> None:
        super().__init__(config, learner)
        self._loss = SupervisedLoss(config.loss, learner, config.run.seed)

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
        return self._loss(items, self.generators(places), self._step)
