"""Group-relative advantages: how much better a sample is than its siblings (GRPO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Combine = Literal["each", "sum", "gdpo", "pareto"]
Spread = Literal["group", "batch", "running"]
LARGEST = 5.0


class RunningSpread:
    """The spread within groups by part of the reward and kind of detail, averaged over epochs.

    A group of a few samples says little about how large a deviation is; other groups of the same kind
    (words, logos, patterns), also those of earlier epochs, say more (EMA-GRPO of OneThinker).

    `values` are the averages by "part/kind"; they are all of the state.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, float] = {}

    def see(self, part: str, centred: Tensor, kinds: Tensor, flat: Tensor) -> Tensor:
        """Take the deviations of an epoch into the averages; the average of each sample's kind.

        Args:
            centred: N deviations from the mean of the group.
            kinds: N numbers of kinds.
            flat: N, whether the sample's group has no spread, and so says nothing.
        """
        out = torch.zeros_like(centred)
        for kind in kinds.unique().tolist():
            key, own = f"{part}/{kind}", kinds == kind
            if bool((own & ~flat).any()):
                now = float(centred[own & ~flat].square().mean().sqrt())
                before = self.values.get(key, now)
                self.values[key] = self.decay * before + (1 - self.decay) * now
            out[own] = self.values.get(key, 0.0)
        return out


def _centred(reward: Tensor, groups: Tensor) -> Tensor:
    count = int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, groups, reward)
    sizes = torch.bincount(groups, minlength=count).clamp_min(1)
    return reward - (sums / sizes)[groups]


def _spread(centred: Tensor, groups: Tensor) -> Tensor:
    """The root mean square deviation of each sample's group."""
    count = int(groups.max()) + 1
    squares = torch.zeros(count, dtype=torch.float64).index_add(0, groups, centred.square())
    sizes = torch.bincount(groups, minlength=count).clamp_min(1)
    return (squares / sizes).sqrt()[groups]


def _normalised(
    part: str,
    reward: Tensor,
    groups: Tensor,
    scale: Spread | RunningSpread,
    floor: float,
    kinds: Tensor,
) -> Tensor:
    centred = _centred(reward, groups)
    spread = _spread(centred, groups)
    flat = spread <= floor
    if isinstance(scale, RunningSpread):
        spread = scale.see(part, centred, kinds, flat)
    elif scale == "batch":
        spread = centred.square().mean().sqrt().expand_as(centred)
    scaled = centred / spread.clamp_min(floor)
    return torch.where(flat, torch.zeros_like(scaled), scaled)


def _tamed(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loud rewards as `ln(1 + R)`: those whose spread over the batch, relative to their mean, is above
    the mean of the parts' (PaCo-RL, arXiv 2512.04784).

    Raises:
        ValueError: a reward of -1 or less, which has no `ln(1 + R)`.
    """
    for name, values in table.items():
        if float(values.min()) <= -1:
            raise ValueError(
                f"objective.tame takes ln(1 + R), but the reward {name} is {float(values.min()):g}. "
                "Set it to false."
            )
    loudness = {k: float(v.std() / v.mean().abs().clamp_min(1e-12)) for k, v in table.items()}
    mean = sum(loudness.values()) / len(loudness)
    return {k: v.log1p() if loudness[k] > mean else v for k, v in table.items()}


def pareto_set(rewards: Tensor, groups: Tensor) -> Tensor:
    """Which of N samples no sibling beats: in no part worse than it and in one better.

    Args:
        rewards: parts times N, higher is better.
        groups: N whole numbers; equal numbers are siblings.
    """
    siblings = groups[:, None] == groups[None, :]
    at_least = (rewards[:, None, :] >= rewards[:, :, None]).all(0)  # [i, j]: j is not worse than i
    better = (rewards[:, None, :] > rewards[:, :, None]).any(0)
    return ~(siblings & at_least & better).any(1)


def group_advantages(
    rewards: Mapping[str, Tensor],
    groups: Tensor,
    weights: Mapping[str, float],
    *,
    combine: Combine = "each",
    spread: Spread | RunningSpread = "group",
    floor: float = 1e-4,
    tame: bool = False,
    kinds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages of N samples in groups that share their conditioning.

    Args:
        rewards: by name, N values each, higher is better.
        groups: N whole numbers; equal numbers are siblings.
        weights: of each reward; a reward that is not named is only logged.
        combine: "each" brings every reward to unit spread in its group before they are weighted
            and added, so that a reward of small spread counts as much as one of large spread;
            "sum" adds the raw rewards first (Flow-GRPO, arXiv 2505.05470); "gdpo" is "each" brought
            to mean 0 and spread 1 over the batch (GDPO, arXiv 2601.05242), since the mean of several
            parts has a smaller spread than each; "pareto" is "each" for the samples that no sibling
            beats in every part, and 0 for the others (Parrot, arXiv 2401.05675).
        spread: divide by the group's own spread, or by the pooled spread within all groups of the
            batch (Flow-GRPO's `global_std` also counts the differences between cases), or by the
            running spread of the kind of detail, which takes in this batch.
        floor: a group whose spread is not above this carries no information and is dropped.
        tame: take the logarithm of loud rewards first (PaCo-RL).
        kinds: N numbers of kinds of detail, for the running spread; None: all are of one kind.

    Returns:
        advantages in [-5, 5] (float32), and which samples belong to groups that are kept.

    Raises:
        ValueError: `tame` with rewards of -1 or less, which have no `ln(1 + R)`.
    """
    table = {k: v.detach().double().cpu() for k, v in rewards.items() if weights.get(k, 0) != 0}
    groups = groups.cpu()
    best = pareto_set(torch.stack([weights[k] * v for k, v in table.items()]), groups)
    if tame:
        table = _tamed(table)
    if combine == "sum":
        total = torch.stack([weights[k] * v for k, v in table.items()]).sum(0)
        table, weights = {"sum": total}, {"sum": 1.0}
    kinds = torch.zeros_like(groups) if kinds is None else kinds.cpu()
    parts = [weights[k] * _normalised(k, v, groups, spread, floor, kinds) for k, v in table.items()]
    weight = sum(abs(weights[k]) for k in table)
    advantage = torch.stack(parts).sum(0) / weight
    if combine == "pareto":
        advantage = torch.where(best, advantage, torch.zeros_like(advantage))
    alive = torch.zeros(int(groups.max()) + 1, dtype=torch.bool)
    alive[groups[advantage != 0]] = True
    if combine == "gdpo":
        advantage = _over_batch(advantage, alive[groups])
    return advantage.clamp(-LARGEST, LARGEST).float(), alive[groups]


def _over_batch(advantage: Tensor, kept: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the samples that are kept."""
    if not bool(kept.any()):
        return advantage
    chosen = advantage[kept]
    spread = chosen.std(correction=0).clamp_min(1e-6)
    return torch.where(kept, (advantage - chosen.mean()) / spread, advantage)


def advantage_maps(rewards: Tensor, floor: float = 1e-4) -> Tensor:
    """Advantages of each place among siblings: `(R_i(p) - mean_j R_j(p)) / max(spread(p), floor)`.

    Args:
        rewards: G 1 h w, higher is better.
        floor: places whose spread is not above this get 0.

    Returns:
        G 1 h w in [-5, 5], of mean 0 over the siblings of each place.
    """
    centred = rewards - rewards.mean(0, keepdim=True)
    spread = centred.square().mean(0, keepdim=True).sqrt()
    maps = torch.where(spread > floor, centred / spread.clamp_min(floor), torch.zeros_like(centred))
    return maps.clamp(-LARGEST, LARGEST)


def placed_advantages(advantages: Tensor, maps: Tensor | None, share: float) -> Tensor:
    """`(1 - share) A + share A(p)`: `B` without maps, else `B 1 h w`."""
    if maps is None:
        return advantages
    return (1 - share) * advantages.reshape(-1, 1, 1, 1) + share * maps.to(advantages)
