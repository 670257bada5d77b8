"""The vision transformer of DreamSim, with the small differences of DINO, CLIP and DINOv2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64  # width of a head in every ViT-B


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of one transformer and the particulars of its family."""

    patch: int  # px on a side
    grid: int  # patches on a side
    width: int  # of a token
    depth: int  # number of blocks
    eps: float  # of the layer norms
    quick_gelu: bool  # x * sigmoid(1.702 x) instead of GELU (OpenAI's CLIP)
    pre_norm: bool  # a layer norm before the first block (CLIP)
    layer_scale: bool  # a gain on every branch (DINOv2)
    # Width that features are projected to after the last norm (CLIP); None: the features are the
    # last block's output, not normalised (DINO).
    projection: int | None
    mean: tuple[float, float, float]  # of the input, RGB
    std: tuple[float, float, float]  # of the input, RGB

    @property
    def side(self) -> int:
        """Pixels on a side of the input."""
        return self.patch * self.grid

    @property
    def features(self) -> int:
        """Width of an output token."""
        return self.projection or self.width


class Attention(nn.Module):
    """Multi-head self-attention over tokens B N D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Attention over all tokens; with `queries`, only the first `queries` tokens are computed."""
        b, n, d = x.shape
        if queries is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            (q,) = self._split(F.linear(x[:, :queries], weight[:d], bias[:d]), 1)
            k, v = self._split(F.linear(x, weight[d:], bias[d:]), 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, queries or n, d))

    def _split(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return x.reshape(b, n, count, self.heads, HEAD).permute(2, 0, 3, 1, 4).unbind(0)


class MLP(nn.Module):
    """The feed-forward branch."""

    def __init__(self, width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.quick_gelu = quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class Block(nn.Module):
    """Attention and feed-forward branches with normalised inputs, added to the residual."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.eps)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=config.eps)
        self.mlp = MLP(width, config.quick_gelu)
        self.scaled = config.layer_scale
        if config.layer_scale:
            self.ls1 = nn.Parameter(torch.ones(width))
            self.ls2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """B N D to the same; with `queries`, only the first `queries` tokens."""
        y = self.attn(self.norm1(x), queries)
        x = x[:, :queries] + (y * self.ls1 if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (y * self.ls2 if self.scaled else y)


class VisionTransformer(nn.Module):
    """Tokens B N D, the class token first, of pictures B 3 S S in [0, 1] with S = `config.side`.

    Dosovitskiy et al. 2020, as trained by DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023),
    CLIP (Radford et al. 2021), OpenCLIP and SynCLR.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width))
        self.patch_embed = nn.Conv2d(3, width, config.patch, config.patch)
        self.pre_norm = nn.LayerNorm(width, eps=config.eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.projection:
            self.norm = nn.LayerNorm(width, eps=config.eps)
            self.proj = nn.Parameter(torch.zeros(width, config.projection))

    def _normalised(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.config.mean).reshape(1, 3, 1, 1)
        std = images.new_tensor(self.config.std).reshape(1, 3, 1, 1)
        return (images - mean) / std

    def forward(self, images: Tensor, class_only: bool = False) -> Tensor:
        """All features, B N D; with `class_only` those of the class token, B 1 D, a little faster."""
        x = self.patch_embed(self._normalised(images)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.pre_norm(x)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, 1 if class_only else None)
        if self.config.projection is None:
            return x
        return self.norm(x) @ self.proj


def resample_positions(pos_embed: Tensor, grid: int) -> Tensor:
    """Position embeddings 1 (1 + m m) D for a grid of `grid` by `grid`, as in DINO and DINOv2.

    Bicubic with the scale (grid + 0.1) / m: the 0.1, added there against a rounding error, moves
    every sample a little, so the exact size would give other values.
    """
    old = math.isqrt(pos_embed.shape[1] - 1)
    if old == grid:
        return pos_embed
    scale = (grid + 0.1) / old
    patches = pos_embed[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    assert patches.shape[-1] == grid
    return torch.cat([pos_embed[:, :1].float(), patches.permute(0, 2, 3, 1).flatten(1, 2)], 1)
