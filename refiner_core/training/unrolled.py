"""Learning through the reward: the sampler is unrolled, and the reward's gradient flows through it.

AlignProp (arXiv 2310.03739), DRaFT-K (2309.17400), ReFL (2304.05977); the chain that starts late is
InstructVideo's (2312.12490), the weight by uncertainty Ctrl-U's (2410.11236).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import flow
from ..models.kontext import Conditioning
from ..sampling import sample
from .batch_objective import BatchObjective
from .config_unrolled import UnrolledConfig
from .dataset import Batch, Item, Pixels, Reward, collate
from .objective import Learner, Term
from .policy import Policy
from .rollout import derive_seed
from .supervised_loss import SupervisedLoss

_TRUNCATION = 61  # sets the seed of an update's number of steps apart


class _StraightThroughClamp(torch.autograd.Function):
    """`clamp(0, 1)` whose gradient is that of the identity: logos are pure black and white, where
    the clamp has none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def clamp_straight_through(x: Tensor) -> Tensor:
    """Values held to [0, 1]; the gradient passes as if they were not."""
    return _StraightThroughClamp.apply(x)  # pyright: ignore[reportReturnType]


def first_gradient_step(steps: int, wanted: int | None, seed: int, truncation: str) -> int:
    """The first of `steps` steps that has a gradient.

    Args:
        wanted: last steps that may have one; None: all.
        seed: of the number of steps, or of the single step.
        truncation: "fixed", "random" or "single" (see `UnrollSettings`).
    """
    most = steps if wanted is None else min(wanted, steps)
    if truncation == "fixed":
        return steps - most
    drawn = torch.randint(most, (1,), generator=torch.Generator().manual_seed(seed))
    return steps - 1 - int(drawn)


class UnrolledObjective(BatchObjective):
    """Maximize the reward of what the sampler paints, by its gradient.

    Raises:
        ValueError: the batch cannot be split evenly over processes and micro-batches, or more steps
            are to have a gradient than the recipe takes.
    """

    metrics = ("loss", "reward", "uncertainty")

    def __init__(self, config: UnrolledConfig, learner: Learner, reward: Reward) -> None:
        super().__init__(config, learner)
        self.config, self.reward = config, reward
        wanted, steps = config.unroll.gradient_steps, config.unroll.steps
        if wanted is not None and steps is None and wanted > learner.recipe.steps:
            raise ValueError(
                f"unroll.gradient_steps = {wanted} is more than the {learner.recipe.steps} steps of the "
                f"recipe {learner.recipe.name}. Leave it empty for all of them, or set unroll.steps."
            )
        self._supervised = SupervisedLoss(config.loss, learner, config.run.seed)

    def term(self, items: Sequence[Item], places: Sequence[int], weight: float) -> Term:
        """Minus the weighted reward of one sample of each item."""
        images, before = self.unroll(items, places)
        pixels = _stacked([i.pixels for i in items])
        rewards = self._rewards(images, pixels)
        loss, uncertainty = -rewards, torch.zeros_like(rewards)
        balance = self.config.unroll.uncertainty
        if balance:
            assert before is not None
            uncertainty = (rewards - self._rewards(before, pixels)).abs()
            loss = loss * (-uncertainty).exp() + balance * uncertainty
        total = loss.mean()
        if self.config.objective.sft:
            others = self.others(places, self.config.loss.passes - 1)
            supervised = self._supervised(items, self.generators(places), self._step, others)
            total = total + self.config.objective.sft * supervised
        metrics = {"loss": total, "reward": rewards.mean(), "uncertainty": uncertainty.mean()}
        return Term(total * weight, {k: float(v.detach()) * weight for k, v in metrics.items()})

    def unroll(self, items: Sequence[Item], places: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """A sample of each item, B 3 H W in [0, 1], and the last but one estimate of it."""
        u = self.config.unroll
        generators = self.generators(places)
        batch = self._batch(items)
        sigmas = self.learner.schedule(items[0].shape[0], u.steps)
        x, sigmas = self._start(batch, sigmas, generators)
        first = first_gradient_step(
            len(sigmas) - 1,
            u.gradient_steps,
            derive_seed(self.run.seed, self._step, _TRUNCATION),
            u.truncation,
        )
        conditioning = {"conditioning": batch.conditioning}
        estimates: list[Tensor] = []
        with torch.no_grad():
            if first:
                policy = self.learner.policy
                x = sample(policy, x, sigmas[: first + 1], conditioning, _keep(estimates))
        model = _Checkpointed(self.learner.policy) if u.checkpointing else self.learner.policy
        if u.truncation == "single":
            x = model(x, x.new_full((len(x),), float(sigmas[first])), **conditioning)
            return self._decode(x), None
        x = sample(model, x, sigmas[first:], conditioning, _keep(estimates))
        before = self._decode(estimates[-2]) if u.uncertainty and len(estimates) > 1 else None
        if u.uncertainty and before is None:
            raise ValueError(
                f"unroll.uncertainty = {u.uncertainty:g} compares the last two steps, but the chain has "
                "one. Set it to 0, or more unroll.steps."
            )
        return self._decode(x), before

    def _batch(self, items: Sequence[Item]) -> Batch:
        learner = self.learner
        guidance = self.config.unroll.guidance
        guidance = learner.recipe.guidance if guidance is None else guidance
        texts = [learner.text(i.prompt) for i in items]
        return collate(items, texts, learner.recipe, guidance, learner.policy.device)

    def _start(
        self, batch: Batch, sigmas: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Where the unrolled chain starts, and the levels that it runs through."""
        shape = (1, *batch.target.shape[1:])

        def noise() -> Tensor:
            rows = [torch.randn(shape, generator=g) for g in generators]
            return torch.cat(rows).to(batch.target)

        start, level = noise(), self.config.unroll.start_level
        if level >= 1:
            return start, sigmas
        at = min(int((sigmas > level).sum()), len(sigmas) - 2)
        with torch.no_grad():
            x0 = sample(self.learner.policy, start, sigmas, {"conditioning": batch.conditioning})
        return flow.interpolate(x0, noise(), float(sigmas[at])), sigmas[at:]

    def _decode(self, x0: Tensor) -> Tensor:
        return clamp_straight_through(self.learner.decode(x0).float())

    def _rewards(self, images: Tensor, pixels: Pixels) -> Tensor:
        """The weighted mean of the parts, B values.

        Raises:
            ValueError: a weighted part does not exist or has no gradient; names it.
        """
        weights = {k: w for k, w in self.config.objective.rewards.items() if w}
        parts = self.reward(images, pixels)
        missing = sorted(weights.keys() - parts.keys())
        if missing:
            raise ValueError(
                f"objective.rewards names {', '.join(missing)}, but the rewards are {', '.join(parts)}."
            )
        fixed = [k for k in weights if images.requires_grad and not parts[k].requires_grad]
        if fixed:
            raise ValueError(
                f"The rewards {', '.join(fixed)} have no gradient. Set their weights in "
                "objective.rewards to 0, or use train grpo."
            )
        total = sum(abs(w) for w in weights.values())
        return torch.stack([w * parts[k].float() for k, w in weights.items()]).sum(0) / total


class _Checkpointed:
    """A policy whose activations are computed again in the backward pass."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        def compute(x: Tensor, sigma: Tensor) -> Tensor:
            return self.policy(x, sigma, conditioning=conditioning)

        found: Any = checkpoint(compute, x, sigma, use_reentrant=False)
        return found


def _keep(estimates: list[Tensor]) -> Any:
    """A sampler's callback that keeps the estimates of the image."""
    return lambda state: estimates.append(state["denoised"])


def _stacked(pixels: Sequence[Pixels | None]) -> Pixels:
    """The pictures of items of one shape as batches."""
    known = [p for p in pixels if p is not None]
    assert len(known) == len(pixels), "the data set was prepared without pixels"
    return Pixels(
        torch.cat([p.target for p in known]),
        torch.cat([p.draft for p in known]),
        known[0].reference,  # not compared with anything; the sizes of references differ
        torch.cat([p.mask for p in known]),
    )
