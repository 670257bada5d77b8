"""Draws groups of samples from a policy and remembers the random steps it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..sampling import Transition, draw_noise, sample
from .config import RolloutSettings
from .dataset import Batch
from .policy import Policy


@dataclass(frozen=True)
class Rollout:
    """Some samples of one case: its inputs, their x0 and starting noise `B C h w`, and the random
    steps taken.
    """

    batch: Batch
    x0: Tensor
    start: Tensor
    transitions: tuple[Transition, ...]


def case_seed(*parts: int) -> int:
    """A seed of up to 63 bits that follows from the parts."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


def case_order(cases: int, count: int, seed: int, epoch: int) -> list[int]:
    """Which cases an epoch looks at: one after the other through random orders of all of them."""
    picked = []
    for position in range(epoch * count, (epoch + 1) * count):
        order = np.random.default_rng([seed, position // cases, 23]).permutation(cases)
        picked.append(int(order[position % cases]))
    return picked


def place_window(steps: int, length: int, seed: int) -> tuple[int, int]:
    """`(first, end)` of the random steps: somewhere in the first half of the schedule.

    Early steps decide what is painted, and their log-probabilities carry the least rounding error;
    the ODE that follows takes the noise out, so that the reward sees a clean picture.
    """
    half = max(1, steps // 2)
    length = min(length, half)
    first = int(np.random.default_rng([seed, 29]).integers(half - length + 1))
    return first, first + length


def consensus(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """A group's rollouts with the mean of all its samples in the place of each.

    A sampler that stays at high noise gives nearly the same picture from every seed, and what tells
    samples apart is a residue of their noise, which no other case shares. The mean has less of it
    and differs in nothing else. From every one of the group's noises the refiner learns to paint
    what they agree on, as far as the reward prefers that to the samples.
    """
    mean = torch.cat([r.x0 for r in rollouts]).mean(0, keepdim=True)
    return [replace(r, x0=mean.expand_as(r.x0)) for r in rollouts]


@torch.no_grad()
def roll_out(
    policy: Policy, batch: Batch, sigmas: Tensor, settings: RolloutSettings, seed: int,
    *, random: bool = True,
) -> Rollout:  # fmt: skip
    """Sample every row of a batch (siblings of one case) once.

    Args:
        sigmas: the schedule.
        seed: of the starting noise and of the steps'; the window follows from it as well.
        random: whether the window's steps are stochastic; DiffusionNFT samples by the ODE alone.
    """
    window = place_window(len(sigmas) - 1, settings.window, seed)
    shape = tuple(batch.target.shape)
    start = draw_noise((1, *shape[1:]) if settings.same_noise else shape, seed)
    start = start.expand(shape).to(batch.target)
    taken: list[Transition] = []
    x0 = sample(
        policy, start, sigmas, {"conditioning": batch.conditioning},
        kind=settings.kind if random else "ode", eta=settings.eta, window=window,
        noise_seed=seed ^ 0x5DEECE66D, record=taken.append,
    )  # fmt: skip
    return Rollout(batch, x0, start, tuple(taken))
