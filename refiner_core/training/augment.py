"""Views shown in several ways: all pictures of one mirrored, turned and recoloured alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..nano.reference_blend import ReferenceBlend
from .dataset import Pixels, Shape, View, Views, latent_region
from .prepare import Encoder

_GAIN = 0.12  # spread of the logarithm of a channel's gain


class VariedViews:
    """`views`, which keep their pixels, `variants` times each: the first time as they are.

    The others are mirrored, turned and recoloured alike in all pictures (copying does not read
    letters) and encoded as they are read; every second one at another share of the aligned
    reference, as the candidates of best of N are. A case is always the same.
    """

    def __init__(self, views: Views, engine: Encoder, variants: int, grow: int) -> None:
        self._views, self._engine = views, engine
        self._variants, self._grow = variants, grow

    def __len__(self) -> int:
        return len(self._views) * self._variants

    @property
    def shapes(self) -> Sequence[Shape]:
        return [shape for shape in self._views.shapes for _ in range(self._variants)]

    def __getitem__(self, index: int) -> View:
        at, variant = divmod(index, self._variants)
        view = self._views[at]
        if variant == 0:
            return view
        assert view.pixels is not None, "prepared with pixels"
        p = varied(np.random.default_rng([at, 3, variant]), view.pixels)
        recipe = self._engine.recipe
        blend = ReferenceBlend.of(recipe, aligned=recipe.align)
        if variant % 2:
            blend = blend.candidate(variant)
        seen = blend.shown(p.draft, p.reference, p.mask)
        pictures = {"draft": seen, "reference": p.reference}
        z = self._encode(p.target)
        references = tuple(self._encode(pictures[role]) for role in recipe.order)
        region = latent_region(p.mask, (z.shape[-2], z.shape[-1]), self._grow)
        return View(f"{view.id}-{variant}", view.prompt, z, references, region, p)

    def _encode(self, picture: Tensor) -> Tensor:
        return self._engine.encode(picture).cpu()


def varied(rng: np.random.Generator, p: Pixels) -> Pixels:
    """Pictures of one size, mirrored, turned (squares) and recoloured alike."""
    flips = [axis for axis in (-1, -2) if rng.random() < 0.5]
    turn = p.mask.shape[-1] == p.mask.shape[-2] and rng.random() < 0.5
    order = torch.from_numpy(rng.permutation(3))
    strength = torch.from_numpy(np.exp(rng.normal(0, _GAIN, (3, 1, 1)))).float()

    def moved(x: Tensor) -> Tensor:
        x = x.flip(flips) if flips else x
        return x.transpose(-1, -2) if turn else x

    def recoloured(x: Tensor) -> Tensor:
        return (moved(x)[:, order] * strength).clamp(0, 1)

    return Pixels(recoloured(p.target), recoloured(p.draft), recoloured(p.reference), moved(p.mask))
