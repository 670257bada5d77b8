"""Stage 2: group-relative policy optimisation of the sampler, and DiffusionNFT behind the same loop.

An epoch draws groups of samples, scores them against the truth, turns the scores into advantages
among siblings, and takes a few optimiser steps on them (arXiv 2511.19990 figure 2, 2505.05470).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import flow
from ..models.core_engine import Codec
from ..models.kontext import Conditioning
from ..recipes.recipe import Recipe
from ..sampling import Transition, advance
from .advantages import group_advantages
from .config import GrpoConfig
from .dataset import Pixels, View, Views, stack
from .distributed import Workers
from .losses import (
    clip_range,
    gaussian_kl,
    log_ratio,
    nft_loss,
    nft_share,
    policy_loss,
)
from .optimizers import make_optimizer, rate_at
from .policy import Policy
from .reward import Reward
from .rollout import Rollout, case_order, case_seed, consensus, roll_out
from .sft import MOST_SKIPPED
from .trainable import Trainable

TextOf = Callable[[str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judged:
    """A rollout and its samples' rewards; `agreed`: every x0 is the group's mean."""

    rollout: Rollout
    case: int
    group: int
    seed: int
    rewards: dict[str, Tensor]
    agreed: bool = False


class GrpoTrainer:
    """One policy and what it learns from.

    Args:
        config: the settings.
        policy: the network.
        trainable: its weights; copies "old" and "ref" are made here when they are missing.
        views: training cases with pixels.
        codec: to look at samples.
        reward: what they are worth.
        text: embeddings of a prompt.
        schedule: noise levels for a crop of (height, width) latent pixels.
        recipe: what is trained for: order and layout of the clean latents.
        workers: the processes that share the work.
    """

    def __init__(
        self, config: GrpoConfig, policy: Policy, trainable: Trainable, views: Views, codec: Codec,
        reward: Reward, text: TextOf, schedule: Callable[[tuple[int, int]], Tensor],
        recipe: Recipe, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self.config, self.policy, self.trainable = config, policy, trainable
        self.views, self.codec, self.reward = views, codec, reward
        self.text, self.schedule, self.recipe = text, schedule, recipe
        self.workers = workers or Workers()
        self.optimizer = make_optimizer(trainable, config.optimizer)
        for role in ("old", "ref", "ema") if config.optimizer.ema else ("old", "ref"):
            trainable.keep(role)
        self.epoch = 0
        self.updates = 0
        self.skipped = 0
        config.check_processes(self.workers.count)

    # --- samples ---------------------------------------------------------------------------------

    def collect(self) -> list[Judged]:
        """Draw and score this epoch's samples; each process its share of the groups."""
        settings = self.config.rollout
        picked = case_order(len(self.views), settings.groups, self.config.run.seed, self.epoch)
        share = settings.groups // self.workers.count
        first = (
            self.workers.rank * share
        )  # neighbours, so that every update has some of each process
        out: list[Judged] = []
        for group in range(first, first + share):
            out += self._group(group, picked[group])
        return out

    def _group(self, group: int, case: int) -> list[Judged]:
        view, run = self.views[case], self.config.run
        assert view.pixels is not None
        settings, sigmas = self.config.rollout, self.schedule(view.shape[0])
        seeds = [
            case_seed(run.seed, self.epoch, group, 0 if settings.same_noise else part)
            for part in range(0, settings.group, run.micro_batch)
        ]
        done = [self._sample(view, sigmas, seed) for seed in seeds]
        judged: list[Judged] = []
        broken = False
        for rollout, seed in zip(done, seeds, strict=True):
            rewards, finite = self._rewards(rollout.x0, view.pixels)
            broken = broken or not finite
            judged.append(Judged(rollout, case, group, seed, rewards))
        if settings.consensus:
            means = consensus(done)
            worth, _ = self._rewards(means[0].x0[:1], view.pixels)
            for rollout, seed in zip(means, seeds, strict=True):
                rewards = {k: v.expand(len(rollout.x0)) for k, v in worth.items()}
                judged.append(Judged(rollout, case, group, seed, rewards, agreed=True))
        if not broken:
            return judged
        self._count_skipped(f"samples of {view.id} are not finite; the group is skipped.")
        # Without spread a group is not learnt from.
        return [replace(j, rewards={k: 0 * v for k, v in j.rewards.items()}) for j in judged]

    def _rewards(self, x0: Tensor, pixels: Pixels) -> tuple[dict[str, Tensor], bool]:
        """What samples are worth, and whether they are finite."""
        images = self.codec.decode(x0).float().clamp(0, 1)
        found = self.reward(images.nan_to_num(), pixels)
        return {k: v.cpu() for k, v in found.items()}, bool(torch.isfinite(images).all())

    def _count_skipped(self, what: str) -> None:
        """Say what was left out; too much of it in a row ends the run.

        Raises:
            ValueError: it has happened twenty times since the last update.
        """
        self.skipped += 1
        self.workers.say(f"epoch {self.epoch}: {what}")
        if self.skipped >= MOST_SKIPPED:
            raise ValueError(
                f"{self.skipped} groups or gradients in a row were not finite. Lower optimizer.rate "
                f"(now {self.config.optimizer.rate:g}) or look at the data; the last checkpoint is "
                "from before."
            )

    def _sample(self, view: View, sigmas: Tensor, seed: int) -> Rollout:
        count = self.config.run.micro_batch
        batch = stack(
            [view] * count, [self.text(view.prompt)] * count, self.recipe,
            self.config.rollout.guidance, self.policy.device,
        )  # fmt: skip
        if self.config.objective.algorithm == "nft":
            with self.trainable.using("old"):
                return roll_out(self.policy, batch, sigmas, self.config.rollout, seed, random=False)
        return roll_out(self.policy, batch, sigmas, self.config.rollout, seed)

    def advantages(self, judged: list[Judged]) -> tuple[list[Tensor], list[bool]]:
        """Advantages of every rollout's samples, and which rollouts are worth learning from."""
        o = self.config.objective
        groups = torch.cat([torch.full((len(j.rollout.x0),), j.group) for j in judged])
        rewards = {k: torch.cat([j.rewards[k] for j in judged]) for k in judged[0].rewards}
        unknown = {k for k, weight in o.rewards.items() if weight} - rewards.keys()
        if unknown:
            raise ValueError(
                f"objective.rewards names {', '.join(sorted(unknown))}; this reward has "
                f"{', '.join(rewards)}."
            )
        value, alive = group_advantages(
            {k: self.workers.gather(v) for k, v in rewards.items()}, self.workers.gather(groups),
            o.rewards, combine=o.combine, spread=o.spread, floor=o.floor,
        )  # fmt: skip
        mine = slice(self.workers.rank * len(groups), (self.workers.rank + 1) * len(groups))
        sizes = [len(j.rollout.x0) for j in judged]
        return list(value[mine].split(sizes)), [bool(a.any()) for a in alive[mine].split(sizes)]

    # --- learning --------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One epoch; figures for the log."""
        if self.config.objective.algorithm == "grpo":
            self.trainable.keep("old")
        judged = self.collect()
        values, alive = self.advantages(judged)
        figures = self._reward_figures(judged)
        figures["dropped"] = self.workers.mean(1 - sum(alive) / len(alive))
        sums: dict[str, float] = {}
        updates = self.config.objective.updates
        for part in range(updates):
            mine = [
                (j, a) for j, a, keep in zip(judged, values, alive, strict=True)
                if keep and j.group % updates == part
            ]  # fmt: skip
            for key, value in self._update(mine, judged[0], self.epoch * updates + part).items():
                sums[key] = sums.get(key, 0.0) + value / updates
        if self.config.objective.algorithm == "nft":
            self.trainable.blend("old", min(0.001 * (self.epoch + 1), 0.5))
        self.epoch += 1
        return figures | sums

    def _reward_figures(self, judged: list[Judged]) -> dict[str, float]:
        """Of the samples alone: what the policy gets, and by how much siblings differ."""
        out = {}
        judged = [j for j in judged if not j.agreed]
        for name in judged[0].rewards:
            values = torch.cat([j.rewards[name] for j in judged])
            out[f"reward/{name}"] = self.workers.mean(float(values.mean()))
            groups: dict[int, list[Tensor]] = {}
            for j in judged:
                groups.setdefault(j.group, []).append(j.rewards[name])
            spread = [float(torch.cat(g).std()) for g in groups.values()]
            out[f"spread/{name}"] = self.workers.mean(sum(spread) / len(spread))
        return out

    def _update(
        self, samples: list[tuple[Judged, Tensor]], spare: Judged, number: int
    ) -> dict[str, float]:
        """One optimiser step on some rollouts, the run's `number`th: the mean over all their samples
        and levels.

        Where the base is divided, a process with fewer rollouts than another goes over `spare` for
        nothing, since they need one another's share of the base.
        """
        total = self.workers.sum(float(sum(len(a) for _, a in samples)))
        missing = 0
        if self.workers.sharding is not None:
            missing = int(self.workers.gather(torch.tensor([len(samples)])).max()) - len(samples)
        rate = self._set_rate(number)
        sums = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
        if total == 0:
            return {**sums, "norm": 0.0, "rate": rate}
        learn = self._learn_nft if self.config.objective.algorithm == "nft" else self._learn_grpo
        for _ in range(missing):
            learn(spare, torch.zeros(len(spare.rollout.x0), device=self.policy.device), 0.0)
        # After it, since 0 times what is not finite is no 0.
        self.optimizer.zero_grad(set_to_none=True)
        for judged, advantage in samples:
            found = learn(judged, advantage.to(self.policy.device), len(advantage) / total)
            for key, value in found.items():
                sums[key] += value
        sums = {k: self.workers.sum(v) for k, v in sums.items()}
        self.workers.sum_gradients(self.trainable.parameters.values())
        parameters = self.trainable.parameters.values()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip))
        if math.isfinite(norm):
            self.optimizer.step()
            self.updates += 1
            self.skipped = 0
            self._average()
        else:
            self._count_skipped("the gradient is not finite; the update is skipped.")
        return {**sums, "norm": norm, "rate": rate}

    def _set_rate(self, number: int) -> float:
        planned = self.config.run.max_steps * self.config.objective.updates
        rate = rate_at(self.config.optimizer, number, planned)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _average(self) -> None:
        o = self.config.optimizer
        if o.ema and self.updates % o.ema_every == 0:
            n = self.updates // o.ema_every
            self.trainable.blend("ema", min(o.ema, (1 + n) / (10 + n)))

    def _learn_grpo(self, judged: Judged, advantage: Tensor, share: float) -> dict[str, float]:
        done, o = judged.rollout, self.config.objective
        clip = clip_range(o.clip, done.x0[0].numel())
        sums = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
        for taken in done.transitions:
            weight = share / len(done.transitions)
            anchor = taken.mean
            if o.kl and o.kl_to == "ref":
                with torch.no_grad(), self.trainable.using("ref"):
                    anchor = self._again(taken, done.batch.conditioning).mean
            step = self._again(taken, done.batch.conditioning)
            ratios = log_ratio(step, taken.log_prob, taken.mean, o.guard)
            found = policy_loss(ratios, advantage, clip)
            kl = gaussian_kl(step.mean, anchor, step.std).mean()
            ((found.loss + o.kl * kl) * weight).backward()
            for key, value in (("loss", found.loss), ("kl", kl), ("clipped", found.clipped)):
                sums[key] += float(torch.as_tensor(value).detach()) * weight
        return sums

    def _again(self, taken: Transition, conditioning: Conditioning) -> flow.Step:
        r = self.config.rollout
        return advance(
            self.policy, taken.x, taken.t, taken.t_next, {"conditioning": conditioning},
            kind=r.kind, eta=r.eta, x_next=taken.x_next,
        )[0]  # fmt: skip

    def _learn_nft(self, judged: Judged, advantage: Tensor, share: float) -> dict[str, float]:
        done, o = judged.rollout, self.config.objective
        x0, conditioning = done.x0, done.batch.conditioning
        seed = case_seed(self.config.run.seed, self.epoch, judged.group, 1 << 20)
        generator = torch.Generator().manual_seed(seed)
        levels = self.schedule((x0.shape[-2], x0.shape[-1]))[:-1]
        sums = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
        for _ in range(o.nft_levels):
            weight = share / o.nft_levels
            # Siblings share the level, and fresh noise: what they have in common then cancels, since
            # their advantages sum to 0, and only what tells them apart is learnt.
            pick = torch.randint(len(levels), (1,), generator=generator)
            t = levels[pick].to(x0).expand(len(x0))
            noise = torch.randn((1, *x0.shape[1:]), generator=generator).to(x0).expand_as(x0)
            if self.config.rollout.consensus:
                noise = done.start
            x = flow.interpolate(x0, noise, t)
            with torch.no_grad(), self.trainable.using("old"):
                v_old = self.policy.velocity(x, t, conditioning)
            v_kl = v_old
            if o.kl and o.kl_to == "ref":
                with torch.no_grad(), self.trainable.using("ref"):
                    v_kl = self.policy.velocity(x, t, conditioning)
            v = self.policy.velocity(x, t, conditioning)
            loss = nft_loss(
                v, v_old, x, t, x0, nft_share(advantage), o.nft_beta, adaptive=o.nft_adaptive
            ).mean()
            kl = (v - v_kl).square().mean()
            ((loss + o.kl * kl) * weight).backward()
            sums["loss"] += float(loss.detach()) * weight
            sums["kl"] += float(kl.detach()) * weight
        return sums
