"""FLUX's transformer (Black Forest Labs, FLUX.1) without diffusers.

It has diffusers' module names, so that it loads the same weights and takes the same LoRA, and gives
the same numbers. The nano runs on it because importing diffusers takes longer than a repair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Rotary, attend

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

_FREQUENCIES = 256  # of the embeddings of time and guidance
_THETA = 10000
_FLOAT16_MAX = 65504


@dataclass(frozen=True)
class FluxConfig:
    """The shape of a FLUX transformer, by diffusers' names; the defaults are FLUX.1's.

    `in_channels` of a packed token; `num_layers` double and `num_single_layers` single blocks;
    `joint_attention_dim` and `pooled_projection_dim` the widths of text and pooled text;
    `axes_dims_rope` channels of a head that turn with index, row and column.
    """

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.attention_head_dim * self.num_attention_heads


def sinusoids(x: Tensor) -> Tensor:
    """Numbers B to their cosines and sines B 256 at falling frequencies, float32."""
    half = _FREQUENCIES // 2
    falling = -math.log(_THETA) * torch.arange(half, dtype=torch.float32, device=x.device) / half
    angles = x[:, None].float() * torch.exp(falling)[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


def rotary_angles(ids: Tensor, widths: tuple[int, ...]) -> Rotary:
    """Cosines and sines, each `tokens sum(widths)` in float32, of position ids `tokens axes`."""
    cosines: list[Tensor] = []
    sines: list[Tensor] = []
    for axis, width in enumerate(widths):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device=ids.device) / width
        angles = torch.outer(ids[:, axis].float().double(), 1.0 / _THETA**steps)
        cosines.append(angles.cos().repeat_interleave(2, 1).float())
        sines.append(angles.sin().repeat_interleave(2, 1).float())
    return torch.cat(cosines, -1), torch.cat(sines, -1)


def _bounded(x: Tensor) -> Tensor:
    return x.clip(-_FLOAT16_MAX, _FLOAT16_MAX) if x.dtype == torch.float16 else x


class _Embedder(nn.Module):
    """Two linear layers."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class _TimeText(nn.Module):
    """Time, guidance where the weights know it, and pooled text, as one vector."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.timestep_embedder = _Embedder(_FREQUENCIES, config.width)
        if config.guidance_embeds:
            self.guidance_embedder = _Embedder(_FREQUENCIES, config.width)
        self.text_embedder = _Embedder(config.pooled_projection_dim, config.width)

    def forward(self, time: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        found = self.timestep_embedder(sinusoids(time).to(pooled.dtype))
        if guidance is not None:
            found = found + self.guidance_embedder(sinusoids(guidance).to(pooled.dtype))
        return found + self.text_embedder(pooled)


class _Modulation(nn.Module):
    """LayerNorm whose shift and scale, and the block's `parts - 2` other factors, follow from the
    time vector.
    """

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.parts = parts

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = self.linear(nn.functional.silu(time)).chunk(self.parts, 1)
        shift, scale, *others = (p[:, None] for p in parts)
        return self.norm(x) * (1 + scale) + shift, others


class _FinalNorm(nn.Module):
    """LayerNorm after the last block; its scale stands before its shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(nn.functional.silu(time).to(x.dtype)).chunk(2, 1)
        return self.norm(x) * (1 + scale)[:, None] + shift[:, None]


class _Attention(nn.Module):
    """The layers of `attend`: in double blocks (`double`) text has its own."""

    def __init__(self, config: FluxConfig, double: bool) -> None:
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.head_dim = head
        self.norm_q = nn.RMSNorm(head, eps=1e-6)
        self.norm_k = nn.RMSNorm(head, eps=1e-6)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        if double:
            # The second entry is diffusers' dropout, so that the names of the weights agree.
            self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
            self.norm_added_q = nn.RMSNorm(head, eps=1e-6)
            self.norm_added_k = nn.RMSNorm(head, eps=1e-6)
            self.add_q_proj = nn.Linear(width, width)
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.to_add_out = nn.Linear(width, width)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        return attend(self, *args, **kwargs)


class _Gelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.proj(x), approximate="tanh")


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle entry is diffusers' dropout, so that the names of the weights agree.
        self.net = nn.ModuleList([_Gelu(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class DoubleBlock(nn.Module):
    """Image and text tokens with layers of their own and one attention."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = _Modulation(width, 6)
        self.norm1_context = _Modulation(width, 6)
        self.attn = _Attention(config, double=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ff = _FeedForward(width)
        self.norm2_context = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ff_context = _FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, time: Tensor, rotary: Rotary, how: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Text and image tokens after the block."""
        image_in, image_parts = self.norm1(image, time)
        text_in, text_parts = self.norm1_context(text, time)
        image_out, text_out = self.attn(image_in, text_in, image_rotary_emb=rotary, **how)
        image = _mixed(image, image_out, image_parts, self.norm2, self.ff)
        text = _mixed(text, text_out, text_parts, self.norm2_context, self.ff_context)
        return _bounded(text), image


def _mixed(
    x: Tensor,
    attention: Tensor,
    parts: list[Tensor],
    norm: nn.Module,
    feed_forward: Callable[[Tensor], Tensor],
) -> Tensor:
    """Tokens with a double block's attention and feed-forward added."""
    gate, shift, scale, feed_gate = parts
    x = x + gate * attention
    return x + feed_gate * feed_forward(norm(x) * (1 + scale) + shift)


class SingleBlock(nn.Module):
    """Text and image tokens as one sequence; attention and feed-forward side by side."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = _Modulation(width, 3)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = _Attention(config, double=False)

    def forward(
        self, image: Tensor, text: Tensor, time: Tensor, rotary: Rotary, how: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Text and image tokens after the block."""
        x = torch.cat([text, image], 1)
        seen, (gate,) = self.norm(x, time)
        fed = nn.functional.gelu(self.proj_mlp(seen), approximate="tanh")
        attention = self.attn(seen, image_rotary_emb=rotary, **how)
        x = _bounded(x + gate * self.proj_out(torch.cat([attention, fed], 2)))
        return x[:, : text.shape[1]], x[:, text.shape[1] :]


class FluxTransformer(nn.Module):
    """FLUX's transformer; takes and gives what diffusers' `FluxTransformer2DModel` does.

    `config` holds the arguments it was made with.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        shape = FluxConfig(**config)
        self.config = asdict(shape)
        self.inner_dim = shape.width
        self.time_text_embed = _TimeText(shape)
        self.context_embedder = nn.Linear(shape.joint_attention_dim, shape.width)
        self.x_embedder = nn.Linear(shape.in_channels, shape.width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(shape) for _ in range(shape.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(shape) for _ in range(shape.num_single_layers)
        )
        self.norm_out = _FinalNorm(shape.width)
        self.proj_out = nn.Linear(shape.width, shape.in_channels)
        self.gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.proj_out.weight.dtype

    def empty_text(self, prompt: str, length: int, /) -> tuple[Tensor, Tensor]:
        """Zeros in place of an encoded prompt, 1 1 D and 1 P, for weights trained without text."""
        pooled = self.time_text_embed.text_embedder.linear_1.in_features
        return torch.zeros(1, 1, self.context_embedder.in_features), torch.zeros(1, pooled)

    def enable_gradient_checkpointing(self) -> None:
        """Compute blocks again in the backward pass instead of keeping what they computed."""
        self.gradient_checkpointing = True

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The velocity on every image token.

        Args:
            hidden_states: image tokens `B N C`.
            encoder_hidden_states: text `B L D`.
            pooled_projections: pooled text `B P`.
            timestep: noise levels B in [0, 1].
            img_ids, txt_ids: position ids `N 3` and `L 3`.
            guidance: B, where the weights know it.
            joint_attention_kwargs: passed to `attend`.
            return_dict: there is none; for diffusers' call shape.
        """
        assert not return_dict
        image = self.x_embedder(hidden_states)
        guided = None if guidance is None else guidance.to(image.dtype) * 1000
        time = self.time_text_embed(timestep.to(image.dtype) * 1000, guided, pooled_projections)
        text = self.context_embedder(encoder_hidden_states)
        widths = cast(tuple[int, ...], self.config["axes_dims_rope"])
        rotary = rotary_angles(torch.cat([txt_ids, img_ids]), widths)
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            arguments = (image, text, time, rotary, joint_attention_kwargs or {})
            if self.gradient_checkpointing and torch.is_grad_enabled():
                text, image = checkpoint(block, *arguments, use_reentrant=False)
            else:
                text, image = block(*arguments)
        return (self.proj_out(self.norm_out(image, time)),)


if TYPE_CHECKING:
    Transformer = FluxTransformer2DModel | FluxTransformer
