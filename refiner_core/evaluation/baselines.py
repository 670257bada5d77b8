"""Baselines without any model: the reference pasted into the draft, box on box and aligned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.triplets import mask_box
from ..interfaces import SamplingJob
from ..recipes.recipe import Recipe


@dataclass
class PastedReference:
    """An `Engine` that returns the reference as the pipeline aligned and lit it."""

    model: Recipe  # whose crop sizes are used

    @property
    def recipe(self) -> Recipe:
        return replace(
            self.model, steps=1, align=True, reference_blend=0.0, correct_drift_and_color=False
        )

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        pass

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        return job.input("reference").latent

    def describe(self) -> dict[str, str]:
        return {"kind": "pasted reference"}


def pasted_reference(
    draft: np.ndarray, mask: np.ndarray, reference: np.ndarray, reference_mask: np.ndarray | None
) -> np.ndarray:
    """The reference's detail box resized to the mask's box and pasted through the mask, uint8 H W 3.

    Raises:
        ValueError: a mask is empty.
    """
    target = mask_box(mask)
    source = (
        (0, 0, reference.shape[1], reference.shape[0])
        if reference_mask is None
        else mask_box(reference_mask)
    )
    if target is None or source is None:
        raise ValueError(f"The {'mask' if target is None else 'reference mask'} is empty.")
    size = (target[2] - target[0], target[3] - target[1])
    patch = Image.fromarray(reference).crop(source).resize(size, Image.Resampling.LANCZOS)
    out = Image.fromarray(draft)
    out.paste(patch, target[:2], Image.fromarray(mask).crop(target))
    return np.asarray(out)
