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


def position_ids(height: int, width: int, index: int, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Ids of one group of tokens, `(height*width) 3`: `[index, row, column]`, in tokens; rows and
    columns start at `offset`.
    """
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(height)[:, None] + offset[0]
    ids[..., 2] = torch.arange(width)[None, :] + offset[1]
    return ids.reshape(-1, 3)


def side_by_side(latents: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where stock Kontext puts several clean latents, as (row, column) in tokens.

    All share index 1; each next one goes below those before it or to their right, whichever keeps
    the whole more nearly square (the layout "offset" of ComfyUI's FLUX).
    """
    places: list[tuple[int, int]] = []
    height = width = 0
    for z in latents:
        h, w = z.shape[-2], z.shape[-1]
        row, column = (0, width) if h + height > w + width else (height, 0)
        places.append((row // PATCH, column // PATCH))
        height, width = max(height, h + row), max(width, w + column)
    return places


def layout_ids(latents: Sequence[Tensor], indices: Sequence[int], layout: str = "index") -> Tensor:
    """Position ids of several latents (each `B C H W`) laid one after the other, noisy first.

    With the layout "offset" the clean ones share index 1 and stand beside one another.
    """
    places = [(0, 0)] * len(latents)
    if layout == "offset":
        places = [(0, 0), *side_by_side(latents[1:])]
        indices = [0] + [1] * (len(latents) - 1)
    return torch.cat(
        [
            position_ids(z.shape[-2] // PATCH, z.shape[-1] // PATCH, i, place)
            for z, i, place in zip(latents, indices, places, strict=True)
        ]
    )
