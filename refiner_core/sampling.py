"""Samplers in the call shape that ComfyUI and k-diffusion share.

`sample(model, x, sigmas, extra_args, callback, disable)` where `model(x, sigma, **extra_args)`
returns the x0 estimate: ours run inside ComfyUI as they are, and any of ComfyUI's can drive the
refiner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import flow

# model(x, sigma, **extra_args) -> x0
DenoiserCall = Callable[..., Tensor]
StepCallback = Callable[[dict[str, Any]], None]


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise from `seed`, drawn on the CPU: the same on every device.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2^64 - 1.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}.")
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def sample(
    model: DenoiserCall,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: StepCallback | None = None,
    disable: bool | None = None,
    *,
    kind: flow.StepKind = "ode",
    eta: float = 0.0,
    window: tuple[int, int] | None = None,
    noise_seed: int = 0,
) -> Tensor:
    """Run the process from `sigmas[0]` to `sigmas[-1]`.

    Args:
        model: x0 estimate of noisy latents.
        x: the start, `B C H W`, already at noise level `sigmas[0]`.
        sigmas: falling noise levels.
        extra_args: passed to the model.
        callback: called each step with x, i, sigma, sigma_hat, denoised (k-diffusion's keys).
        disable: k-diffusion's progress bar switch; there is none here.
        kind, eta: the stochastic step; with eta 0 (or kind "ode") Euler's.
        window: `(first, end)` steps that are stochastic, None = all; the rest and the last are ODE.
        noise_seed: seed of the noise that stochastic steps add.
    """
    extra_args = extra_args or {}
    generator = torch.Generator("cpu").manual_seed(noise_seed)
    levels = [float(s) for s in sigmas]
    for i, (t, t_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = model(x, x.new_full((len(x),), t), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": t, "sigma_hat": t, "denoised": denoised})
        v = flow.velocity_from_x0(x, denoised, t)
        random = eta > 0 and kind != "ode" and (window is None or window[0] <= i < window[1])
        noise = torch.randn(x.shape, generator=generator).to(x) if random else None
        x = flow.step(
            x, v, t, t_next, eta=eta if random else 0.0, kind=kind if random else "ode", noise=noise
        ).x
    return x


def restrict(model: DenoiserCall, clean: Tensor, mask: Tensor) -> DenoiserCall:
    """`model` with its estimate held to `clean` where `mask` is 0 (soft in between).

    With x0 held, the flow itself keeps the held part on the straight line from its noise to
    `clean`: nothing else has to be replaced during sampling.
    """

    def restricted(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return clean + mask * (model(x, sigma, **extra_args) - clean)

    return restricted
