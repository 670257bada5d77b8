"""Group-relative advantages: how much better a sample is than its siblings (GRPO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Combine = Literal["each", "sum"]
Spread = Literal["group", "batch"]
LARGEST = 5.0


def _centred(reward: Tensor, groups: Tensor) -> Tensor:
    count = int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, groups, reward)
    sizes = torch.bincount(groups, minlength=count).clamp_min(1)
    return reward - (sums / sizes)[groups]


def _spread(centred: Tensor, groups: Tensor, spread: Spread) -> Tensor:
    if spread == "batch":
        return centred.square().mean().sqrt().expand_as(centred)
    count = int(groups.max()) + 1
    squares = torch.zeros(count, dtype=torch.float64).index_add(0, groups, centred.square())
    sizes = torch.bincount(groups, minlength=count).clamp_min(1)
    return (squares / sizes).sqrt()[groups]


def _normalised(reward: Tensor, groups: Tensor, spread: Spread, floor: float) -> Tensor:
    centred = _centred(reward, groups)
    flat = _spread(centred, groups, "group") <= floor
    scaled = centred / _spread(centred, groups, spread).clamp_min(floor)
    return torch.where(flat, torch.zeros_like(scaled), scaled)


def group_advantages(
    rewards: Mapping[str, Tensor],
    groups: Tensor,
    weights: Mapping[str, float],
    *,
    combine: Combine = "each",
    spread: Spread = "group",
    floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Advantages of N samples in groups that share their conditioning.

    Args:
        rewards: by name, N values each, higher is better.
        groups: N whole numbers; equal numbers are siblings.
        weights: of each reward; a reward that is not named is only logged.
        combine: "each" brings every reward to unit spread in its group before they are weighted
            and added, so that a reward of small spread counts as much as one of large spread;
            "sum" adds the raw rewards first (Flow-GRPO, arXiv 2505.05470).
        spread: divide by the group's own spread, or by the pooled spread within all groups of the
            batch (Flow-GRPO's `global_std` also counts the differences between cases).
        floor: a group whose spread is not above this carries no information and is dropped.

    Returns:
        advantages in [-5, 5] (float32), and which samples belong to groups that are kept.
    """
    table = {k: v.detach().double().cpu() for k, v in rewards.items() if weights.get(k, 0) != 0}
    groups = groups.cpu()
    if combine == "sum":
        total = torch.stack([weights[k] * v for k, v in table.items()]).sum(0)
        table, weights = {"sum": total}, {"sum": 1.0}
    parts = [weights[k] * _normalised(v, groups, spread, floor) for k, v in table.items()]
    weight = sum(abs(weights[k]) for k in table)
    advantage = torch.stack(parts).sum(0) / weight
    alive = torch.zeros(int(groups.max()) + 1, dtype=torch.bool)
    alive[groups[advantage != 0]] = True
    return advantage.clamp(-LARGEST, LARGEST).float(), alive[groups]
