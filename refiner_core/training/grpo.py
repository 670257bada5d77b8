"""Flow-GRPO: group-relative policy optimization of the sampler's stochastic steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .. import flow
from ..models.kontext import Conditioning
from ..sampling import Transition, advance
from .advantages import placed_advantages
from .config import GrpoConfig
from .dataset import Batch, Reward
from .losses import clip_range, gaussian_kl, log_ratio, log_ratio_map, policy_loss
from .objective import Learner, Term
from .reinforcement import ReinforcementObjective, ScoredRollout
from .rollout import Rollout, RolloutSeeds, roll_out


class GrpoObjective(ReinforcementObjective):
    """Make the steps that led to good samples more probable (arXiv 2505.05470).

    Raises:
        ValueError: the stochastic steps do not fit into the first half of the recipe's.
    """

    def __init__(self, config: GrpoConfig, learner: Learner, reward: Reward) -> None:
        super().__init__(config, learner, reward)
        config.rollout.check_window(config.rollout.steps or learner.recipe.steps)

    def begin(self, step: int, skip: Callable[[str], None]) -> dict[str, float]:
        """Draw and score the samples of an epoch with the current policy."""
        self.learner.trainable.snapshot("old")
        return super().begin(step, skip)

    def sample(self, batch: Batch, sigmas: Tensor, seeds: RolloutSeeds) -> Rollout:
        """Samples with stochastic steps in the window."""
        return roll_out(self.learner.policy, batch, sigmas, self.config.rollout, seeds)

    def terms(
        self, scored: ScoredRollout, advantages: Tensor, weight: float
    ) -> list[Callable[[], Term]]:
        """One term per stochastic step.

        With advantages of places every place has its own ratio, that of its own numbers.
        """
        rollout, o = scored.rollout, self.config.objective
        placed = placed_advantages(advantages, scored.maps, o.map_share)
        one = rollout.x0[0]
        clip = clip_range(o.clip_unit, one.numel() if placed.ndim == 1 else one.shape[0])
        share = weight / len(rollout.transitions)
        conditioning = rollout.batch.conditioning
        return [
            partial(self._term, taken, conditioning, placed, clip, share)
            for taken in rollout.transitions
        ]

    def _term(
        self,
        taken: Transition,
        conditioning: Conditioning,
        advantages: Tensor,
        clip: float,
        weight: float,
    ) -> Term:
        o = self.config.objective
        anchor = taken.mean
        if o.kl_weight and o.kl_reference == "ref":
            with torch.no_grad(), self.learner.trainable.swapped("ref"):
                anchor = self._replay(taken, conditioning).mean
        step = self._replay(taken, conditioning)
        if advantages.ndim == 1:
            ratios = log_ratio(step, taken.log_prob, taken.mean, o.guard)
        else:
            ratios = log_ratio_map(step, taken.x_next, taken.mean, o.guard)
        found = policy_loss(ratios, advantages, clip)
        kl = gaussian_kl(step.mean, anchor, step.std).mean()
        if o.guard == "scaled":  # so that all steps weigh alike, as in GRPO-Guard
            found = replace(found, loss=found.loss / (taken.t - taken.t_next))
        metrics = {
            "loss": float(found.loss.detach()) * weight,
            "kl": float(kl.detach()) * weight,
            "clipped": found.clipped * weight,
        }
        return Term((found.loss + o.kl_weight * kl) * weight, metrics)

    def _replay(self, taken: Transition, conditioning: Conditioning) -> flow.Step:
        """The recorded step under the current weights."""
        step, _ = advance(
            self.learner.policy,
            taken.x,
            taken.t,
            taken.t_next,
            {"conditioning": conditioning},
            kind=self.config.rollout.kind,
            eta=taken.eta,
            x_next=taken.x_next,
        )
        return step
