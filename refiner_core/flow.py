"""The process, defined once: schedule, interpolation, the step and its log-probability.

Rectified flow with `t` (sigma) in [0, 1], 1 = noise: `x_t = (1-t) x0 + t e`, velocity
`v = e - x0`, so `x0 = x_t - t v` and `e = x_t + (1-t) v`. Sampling, supervised training and GRPO
all use these functions and no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

StepKind = Literal["ode", "flow", "dance", "cps"]


def resolution_shift(tokens: int) -> float:
    """Kontext's `mu` for a picture of `tokens` noisy tokens: a line from 0.5 at 256 to 1.15 at 4096.

    Only the noisy tokens count: the draft and the reference are clean.
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    return 0.5 + slope * (tokens - 256)


def flux2_shift(tokens: int, steps: int) -> float:
    """FLUX.2's `mu`: fitted lines for 10 and for 200 steps, and between them by the steps.

    Above 4300 tokens the line for 200 steps holds for any number (Black Forest Labs' schedule).
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_10 - at_200) * (200 - steps) / 190


def shift(t: Tensor, mu: float) -> Tensor:
    """The exponential timestep shift, `e^mu / (e^mu + 1/t - 1)`; 0 stays 0 and 1 stays 1."""
    return math.exp(mu) * t / (1 + (math.exp(mu) - 1) * t)


def sigmas(steps: int, mu: float) -> Tensor:
    """`steps + 1` noise levels from 1 down to 0, evenly spaced and then shifted by `mu`.

    Raises:
        ValueError: fewer than one step or more than 1000.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps must be between 1 and 1000, got {steps}.")
    even = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    return torch.cat([shift(even, mu), torch.zeros(1, dtype=torch.float64)]).float()


def _like(t: Tensor | float, x: Tensor) -> Tensor:
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.reshape(-1, *([1] * (x.ndim - 1))) if t.ndim else t


def interpolate(x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """`x_t`, with `t` a number or one per sample."""
    t = _like(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict, `e - x0`."""
    return noise - x0


def x0_from_velocity(x: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    return x - _like(t, x) * v


def velocity_from_x0(x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
    """The inverse of `x0_from_velocity`; `t` must not be 0."""
    return (x - x0) / _like(t, x)


@dataclass(frozen=True)
class Step:
    """One transition `t -> t_next`.

    `x` the new state; `mean` and `std` of the Gaussian it was drawn from; `log_prob` its
    log-density, averaged over all but the batch dimension (None for a deterministic step).
    """

    x: Tensor
    mean: Tensor
    std: float
    log_prob: Tensor | None


def _transition(
    x: Tensor, v: Tensor, t: float, t_next: float, eta: float, kind: StepKind
) -> tuple[Tensor, float]:
    dt = t_next - t
    x0, noise = x - t * v, x + (1 - t) * v
    if kind == "ode" or eta == 0:
        return x + v * dt, 0.0
    if kind == "flow":  # Flow-GRPO, arXiv 2505.05470 eq. 9; t = 1 borrows the next 1 - t
        g = eta * math.sqrt(t / (1 - min(t, t_next if t >= 1 else t)))
        mean = x * (1 + g * g / (2 * t) * dt) + v * (1 + g * g * (1 - t) / (2 * t)) * dt
        return mean, g * math.sqrt(-dt)
    if kind == "dance":  # DanceGRPO, arXiv 2505.07818 eq. 5: constant diffusion
        mean = x + (v + 0.5 * eta * eta * (x - (1 - t) * x0) / (t * t)) * dt
        return mean, eta * math.sqrt(-dt)
    if kind == "cps":  # coefficients-preserving sampling, arXiv 2509.05952 eq. 12
        std = t_next * math.sin(eta * math.pi / 2)
        return (1 - t_next) * x0 + math.sqrt(t_next**2 - std**2) * noise, std
    raise ValueError(f"kind must be one of {', '.join(get_args(StepKind))}, got {kind!r}.")


def step(
    x: Tensor,
    v: Tensor,
    t: float,
    t_next: float,
    *,
    eta: float = 0.0,
    kind: StepKind = "ode",
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Step:
    """One step of the sampler, or the replay of one.

    Args:
        x, v: state and velocity at `t`, any shape with the batch first.
        t, t_next: noise levels, `1 >= t > t_next >= 0`.
        eta: how much noise the step adds; 0 is the ODE.
        kind: "ode" (Euler), or the stochastic steps of Flow-GRPO, DanceGRPO and CPS.
        noise: standard normal of x's shape, needed by a stochastic step that is drawn.
        x_next: replay: the state once reached, whose log-probability is wanted.

    The last step (`t_next == 0`) is always the ODE: noise left in the picture helps nobody.

    Raises:
        ValueError: levels out of order, unknown kind, or a stochastic step without noise.
    """
    if not 1 >= t > t_next >= 0:
        raise ValueError(f"a step needs 1 >= t > t_next >= 0, got t={t}, t_next={t_next}.")
    x32, v32 = x.float(), v.float()
    if x.dtype == torch.float64:
        x32, v32 = x, v.double()
    mean, std = _transition(x32, v32, t, t_next, eta, "ode" if t_next == 0 else kind)
    if std == 0.0:
        return Step(mean.to(x.dtype), mean, 0.0, None)
    if x_next is None:
        if noise is None:
            raise ValueError(f"a {kind} step with eta={eta} needs `noise` or `x_next`.")
        # Rounded to the storage type before its density is taken, so that a replay sees it too.
        x_next = (mean + std * noise.to(mean)).to(x.dtype)
    z = (x_next.to(mean) - mean) / std
    density = -0.5 * z * z - math.log(std) - 0.5 * math.log(2 * math.pi)
    return Step(x_next, mean, std, density.flatten(1).mean(1))
