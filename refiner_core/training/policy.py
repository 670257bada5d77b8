"""The network as training calls it: a module that returns the velocity, and a denoiser around it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import flow
from ..models.kontext import Conditioning, velocity
from ..recipes.recipe import Attention

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer


class VelocityNet(nn.Module):
    """The transformer as a module of (x, t, conditioning), with the attention of its recipe."""

    def __init__(self, transformer: Transformer, attention: Attention = "both ways") -> None:
        super().__init__()
        self.transformer = transformer
        self.attention: Attention = attention

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return velocity(self.transformer, x, t, conditioning, self.attention)


class Policy:
    """A denoiser in the samplers' call shape; the network runs in `precision`, states are float32."""

    def __init__(self, net: nn.Module, device: torch.device, precision: str = "fp32") -> None:
        self.net, self.device, self.precision = net, device, precision

    @contextlib.contextmanager
    def autocast(self) -> Generator[None, None, None]:
        """Run the block in the network's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
            yield

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity at `x`, float32."""
        with self.autocast():
            return self.net(x, t, conditioning).float()

    def __call__(self, x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        return flow.x0_from_velocity(x, self.velocity(x, sigma, conditioning), sigma)
