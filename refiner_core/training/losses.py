"""What training minimises: masked flow matching, clipped policy ratios, and DiffusionNFT's loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..flow import Step

Guard = Literal["offset", "scaled", "off"]


def masked_flow_errors(
    predicted: Tensor, target: Tensor, mask: Tensor, *, region: float = 1.0, background: float = 1.0
) -> Tensor:
    """`region * sum(e m) / (C sum m) + background * mean(e (1 - m))` with `e = (v - target)^2`.

    The first term is a mean over the masked latent pixels of each sample on its own, so that a small
    logo counts as much as a large one; the second keeps the model copying what surrounds it. The
    surroundings are averaged over the whole crop, so their total weight falls as the mask grows (the
    paper gives no weights). An empty mask (a draft without a fault) leaves the plain mean.

    Args:
        predicted, target: velocities `B C h w`.
        mask: region in latent pixels, `B 1 h w`, 0 or 1.
        region, background: weights of the two terms.

    Returns:
        one error for each sample, `B`.
    """
    error = (predicted.float() - target.float()).square()
    return masked_means(error, mask, region=region, background=background)


def mean_loss(errors: Tensor, root: bool) -> Tensor:
    """The mean over the batch of its errors `B`, or of their roots, so that few hopeless samples do
    not dominate.
    """
    return (errors.clamp_min(1e-8).sqrt() if root else errors).mean()


def masked_means(error: Tensor, mask: Tensor, *, region: float, background: float) -> Tensor:
    """The weighted means inside and outside the mask of errors `B C h w`, added, `B`."""
    area = mask.sum((1, 2, 3))
    inside = (error * mask).sum((1, 2, 3)) / (area * error.shape[1]).clamp_min(1)
    outside = (error * (1 - mask)).mean((1, 2, 3))
    return torch.where(area > 0, region * inside + background * outside, error.mean((1, 2, 3)))


def contrast_loss(errors: Tensor, temperature: float, scale: float) -> Tensor:
    """How well the own reference is told from those of other cases (SoftREPA).

    The cross-entropy of `scale * exp(-error / temperature)` with the own reference as the label.

    Args:
        errors: matching errors of each sample with N references, `B N`; the own one comes first.

    Returns:
        one value a sample; ln N where all errors are equal.
    """
    logits = scale * (-errors / temperature).exp()
    return -logits.log_softmax(1)[:, 0]


def clip_range(unit: float, dimensions: int) -> float:
    """How far a ratio may leave 1: `unit / sqrt(dimensions)`.

    Log-probabilities are means over a sample's dimensions, so the ratio's own noise falls with their
    square root. 0.026 gives Flow-GRPO's 1e-4 for a packed 512 px latent (65536 dimensions).
    """
    return unit / math.sqrt(dimensions)


def gaussian_kl(mean: Tensor, other: Tensor, std: float) -> Tensor:
    """KL divergence of two Gaussians of equal `std`, mean over dimensions, one value per sample.

    `std` is that of the whole step, so the divergence contains the length dt of the step. Flow-GRPO's
    Kontext code leaves dt out: its weight 0.04 corresponds to 0.004 here at 10 steps.
    """
    return (mean - other).square().flatten(1).mean(1) / (2 * std * std)


def log_ratio(step: Step, log_prob_old: Tensor, mean_old: Tensor, guard: Guard) -> Tensor:
    """Log of the policies' ratio for each sample of a replayed step.

    The plain log-ratio is negative on average, by the divergence of the two policies, so that the
    upper clip hardly ever acts. GRPO-Guard (arXiv 2510.22319) removes that offset: "offset" keeps the
    unit of the ratio; "scaled" also multiplies by the standard deviation of the step, as the paper
    does, which needs a smaller clip range and a loss that is divided by the length of the step.

    All kinds of steps use the exact log-density of their Gaussian. Public code for "cps" drops its
    1 / (2 std^2), which changes the weights of the steps against each other and the meaning of the
    clip range, but not the direction of the gradient of a step.
    """
    assert step.log_prob is not None
    plain = step.log_prob - log_prob_old
    if guard == "off":
        return plain
    centred = plain + gaussian_kl(step.mean, mean_old, step.std)
    return centred * step.std if guard == "scaled" else centred


def log_ratio_map(step: Step, x_next: Tensor, mean_old: Tensor, guard: Guard) -> Tensor:
    """The log-ratio of each place, the mean over its channels: `log_ratio` is its mean over places.

    Args:
        x_next, mean_old: the state that was reached, and the mean of the policy that reached it,
            `B C h w`.

    Returns:
        `B 1 h w`.
    """
    moved, variance = step.mean - mean_old, step.std * step.std
    plain = moved * (2 * x_next - step.mean - mean_old) / (2 * variance)
    if guard == "off":
        return plain.mean(1, keepdim=True)
    centred = (plain + moved.square() / (2 * variance)).mean(1, keepdim=True)
    return centred * step.std if guard == "scaled" else centred


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` a scalar; `clipped` share of samples or places whose gradient the clip removed."""

    loss: Tensor
    clipped: float


def policy_loss(log_ratios: Tensor, advantages: Tensor, clip: float) -> PolicyLoss:
    """`mean(max(-A r, -A clamp(r, 1-c, 1+c)))`, PPO's clipped objective (arXiv 1707.06347).

    Args:
        log_ratios, advantages: one value a sample, or a map of each sample.
    """
    ratio = log_ratios.exp()
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    clipped = float((held > free).float().mean())
    return PolicyLoss(torch.maximum(free, held).mean(), clipped)


def nft_share(advantages: Tensor) -> Tensor:
    """Advantages in [-5, 5] as DiffusionNFT's optimality probabilities in [0, 1]."""
    return (advantages / 5.0 / 2 + 0.5).clamp(0, 1)


def nft_loss(
    v: Tensor,
    v_old: Tensor,
    x: Tensor,
    t: Tensor,
    x0: Tensor,
    share: Tensor,
    beta: float = 1.0,
    *,
    adaptive: bool = True,
) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117): pull towards good samples, push from bad ones, no SDE.

    Args:
        v, v_old: velocities of the learning and the sampling policy at `x`, `B ...`.
        x, t: the sample noised to level `t` (`B`).
        x0: the sample.
        share: how good it is, 0..1 a sample (`nft_share`), or a map `B 1 h w` of how good each place
            is, which needs `adaptive=False`; a constant map is the same as one value.
        beta: how far the two implicit policies lie from the old one.
        adaptive: divide every sample's error by its size, as the paper does. A shift that all siblings
            share then no longer cancels, though their advantages add up to 0.

    Returns:
        one loss a sample; at v == v_old its gradient is (2 share - 1) times plain matching's.
    """
    assert share.ndim == 1 or not adaptive, "places have no size to divide by"
    t = t.reshape(-1, *([1] * (x.ndim - 1)))

    def matching(velocity: Tensor) -> Tensor:
        error = x - t * velocity - x0
        if not adaptive:
            return error.square()
        squared = error.square().flatten(1).mean(1)
        return squared / error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)

    positive = beta * v + (1 - beta) * v_old
    negative = (1 + beta) * v_old - beta * v
    if not adaptive:
        good = share.reshape(-1, *([1] * (x.ndim - 1))) if share.ndim == 1 else share
        errors = good * matching(positive) + (1 - good) * matching(negative)
        return errors.flatten(1).mean(1) / beta
    return (share * matching(positive) + (1 - share) * matching(negative)) / beta
