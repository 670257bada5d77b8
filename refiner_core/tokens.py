"""Latents as tokens: FLUX's 2x2 packing and the position ids of the dual-input layout.

Sequence `[noisy | draft | reference...]`, ids `[index, row, column]` with rows and columns from 0
in every group; the index tells the groups apart (OmniRefiner, arXiv 2511.19990, figure 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PATCH = 2


def pack(latent: Tensor) -> Tensor:
    """`B C H W -> B (H/2 W/2) (C 2 2)`.

    Raises:
        ValueError: H or W is odd or zero.
    """
    b, c, h, w = latent.shape
    if h % PATCH or w % PATCH or h == 0 or w == 0:
        raise ValueError(f"A latent of {w}x{h} cannot be cut into {PATCH}x{PATCH} patches.")
    x = latent.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """`B (h w) (C 2 2) -> B C height width`, the inverse of `pack`."""
    b, n, d = tokens.shape
    h, w = height // PATCH, width // PATCH
    if n != h * w:
        raise ValueError(f"{n} tokens do not fill a latent of {width}x{height} ({h * w} tokens).")
    x = tokens.reshape(b, h, w, d // PATCH**2, PATCH, PATCH)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, d // PATCH**2, height, width)


def position_ids(height: int, width: int, index: int) -> Tensor:
    """Ids of one group of tokens, `(height*width) 3`: `[index, row, column]`, in tokens."""
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None, :]
    return ids.reshape(-1, 3)


def layout_ids(latents: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Position ids of several latents (each `B C H W`) laid one after the other."""
    return torch.cat(
        [
            position_ids(z.shape[-2] // PATCH, z.shape[-1] // PATCH, i)
            for z, i in zip(latents, indices, strict=True)
        ]
    )
