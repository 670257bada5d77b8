"""Draws groups of samples from a policy and records the stochastic steps it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..sampling import Transition, draw_noise_rows, sample
from .config import RolloutSettings
from .dataset import Batch
from .policy import Policy


@dataclass(frozen=True)
class Rollout:
    """Samples of one item: the inputs, x0 and starting noise `B C h w`, and the stochastic steps."""

    batch: Batch
    x0: Tensor
    start: Tensor
    transitions: tuple[Transition, ...]


def derive_seed(*parts: int) -> int:
    """A seed of up to 63 bits that follows from the parts."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


# Sets apart the three kinds of seeds of a group.
_START, _STEPS, _WINDOW = 1, 2, 3


@dataclass(frozen=True)
class RolloutSeeds:
    """The seeds of some samples of one group."""

    start: tuple[int, ...]  # of the starting noise of each sample
    steps: tuple[int, ...]  # of the noise that each sample's stochastic steps add
    window: int  # of the place of the stochastic steps, shared by the group
    epoch: int = 0


def rollout_seeds(
    seed: int, epoch: int, group: int, siblings: Sequence[int], same_start: bool
) -> RolloutSeeds:
    """Seeds that follow from the run's seed, the epoch, the group and the sibling alone.

    They depend neither on the micro-batch nor on the process, which are matters of memory.

    Args:
        siblings: numbers of the samples within their group.
        same_start: whether all siblings start from the same noise.
    """

    def seeds(kind: int, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(derive_seed(seed, epoch, group, kind, n) for n in numbers)

    start = [0] * len(siblings) if same_start else siblings
    window = derive_seed(seed, epoch, group, _WINDOW)
    return RolloutSeeds(seeds(_START, start), seeds(_STEPS, siblings), window, epoch)


def item_order(items: int, count: int, seed: int, epoch: int) -> list[int]:
    """The `count` items that an epoch uses: each epoch continues through random orders of all."""
    chosen = []
    for position in range(epoch * count, (epoch + 1) * count):
        order = np.random.default_rng([seed, position // items, 23]).permutation(items)
        chosen.append(int(order[position % items]))
    return chosen


def place_window(steps: int, length: int, seed: int) -> tuple[int, int]:
    """`(first, end)` of `length` stochastic steps: a random place in the first half of the schedule,
    into which they must fit (`RolloutSettings.check_window`).

    Early steps decide what is painted, and their log-probabilities carry the least rounding error.
    The deterministic steps after them remove the noise, so that the reward sees a clean image.
    """
    half = max(1, steps // 2)
    first = int(np.random.default_rng([seed, 29]).integers(half - length + 1))
    return first, first + length


def moving_window(steps: int, length: int, position: int) -> tuple[int, int]:
    """`(first, end)` of `length` stochastic steps at a position that moves through the first half of
    the schedule again and again (MixGRPO, arXiv 2507.21802).
    """
    half = max(1, steps // 2)
    first = position % (half - length + 1)
    return first, first + length


def eta_schedule(steps: int, window: tuple[int, int], first: float, last: float) -> list[float]:
    """The noise of every step: from `first` to `last` over the window, linearly."""
    begin, end = window
    span = max(1, end - begin - 1)
    shares = (min(1.0, max(0.0, (i - begin) / span)) for i in range(steps))
    return [first + (last - first) * share for share in shares]


def group_mean(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of a group with the mean of all its samples in place of each sample.

    A sampler that stays at high noise gives nearly the same image for every seed; samples differ by a
    residue of their own noise. Their mean has less of that residue and differs in nothing else. From
    each noise of the group the refiner learns to paint the mean, as far as the reward prefers it to
    the samples.
    """
    mean = torch.cat([r.x0 for r in rollouts]).mean(0, keepdim=True)
    return [replace(r, x0=mean.expand_as(r.x0)) for r in rollouts]


@torch.no_grad()
def roll_out(
    policy: Policy,
    batch: Batch,
    sigmas: Tensor,
    settings: RolloutSettings,
    seeds: RolloutSeeds,
    *,
    stochastic: bool = True,
) -> Rollout:
    """Sample every row of a batch (siblings of one item) once.

    Args:
        sigmas: the schedule.
        seeds: of the rows and of the window.
        stochastic: whether the steps in the window are; DiffusionNFT samples deterministically.
    """
    steps = len(sigmas) - 1
    window = place_window(steps, settings.window, seeds.window)
    if settings.window_every:
        position = seeds.epoch // settings.window_every
        window = moving_window(steps, settings.window, position)
    start = draw_noise_rows(tuple(batch.target.shape), seeds.start).to(batch.target)
    begin, x = _shared_prefix(policy, batch, sigmas, start, window, stochastic)
    eta: float | list[float] = settings.eta
    if settings.eta_end is not None:
        eta = eta_schedule(steps, window, settings.eta, settings.eta_end)[begin:]
    taken: list[Transition] = []
    x0 = sample(
        policy,
        x,
        sigmas[begin:],
        {"conditioning": batch.conditioning},
        kind=settings.kind if stochastic else "ode",
        eta=eta,
        window=(window[0] - begin, window[1] - begin),
        noise_seed=seeds.steps,
        record=taken.append,
    )
    return Rollout(batch, x0, start, tuple(taken))


def _shared_prefix(
    policy: Policy,
    batch: Batch,
    sigmas: Tensor,
    start: Tensor,
    window: tuple[int, int],
    stochastic: bool,
) -> tuple[int, Tensor]:
    """The steps before the window, taken once for samples that start from the same noise.

    Returns:
        the number of steps taken, and the states after them.
    """
    same = len(start) > 1 and bool((start == start[:1]).all())
    if not stochastic or not same or window[0] == 0:
        return 0, start
    c = batch.conditioning
    one = replace(
        c,
        references=tuple(r[:1] for r in c.references),
        text=c.text[:1],
        pooled=c.pooled[:1],
    )
    x = sample(policy, start[:1], sigmas[: window[0] + 1], {"conditioning": one})
    return window[0], x.expand_as(start).contiguous()
