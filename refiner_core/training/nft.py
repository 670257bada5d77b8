"""DiffusionNFT: learning from rewards by the forward process, with a deterministic sampler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import flow
from .advantages import placed_advantages
from .dataset import Batch
from .losses import nft_loss, nft_share
from .objective import Term
from .reinforcement import ReinforcementObjective, ScoredRollout
from .rollout import Rollout, RolloutSeeds, derive_seed, roll_out

_NOISE = 1 << 20  # sets the seeds of the levels apart from those of the samples


class NftObjective(ReinforcementObjective):
    """Pull towards good samples and push away from bad ones at random noise levels
    (arXiv 2509.16117).
    """

    def sample(self, batch: Batch, sigmas: Tensor, seeds: RolloutSeeds) -> Rollout:
        """Deterministic samples of the old policy."""
        with self.learner.trainable.swapped("old"):
            return roll_out(
                self.learner.policy, batch, sigmas, self.config.rollout, seeds, stochastic=False
            )

    def terms(
        self, scored: ScoredRollout, advantages: Tensor, weight: float
    ) -> list[Callable[[], Term]]:
        """One term per noise level.

        Siblings share the level and the noise: what they have in common then cancels, since their
        advantages add up to 0, and only what distinguishes them is learnt.
        """
        o, x0 = self.config.objective, scored.rollout.x0
        seed = derive_seed(self.config.run.seed, self._step, scored.group, _NOISE)
        generator = torch.Generator().manual_seed(seed)
        size = (x0.shape[-2], x0.shape[-1])
        levels = self.learner.schedule(size, self.config.rollout.steps)[:-1]
        terms: list[Callable[[], Term]] = []
        for _ in range(o.nft_levels):
            pick = torch.randint(len(levels), (1,), generator=generator)
            noise = torch.randn((1, *x0.shape[1:]), generator=generator).to(x0)
            if self.config.rollout.group_mean:
                noise = scored.rollout.start
            t = levels[pick].to(x0)
            terms.append(partial(self._term, scored, advantages, t, noise, weight / o.nft_levels))
        return terms

    def _term(
        self, scored: ScoredRollout, advantages: Tensor, t: Tensor, noise: Tensor, weight: float
    ) -> Term:
        o, policy, trainable = self.config.objective, self.learner.policy, self.learner.trainable
        x0, conditioning = scored.rollout.x0, scored.rollout.batch.conditioning
        t = t.expand(len(x0))
        x = flow.interpolate(x0, noise.expand_as(x0), t)
        with torch.no_grad(), trainable.swapped("old"):
            v_old = policy.velocity(x, t, conditioning)
        anchor = v_old
        if o.kl_weight and o.kl_reference == "ref":
            with torch.no_grad(), trainable.swapped("ref"):
                anchor = policy.velocity(x, t, conditioning)
        v = policy.velocity(x, t, conditioning)
        share = nft_share(placed_advantages(advantages, scored.maps, o.map_share))
        loss = nft_loss(v, v_old, x, t, x0, share, o.nft_beta, adaptive=o.nft_adaptive).mean()
        kl = (v - anchor).square().mean()
        metrics = {"loss": float(loss.detach()) * weight, "kl": float(kl.detach()) * weight}
        return Term((loss + o.kl_weight * kl) * weight, metrics)

    def end(self, step: int) -> None:
        """Let the old policy follow, faster with every epoch."""
        self.learner.trainable.ema("old", min(0.001 * (step + 1), 0.5))
