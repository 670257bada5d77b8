"""Training cases as the model sees them: clean latents, a mask, a text, and for rewards the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.kontext import Conditioning
from ..recipes.recipe import Recipe

Shape = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pixels:
    """What a reward compares with, at the crop's size.

    `target`, `draft`, `reference` 1 3 H W and `mask` 1 1 H W, float32 in [0, 1].
    """

    target: Tensor
    draft: Tensor
    reference: Tensor
    mask: Tensor


@dataclass(frozen=True)
class View:
    """One case.

    `target` 1 C h w the truth's latent; `references` clean latents in the recipe's order; `mask`
    1 1 h w the region in latent pixels, 0 or 1; `prompt` to encode; `pixels` or None.
    """

    id: str
    prompt: str
    target: Tensor
    references: tuple[Tensor, ...]
    mask: Tensor
    pixels: Pixels | None = None

    @property
    def shape(self) -> Shape:
        """Latent sizes (h, w) of target and references: views of one shape make a batch."""
        return tuple((z.shape[-2], z.shape[-1]) for z in (self.target, *self.references))


class Views(Protocol):
    """Cases by number; `shapes[i]` is known without reading case i."""

    def __len__(self) -> int: ...
    @property
    def shapes(self) -> Sequence[Shape]: ...
    def __getitem__(self, index: int) -> View: ...


@dataclass(frozen=True)
class Batch:
    """Views of one shape, stacked: `target` B C h w, `mask` B 1 h w, the rest in `conditioning`."""

    target: Tensor
    mask: Tensor
    conditioning: Conditioning


def stack(
    views: Sequence[View],
    texts: Sequence[tuple[Tensor, Tensor]],
    recipe: Recipe,
    guidance: float | None,
    device: torch.device,
) -> Batch:
    """Views of one shape and their text embeddings as a batch on `device`, laid out as the recipe is
    run.
    """
    references = tuple(
        torch.cat(group).to(device) for group in zip(*(v.references for v in views), strict=True)
    )
    text, pooled = (torch.cat([t[i] for t in texts]).to(device) for i in (0, 1))
    conditioning = Conditioning(references, recipe.indices, text, pooled, guidance, recipe.layout)
    target = torch.cat([v.target for v in views]).to(device)
    return Batch(target, torch.cat([v.mask for v in views]).to(device), conditioning)


def latent_region(mask: Tensor, size: tuple[int, int], grow: int = 0) -> Tensor:
    """A pixel mask 1 1 H W as latent pixels 1 1 h w: any covered pixel counts, grown by `grow`."""
    small = (F.adaptive_max_pool2d(mask, size) > 0.5).float()
    return F.max_pool2d(small, 2 * grow + 1, 1, grow) if grow else small


def epoch_batches(shapes: Sequence[Shape], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one pass over the data, each of one shape, in random order.

    Every case comes at least once; the last batch of a shape is filled up from its beginning.
    It follows from (seed, epoch) alone, so that a resumed run meets the same batches.
    """
    rng = np.random.default_rng([seed, epoch, 17])
    by_shape: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(i)
    batches: list[list[int]] = []
    for members in by_shape.values():
        order = [members[i] for i in rng.permutation(len(members))]
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            while len(part) < batch:
                part += order[: batch - len(part)]
            batches.append(part)
    return [batches[i] for i in rng.permutation(len(batches))]
