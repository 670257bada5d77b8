"""Converts tensors between ComfyUI's layout and the core's. No other module does."""

from __future__ import annotations

import torch
from torch import Tensor


def to_core(image: Tensor) -> Tensor:
    """IMAGE `B H W C` (3 or 4 channels) -> `B 3 H W`."""
    return image[..., :3].movedim(-1, 1)


def from_core(image: Tensor, like: Tensor | None = None) -> Tensor:
    """`B 3 H W` -> IMAGE `B H W C`, with the alpha of `like` (an IMAGE) if it has one."""
    out = image.movedim(1, -1).contiguous()
    if like is None or like.shape[-1] == 3:
        return out
    alpha = like[..., 3:].expand(len(out), *like.shape[1:3], like.shape[-1] - 3)
    return torch.cat([out, alpha.to(out)], -1)


def mask_to_core(mask: Tensor | None) -> Tensor | None:
    """MASK `B H W` or `H W` -> `B 1 H W`."""
    if mask is None:
        return None
    return (mask[None] if mask.ndim == 2 else mask)[:, None].float().cpu()


def mask_from_core(mask: Tensor) -> Tensor:
    """`B 1 H W` -> MASK `B H W`."""
    return mask[:, 0]
