"""Stage 1: supervised fine-tuning with the masked, area-normalized flow-matching loss."""

from __future__ import annotations

from collections.abc import Sequence

from .batch_objective import BatchObjective
from .config import SftConfig
from .dataset import Item
from .objective import Learner, Term
from .supervised_loss import SupervisedLoss


class SftObjective(BatchObjective):
    """Predict the velocity of noised targets."""

    def __init__(self, config: SftConfig, learner: Learner) -> None:
        super().__init__(config, learner)
        self._settings = config.loss
        self._loss = SupervisedLoss(config.loss, learner, config.run.seed)
        if config.loss.contrast:
            self.metrics = ("loss", "contrast")

    def term(self, items: Sequence[Item], places: Sequence[int], weight: float) -> Term:
        """The masked flow-matching loss, and the contrast if it has a weight."""
        others = self.others(places, self._settings.passes - 1)
        matching, contrast = self._loss.parts(items, self.generators(places), self._step, others)
        loss = (matching + self._settings.contrast * contrast) * weight
        found = {"loss": float(loss.detach())}
        if self._settings.contrast:
            found["contrast"] = float(contrast.detach()) * weight
        return Term(loss, found)
