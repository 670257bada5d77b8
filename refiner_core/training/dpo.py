"""Flow-DPO: learning from kept and rejected repairs (arXiv 2501.13918), and RankDPO (2410.18013)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import flow
from ..data.preferences import comparisons
from .batch_objective import BatchObjective
from .config_dpo import DpoConfig
from .dataset import Item, collate
from .losses import masked_means
from .objective import Learner, Term
from .preference_dataset import PreferenceDataset
from .supervised_loss import draw_timestep


def dpo_loss(kept: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """`-ln sigmoid(-beta / 2 (kept - rejected))`, one value per pair.

    Args:
        kept, rejected: how much larger the matching error of a repair is than under the reference.

    Returns:
        ln 2 where nothing has changed yet; there the gradient is `beta / 4` times that of the
        difference of the errors.
    """
    return -F.logsigmoid(-beta / 2 * (kept - rejected))


def rank_weight(better: int, worse: int, count: int) -> float:
    """RankDPO's weight of a pair of places: `|2^a - 2^b| |1 / ln(1 + i) - 1 / ln(1 + j)|`.

    Places count from 1 to `count`. As scores a, b the places themselves serve, from 1 for the first to
    0 for the last, since orders come without scores.
    """
    gains = [2 ** ((count - place) / max(1, count - 1)) for place in (better, worse)]
    discounts = [1 / math.log(1 + place) for place in (better, worse)]
    return abs(gains[0] - gains[1]) * abs(discounts[0] - discounts[1])


def place_weights(kept: Tensor, rejected: Tensor, mask: Tensor, share: float) -> Tensor:
    """`(1 - share) + share d(p) / mean d` of the squared difference d of two repairs, `1 1 h w`.

    PatchDPO (arXiv 2412.03177) weighs patches by a quality that a vision model estimates; here the
    difference of the two repairs stands in for it. It is averaged over squares of 2x2 latent pixels,
    since single ones are mostly noise, and divided by its mean inside and outside the region, so that
    neither gains weight over the other; where the two are equal, it is 0.

    Args:
        kept, rejected: latents `1 C h w`.
        mask: the region, `1 1 h w`.
    """
    apart = (kept - rejected).float().square().mean(1, keepdim=True)
    size = (apart.shape[-2], apart.shape[-1])
    coarse = F.adaptive_avg_pool2d(apart, (max(1, size[0] // 2), max(1, size[1] // 2)))
    apart = F.interpolate(coarse, size, mode="nearest")
    mean = sum(part * (apart * part).sum() / part.sum().clamp_min(1) for part in (mask, 1 - mask))
    return (1 - share) + share * apart / (mean + (mean == 0))


class DpoObjective(BatchObjective):
    """Make kept repairs more probable than rejected ones, compared with the start of the run.

    All repairs of a case see the same noise at the same level, so that only what distinguishes them
    counts.
    """

    metrics = ("loss", "accuracy", "kept", "rejected")
    copies = ("ref",)

    def __init__(self, config: DpoConfig, learner: Learner) -> None:
        super().__init__(config, learner)
        self.config = config

    def term(self, items: Sequence[Item], places: Sequence[int], weight: float) -> Term:
        """The loss of the pairs of some cases."""
        totals = dict.fromkeys(self.metrics, 0.0)
        losses: list[Tensor] = []
        for place in places:
            loss, metrics = self._case(place)
            losses.append(loss)
            for key, value in metrics.items():
                totals[key] += value * weight / len(places)
        return Term(torch.stack(losses).mean() * weight, totals)

    def _case(self, place: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one case, whose repairs are one batch."""
        dataset = self.learner.dataset
        assert isinstance(dataset, PreferenceDataset), "opened with preferences"
        (generator,) = self.generators([place])
        repairs = dataset.repairs(self.indices()[place])
        pairs = comparisons([rank for rank, _ in repairs])
        weights = [rank_weight(repairs[i][0], repairs[j][0], repairs[-1][0]) for i, j in pairs]
        if not self.config.objective.ranked:
            chosen = int(torch.randint(len(pairs), (1,), generator=generator))
            pair = pairs[chosen]
            repairs, pairs, weights = [repairs[i] for i in pair], [(0, 1)], [1.0]
        items = [item for _, item in repairs]
        change = self._changes(items, generator)
        better, worse = self._pair_means(items, change, pairs)
        loss = dpo_loss(better, worse, self.config.objective.beta)
        loss = (loss * loss.new_tensor(weights)).sum()
        return loss, {
            "loss": float(loss.detach()),
            "accuracy": float((better < worse).float().mean()),
            "kept": float(better.detach().mean()),
            "rejected": float(worse.detach().mean()),
        }

    def _pair_means(
        self, items: Sequence[Item], change: Tensor, pairs: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The mean change of the kept and of the rejected repair of each pair."""
        share, o = self.config.objective.map_share, self.config.loss
        mask = items[0].mask.to(change)
        weights = torch.cat(
            [
                place_weights(items[i].target, items[j].target, items[0].mask, share)
                for i, j in pairs
            ]
        ).to(change)
        used = (mask if o.masked else torch.zeros_like(mask)).expand(len(pairs), -1, -1, -1)
        kept, rejected = (
            masked_means(change[at] * weights, used, region=o.region, background=o.background)
            for at in ([i for i, _ in pairs], [j for _, j in pairs])
        )
        return kept, rejected

    def _changes(self, items: Sequence[Item], generator: torch.Generator) -> Tensor:
        """How much larger each repair's error is than under the reference, at each place, B C h w."""
        learner, o = self.learner, self.config.loss
        t = draw_timestep(o, items[0], learner.recipe, generator)
        noise = torch.randn(items[0].target.shape, generator=generator)
        texts = [learner.text(i.prompt) for i in items]
        batch = collate(items, texts, learner.recipe, o.guidance, learner.policy.device)
        t, noise = t.to(batch.target).expand(len(items)), noise.to(batch.target)
        x = flow.interpolate(batch.target, noise, t)
        target = flow.velocity_target(batch.target, noise)

        def errors() -> Tensor:
            v = learner.policy.velocity(x, t, batch.conditioning)
            return (v.float() - target.float()).square()

        with torch.no_grad(), learner.trainable.swapped("ref"):
            reference = errors()
        return errors() - reference
