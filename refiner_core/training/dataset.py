"""Training items as the model sees them: clean latents, a mask, a prompt, and pixels for rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """The pictures of an item at the size of its crop.

    `target`, `draft`, `reference` 1 3 H W and `mask` 1 1 H W, float32 in [0, 1].
    """

    target: Tensor
    draft: Tensor
    reference: Tensor
    mask: Tensor


# Images B 3 H W and the pictures they are compared with -> named scores, B each, higher is better.
Reward = Callable[[Tensor, Pixels], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Item:
    """One crop of one triplet.

    `prompt` is what the text encoder gets; `target` 1 C h w is the latent of the truth; `references`
    are the clean latents in the recipe's order; `mask` 1 1 h w is the region in latent pixels, 0 or 1;
    `pixels` are kept only where a reward, validation or augmentation needs them; `kind` is the kind of
    detail (word, logo, pattern), if the triplet names it.
    """

    id: str
    prompt: str
    target: Tensor
    references: tuple[Tensor, ...]
    mask: Tensor
    pixels: Pixels | None = None
    kind: str = ""

    @property
    def shape(self) -> Shape:
        """Latent sizes (h, w) of target and references; only items of one shape form a batch."""
        return tuple((z.shape[-2], z.shape[-1]) for z in (self.target, *self.references))


class Dataset(Protocol):
    """Items by index; `shapes[i]` is known without reading item i."""

    def __len__(self) -> int: ...
    @property
    def shapes(self) -> Sequence[Shape]: ...
    def __getitem__(self, index: int) -> Item: ...


@dataclass(frozen=True)
class Batch:
    """Items of one shape: `target` B C h w, `mask` B 1 h w, everything else in `conditioning`."""

    target: Tensor
    mask: Tensor
    conditioning: Conditioning


def collate(
    items: Sequence[Item],
    texts: Sequence[tuple[Tensor, Tensor]],
    recipe: Recipe,
    guidance: float | None,
    device: torch.device,
) -> Batch:
    """Items of one shape and their text embeddings as one batch on `device`, laid out as inference
    lays out the recipe.
    """
    references = tuple(
        torch.cat(group).to(device) for group in zip(*(v.references for v in items), strict=True)
    )
    text, pooled = (torch.cat([t[i] for t in texts]).to(device) for i in (0, 1))
    conditioning = Conditioning(references, recipe.indices, text, pooled, guidance, recipe.layout)
    target = torch.cat([v.target for v in items]).to(device)
    return Batch(target, torch.cat([v.mask for v in items]).to(device), conditioning)


def latent_mask(mask: Tensor, size: tuple[int, int], grow: int = 0) -> Tensor:
    """A pixel mask 1 1 H W in latent pixels 1 1 h w: any covered pixel counts; dilated by `grow`."""
    small = (F.adaptive_max_pool2d(mask, size) > 0.5).float()
    return F.max_pool2d(small, 2 * grow + 1, 1, grow) if grow else small


def epoch_batches(shapes: Sequence[Shape], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one pass over the data, each of one shape, in random order.

    Every item comes at least once; the last batch of a shape is filled up with its first items.
    The order follows from (seed, epoch) alone, so that a resumed run gets the same batches.
    """
    rng = np.random.default_rng([seed, epoch, 17])
    by_shape: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(i)
    batches: list[list[int]] = []
    for members in by_shape.values():
        order = [members[i] for i in rng.permutation(len(members))]
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            while len(chosen) < batch:
                chosen += order[: batch - len(chosen)]
            batches.append(chosen)
    return [batches[i] for i in rng.permutation(len(batches))]


class Encoder(Protocol):
    """The part of an engine that turns pictures into latents.

    `source` names the weights it encodes with, so that prepared items are not mixed up.
    """

    recipe: Recipe
    source: dict[str, str]

    def encode(self, image: Tensor) -> Tensor: ...
