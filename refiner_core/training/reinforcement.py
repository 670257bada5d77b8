"""What the objectives of stage 2 share: groups of samples, their rewards and their advantages.

An epoch draws groups of samples, scores them against the target, turns the scores into advantages
among siblings, and makes a few updates on them (arXiv 2511.19990 figure 2, 2505.05470).
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .advantages import RunningSpread, advantage_maps, group_advantages
from .adversarial import LearningReward
from .config import GrpoConfig
from .dataset import Batch, Item, Reward, collate
from .objective import Learner, Objective, Term, Update
from .rollout import Rollout, RolloutSeeds, group_mean, item_order, rollout_seeds


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout of a group and the rewards of its samples.

    With `is_mean` every x0 is the mean of the group's samples.
    """

    rollout: Rollout
    group: int
    rewards: dict[str, Tensor]
    is_mean: bool = False
    maps: Tensor | None = None  # advantages of each place, B 1 h w on the latent's grid
    kind: str = ""  # of the item's detail


def fill_missing(rewards: Tensor) -> tuple[Tensor, int]:
    """A group's rewards with the mean of the others where one is not finite, and how many are not.

    So a sample without a score is neither learnt from nor pushed away in that part; a group without
    any score has no spread.
    """
    known = torch.isfinite(rewards)
    mean = rewards[known].mean() if bool(known.any()) else rewards.new_zeros(())
    return torch.where(known, rewards, mean), int((~known).sum())


def kind_number(kind: str) -> int:
    """A number for a kind of detail that is the same in every process and run."""
    return zlib.crc32(kind.encode())


class ReinforcementObjective(Objective):
    """Learn from the rewards of groups of samples; subclasses say how."""

    metrics = ("loss", "kl", "clipped")
    copies = ("old", "ref")

    def __init__(self, config: GrpoConfig, learner: Learner, reward: Reward) -> None:
        self.config, self.learner, self.reward = config, learner, reward
        config.check_processes(learner.processes.count)
        self.updates = config.objective.updates
        self._running = RunningSpread(config.objective.spread_decay)
        self._adversary = reward.adversary if isinstance(reward, LearningReward) else None
        self._step = 0
        self._missing: dict[str, int] = {}  # rewards that were not finite, by name
        self._scored: list[tuple[ScoredRollout, Tensor]] = []  # with advantages, empty if dropped

    # --- what the algorithms differ in -------------------------------------------------------------

    @abstractmethod
    def sample(self, batch: Batch, sigmas: Tensor, seeds: RolloutSeeds) -> Rollout:
        """Draw one sample per row of the batch."""

    @abstractmethod
    def terms(
        self, scored: ScoredRollout, advantages: Tensor, weight: float
    ) -> list[Callable[[], Term]]:
        """The loss of a rollout in terms that are backpropagated one after the other.

        Args:
            advantages: of its samples, on the device.
            weight: of the rollout in the update; 0 for terms that are only computed.
        """

    def state(self) -> dict[str, float]:
        """The running spreads, and the reward that learns."""
        learnt = {} if self._adversary is None else self._adversary.state()
        return {**self._running.values, **learnt}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue with the numbers of a checkpoint."""
        spreads = state if self._adversary is None else self._adversary.restore(state)
        self._running.values = dict(spreads)

    # --- samples -----------------------------------------------------------------------------------

    def begin(self, step: int, skip: Callable[[str], None]) -> dict[str, float]:
        """Draw and score the samples of an epoch."""
        self._step = step
        self._missing = {}
        scored = self.collect(skip)
        advantages, kept = self.advantages(scored)
        self._scored = [
            (s, a if keep else a[:0]) for s, a, keep in zip(scored, advantages, kept, strict=True)
        ]
        metrics = self._reward_metrics(scored)
        if self._adversary is not None:
            metrics |= self._adversary.learn(self.learner.processes)
        metrics["dropped"] = self.learner.processes.mean(1 - sum(kept) / len(kept))
        if metrics["dropped"] == 1:
            self._say_nothing_is_learnt(metrics)
        return metrics

    def _say_nothing_is_learnt(self, metrics: Mapping[str, float]) -> None:
        o = self.config.objective
        spreads = [f"{k} {metrics[f'spread/{k}']:.2g}" for k, weight in o.rewards.items() if weight]
        self.learner.processes.log(
            f"step {self._step}: nothing is learnt, since no group has a spread above objective.floor = "
            f"{o.floor:g}. Mean spreads: {', '.join(spreads)}. If these are real differences, lower "
            "objective.floor."
        )

    def collect(self, skip: Callable[[str], None]) -> list[ScoredRollout]:
        """Draw and score this process's share of the groups."""
        settings, processes = self.config.rollout, self.learner.processes
        items = item_order(
            len(self.learner.dataset), settings.groups, self.config.run.seed, self._step
        )
        share = settings.groups // processes.count
        # Neighbouring groups, so that each update gets some from every process.
        first = processes.rank * share
        out: list[ScoredRollout] = []
        for group in range(first, first + share):
            out += self._collect_group(group, self.learner.dataset[items[group]], skip)
        return out

    def _collect_group(
        self, group: int, item: Item, skip: Callable[[str], None]
    ) -> list[ScoredRollout]:
        rollouts = self._roll_out_group(group, item)
        assert item.pixels is not None, "the data set was prepared without pixels"
        means = group_mean(rollouts) if self.config.rollout.group_mean else []
        latents = [r.x0 for r in rollouts] + [m.x0[:1] for m in means[:1]]
        rewards, finite, images = self._score(latents, item)
        maps = self._maps(images, item) if self.config.objective.map_share and finite else None
        if not finite:
            skip(f"a group whose samples of {item.id} are not finite")
            # Equal rewards have no spread, so that nothing is learnt from the group.
            rewards = {k: torch.zeros_like(v) for k, v in rewards.items()}
        scored: list[ScoredRollout] = []
        at = 0
        for rollout in rollouts:
            part = slice(at, at + len(rollout.x0))
            at = part.stop
            own = {k: v[part] for k, v in rewards.items()}
            placed = None if maps is None else maps[part]
            scored.append(ScoredRollout(rollout, group, own, maps=placed, kind=item.kind))
        for mean in means:
            same = {k: v[at:].expand(len(mean.x0)) for k, v in rewards.items()}
            placed = None if maps is None else maps[at:].expand(len(mean.x0), -1, -1, -1)
            scored.append(ScoredRollout(mean, group, same, True, placed, item.kind))
        return scored

    def _roll_out_group(self, group: int, item: Item) -> list[Rollout]:
        learner, settings, run = self.learner, self.config.rollout, self.config.run
        sigmas = learner.schedule(item.shape[0], settings.steps)
        texts = [learner.text(item.prompt)] * run.micro_batch
        batch = collate(
            [item] * run.micro_batch,
            texts,
            learner.recipe,
            settings.guidance,
            learner.policy.device,
        )
        return [
            self.sample(batch, sigmas, self._seeds(group, range(at, at + run.micro_batch)))
            for at in range(0, settings.group, run.micro_batch)
        ]

    def _seeds(self, group: int, siblings: Sequence[int]) -> RolloutSeeds:
        same_start = self.config.rollout.same_noise
        return rollout_seeds(self.config.run.seed, self._step, group, siblings, same_start)

    @torch.no_grad()
    def _score(
        self, latents: Sequence[Tensor], item: Item
    ) -> tuple[dict[str, Tensor], bool, Tensor]:
        """The rewards of a group's samples together, whether they are finite, and the images."""
        assert item.pixels is not None, "the data set was prepared without pixels"
        images = torch.cat([self.learner.decode(x0).float().clamp(0, 1) for x0 in latents])
        rewards = self.reward(images.nan_to_num(), item.pixels)
        filled: dict[str, Tensor] = {}
        for name, values in rewards.items():
            filled[name], missing = fill_missing(values.float().cpu())
            self._missing[name] = self._missing.get(name, 0) + missing
        if self._adversary is not None:
            # The truth as the codec shows it, whose residue would otherwise give samples away.
            truth = self.learner.decode(item.target.to(images)).float().clamp(0, 1)
            self._adversary.show(images, truth, item.pixels.mask)
        return filled, bool(torch.isfinite(images).all()), images

    def _maps(self, images: Tensor, item: Item) -> Tensor:
        """Advantages of each place by its own squared error, pooled to 2x2 latent pixels."""
        assert item.pixels is not None, "the data set was prepared without pixels"
        error = (images - item.pixels.target.to(images)).square().mean(1, keepdim=True)
        size = (item.target.shape[-2], item.target.shape[-1])
        coarse = F.adaptive_avg_pool2d(-error, (max(1, size[0] // 2), max(1, size[1] // 2)))
        maps = advantage_maps(coarse, self.config.objective.floor**2)
        return F.interpolate(maps, size, mode="nearest") * item.mask.to(maps)

    def advantages(self, scored: Sequence[ScoredRollout]) -> tuple[list[Tensor], list[bool]]:
        """The advantages of each rollout's samples, and whether its group is kept.

        Raises:
            ValueError: a weighted reward does not exist.
        """
        o, processes = self.config.objective, self.learner.processes
        groups = torch.cat([torch.full((len(s.rollout.x0),), s.group) for s in scored])
        kinds = torch.cat([torch.full((len(s.rollout.x0),), kind_number(s.kind)) for s in scored])
        rewards = {k: torch.cat([s.rewards[k] for s in scored]) for k in scored[0].rewards}
        unknown = {k for k, weight in o.rewards.items() if weight} - rewards.keys()
        if unknown:
            raise ValueError(
                f"objective.rewards names {', '.join(sorted(unknown))}, but the rewards are "
                f"{', '.join(rewards)}."
            )
        value, kept = group_advantages(
            {k: processes.gather(v) for k, v in rewards.items()},
            processes.gather(groups),
            o.rewards,
            combine=o.combine,
            spread=self._running if o.spread == "running" else o.spread,
            floor=o.floor,
            tame=o.tame,
            kinds=processes.gather(kinds),
        )
        mine = slice(processes.rank * len(groups), (processes.rank + 1) * len(groups))
        sizes = [len(s.rollout.x0) for s in scored]
        return list(value[mine].split(sizes)), [bool(k.any()) for k in kept[mine].split(sizes)]

    def _reward_metrics(self, scored: Sequence[ScoredRollout]) -> dict[str, float]:
        """Mean reward of the samples, and mean spread within the groups."""
        processes, out = self.learner.processes, {}
        samples = [s for s in scored if not s.is_mean]
        for name in samples[0].rewards:
            values = torch.cat([s.rewards[name] for s in samples])
            out[f"reward/{name}"] = processes.mean(float(values.mean()))
            groups: dict[int, list[Tensor]] = {}
            for s in samples:
                groups.setdefault(s.group, []).append(s.rewards[name])
            spread = [float(torch.cat(g).std()) for g in groups.values()]
            out[f"spread/{name}"] = processes.mean(sum(spread) / len(spread))
        return out | self._missing_metrics()

    def _missing_metrics(self) -> dict[str, float]:
        """How many samples lack a part of the reward; named only where one does."""
        sums = {k: self.learner.processes.sum(float(n)) for k, n in self._missing.items()}
        found = {k: n for k, n in sums.items() if n}
        if found:
            counts = ", ".join(f"{k} of {n:.0f}" for k, n in found.items())
            self.learner.processes.log(
                f"step {self._step}: samples without a part of the reward, which get the mean of their "
                f"siblings: {counts}"
            )
        return {f"missing/{k}": n for k, n in found.items()}

    # --- updates -----------------------------------------------------------------------------------

    def update(self, number: int) -> Update:
        """The mean over all samples of every `updates`th group, starting with group `number`."""
        mine = [(s, a) for s, a in self._scored if len(a) and s.group % self.updates == number]
        total = self.learner.processes.sum(float(sum(len(a) for _, a in mine)))
        device = self.learner.policy.device
        terms = [t for s, a in mine for t in self.terms(s, a.to(device), len(a) / total)]
        first = self._scored[0][0]
        nothing = torch.zeros(len(first.rollout.x0), device=device)
        return Update(terms, self.terms(first, nothing, 0.0)[0], lambda: f"update {number}")
