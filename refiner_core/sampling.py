"""Samplers in the call shape that ComfyUI and k-diffusion share.

`sample(model, x, sigmas, extra_args, callback, disable)` where `model(x, sigma, **extra_args)`
returns the x0 estimate: ours run inside ComfyUI as they are, and any of ComfyUI's can drive the
refiner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import flow

# model(x, sigma, **extra_args) -> x0
DenoiserCall = Callable[..., Tensor]
StepCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Transition:
    """A stochastic step as it was taken: what a policy gradient needs to judge it again.

    `x` at level `t`, `x_next` at `t_next`; `mean` and `log_prob` of the policy that took it, with
    the noise `eta`.
    """

    t: float
    t_next: float
    x: Tensor
    x_next: Tensor
    mean: Tensor
    log_prob: Tensor
    eta: float


def draw_noise_rows(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """Standard normal noise `B ...`, each row from its own seed, so that it does not depend on B."""
    return torch.cat([draw_noise((1, *shape[1:]), seed) for seed in seeds])


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise from `seed`, drawn on the CPU: the same on every device.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2^64 - 1.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}.")
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def advance(
    model: DenoiserCall,
    x: Tensor,
    t: float,
    t_next: float,
    extra_args: Mapping[str, Any] | None = None,
    *,
    kind: flow.StepKind = "ode",
    eta: float = 0.0,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> tuple[flow.Step, Tensor]:
    """One step of the model from `t` to `t_next`, and its x0 estimate.

    Sampling draws it with `noise`; training takes it again with `x_next` and gets, from unchanged
    weights, the same log-probability to the last bit.
    """
    denoised = model(x, x.new_full((len(x),), t), **(extra_args or {}))
    v = flow.velocity_from_x0(x, denoised, t)
    return flow.step(x, v, t, t_next, eta=eta, kind=kind, noise=noise, x_next=x_next), denoised


def sample(  # noqa: PLR0913 (the first six are k-diffusion's)
    model: DenoiserCall,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: StepCallback | None = None,
    disable: bool | None = None,
    *,
    kind: flow.StepKind = "ode",
    eta: float | Sequence[float] = 0.0,
    window: tuple[int, int] | None = None,
    noise_seed: int | Sequence[int] = 0,
    record: Callable[[Transition], None] | None = None,
) -> Tensor:
    """Run the process from `sigmas[0]` to `sigmas[-1]`.

    Args:
        model: x0 estimate of noisy latents.
        x: the start, `B C H W`, already at noise level `sigmas[0]`.
        sigmas: falling noise levels.
        extra_args: passed to the model.
        callback: called each step with x, i, sigma, sigma_hat, denoised (k-diffusion's keys).
        disable: k-diffusion's progress bar switch; there is none here.
        kind, eta: the stochastic step; with eta 0 (or kind "ode") Euler's. A sequence of etas has one
            for each step.
        window: `(first, end)` steps that are stochastic, None = all; the rest and the last are ODE.
        noise_seed: seed of the noise that stochastic steps add; a sequence has one seed per sample,
            so that a sample's noise does not depend on the batch it is in.
        record: called with every stochastic step taken.
    """
    draw = _noise_source(noise_seed)
    levels = [float(s) for s in sigmas]
    for i, (t, t_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        own = eta if isinstance(eta, float | int) else eta[i]
        random = own > 0 and kind != "ode" and (window is None or window[0] <= i < window[1])
        noise = draw(x) if random else None
        done, denoised = advance(
            model,
            x,
            t,
            t_next,
            extra_args,
            kind=kind if random else "ode",
            eta=own if random else 0.0,
            noise=noise,
        )
        if callback is not None:
            callback({"x": x, "i": i, "sigma": t, "sigma_hat": t, "denoised": denoised})
        if record is not None and done.log_prob is not None:
            record(Transition(t, t_next, x, done.x, done.mean, done.log_prob, own))
        x = done.x
    return x


def _noise_source(seed: int | Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Draws noise of a state's shape again and again."""
    if isinstance(seed, int):
        one = torch.Generator("cpu").manual_seed(seed)
        return lambda x: torch.randn(x.shape, generator=one).to(x)
    rows = [torch.Generator("cpu").manual_seed(s) for s in seed]
    return lambda x: torch.cat([torch.randn((1, *x.shape[1:]), generator=g) for g in rows]).to(x)


def restrict(model: DenoiserCall, clean: Tensor, mask: Tensor) -> DenoiserCall:
    """`model` with its estimate held to `clean` where `mask` is 0 (soft in between).

    With x0 held, the flow itself keeps the held part on the straight line from its noise to
    `clean`: nothing else has to be replaced during sampling.
    """

    def restricted(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return clean + mask * (model(x, sigma, **extra_args) - clean)

    return restricted
