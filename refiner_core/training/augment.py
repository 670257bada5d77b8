"""Augmentation: all pictures of an item mirrored, transposed and recoloured alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..nano.reference_blend import ReferenceBlend
from .dataset import Dataset, Encoder, Item, Pixels, Shape, latent_mask

_GAIN = 0.12  # spread of the logarithm of a channel's gain


class AugmentedDataset:
    """Each item of `dataset` (which must keep pixels) in `variants` versions; the first is unchanged.

    The others are mirrored, transposed and recoloured alike in all pictures (copying does not need
    legible letters) and encoded when they are read. Every second one blends in another share of the
    aligned reference, as the candidates of best-of-N do. The same index always gives the same item.
    """

    def __init__(self, dataset: Dataset, engine: Encoder, variants: int, grow: int) -> None:
        self._dataset, self._engine = dataset, engine
        self._variants, self._grow = variants, grow

    def __len__(self) -> int:
        return len(self._dataset) * self._variants

    @property
    def shapes(self) -> Sequence[Shape]:
        return [shape for shape in self._dataset.shapes for _ in range(self._variants)]

    def __getitem__(self, index: int) -> Item:
        at, variant = divmod(index, self._variants)
        item = self._dataset[at]
        if variant == 0:
            return item
        assert item.pixels is not None, "the data set was prepared without pixels"
        p = augment(np.random.default_rng([at, 3, variant]), item.pixels)
        recipe = self._engine.recipe
        blend = ReferenceBlend.of(recipe, aligned=recipe.align)
        if variant % 2:
            blend = blend.candidate(variant)
        blended = blend.shown(p.draft, p.reference, p.mask)
        pictures = {"draft": blended, "reference": p.reference}
        z = self._encode(p.target)
        references = tuple(self._encode(pictures[role]) for role in recipe.order)
        mask = latent_mask(p.mask, (z.shape[-2], z.shape[-1]), self._grow)
        return Item(f"{item.id}-{variant}", item.prompt, z, references, mask, p, item.kind)

    def _encode(self, picture: Tensor) -> Tensor:
        return self._engine.encode(picture).cpu()


def augment(rng: np.random.Generator, p: Pixels) -> Pixels:
    """The pictures mirrored, transposed (if they are square) and recoloured alike."""
    flips = [axis for axis in (-1, -2) if rng.random() < 0.5]
    transpose = p.mask.shape[-1] == p.mask.shape[-2] and rng.random() < 0.5
    order = torch.from_numpy(rng.permutation(3))
    strength = torch.from_numpy(np.exp(rng.normal(0, _GAIN, (3, 1, 1)))).float()

    def moved(x: Tensor) -> Tensor:
        x = x.flip(flips) if flips else x
        return x.transpose(-1, -2) if transpose else x

    def recoloured(x: Tensor) -> Tensor:
        return (moved(x)[:, order] * strength).clamp(0, 1)

    return Pixels(recoloured(p.target), recoloured(p.draft), recoloured(p.reference), moved(p.mask))
