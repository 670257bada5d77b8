"""Cuts a triplet as inference cuts a repair, and says whether the crop is worth training on."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from ..data.triplets import Triplet
from ..images.crop import crop, crop_mask
from ..images.filters import blur
from ..images.geometry import Box, CropPlan, Extent
from ..images.masks import Region, bounds
from ..recipes.recipe import Recipe
from ..repair.model_inputs import crop_reference, plan_crop_pair
from .config import DataSettings
from .dataset import Pixels

_BLUR = 2.0  # px: finer detail does not count in the agreement


def _tensor(image: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.array(image, order="C"))  # the array may be read-only
    return x[None, None].float() / 255 if x.ndim == 2 else x.permute(2, 0, 1)[None]


def _region(mask: Tensor, rng: np.random.Generator) -> Region:
    """The region of the mask; for an empty mask a random box, so that the crop is placed at random."""
    box = bounds(mask)
    if box is None:
        h, w = mask.shape[-2:]
        side = max(8, int(min(h, w) * rng.uniform(0.2, 0.5)))
        x, y = (int(rng.integers(0, max(1, v - side + 1))) for v in (w, h))
        box = Box(x, y, min(w, x + side), min(h, y + side))
    return Region(box, mask[..., box.y0 : box.y1, box.x0 : box.x1].contiguous())


def _reference_mask(triplet: Triplet) -> Tensor | None:
    if triplet.reference_mask is None:
        return None
    mask = _tensor(triplet.reference_mask)
    return None if bounds(mask) is None else mask


def _vary_reference(
    reference: Tensor, rng: np.random.Generator, data: DataSettings, aligned: bool
) -> Tensor:
    """The reference mirrored and recoloured as the settings ask."""
    if data.flip and not aligned and rng.random() < 0.5:
        reference = reference.flip(-1)
    if data.jitter:
        gain = torch.from_numpy(np.exp(rng.normal(0, data.jitter, (1, 3, 1, 1)))).float()
        reference = (reference * gain).clamp(0, 1)
    return reference


def crop_triplet(
    triplet: Triplet, recipe: Recipe, data: DataSettings, number: int
) -> tuple[Pixels, CropPlan]:
    """Crop `number` of a triplet, planned as the pipeline plans a repair (see `DataSettings`).

    The crop's context, the reference's mirroring and its colours follow from (id, number).

    Raises:
        ValueError: the triplet has no target, or cannot be cropped.
    """
    if triplet.target is None:
        raise ValueError(f"{triplet.id} has no target, which training needs.")
    # The repairs of one case have to be cropped alike.
    case = triplet.info.get("preference", triplet.id)
    name = hashlib.sha256(f"{case}/{number}".encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(name, "big"))
    draft, target, mask = (_tensor(a) for a in (triplet.draft, triplet.target, triplet.mask))
    region = _region(mask, rng)
    size = Extent(draft.shape[-1], draft.shape[-2])
    context = float(rng.uniform(*data.context))
    given, reference_mask = _tensor(triplet.reference), _reference_mask(triplet)
    plan, reference_plan = plan_crop_pair(
        (size, region.box), given, reference_mask, recipe, context, data.megapixels
    )
    draft_crop, inside = crop(draft, plan), crop_mask(region, plan)
    around = inside if bool(inside.any()) else torch.ones_like(inside)
    reference, _ = crop_reference(
        given, reference_mask, draft_crop, around, reference_plan, aligned=recipe.align
    )
    reference = _vary_reference(reference, rng, data, recipe.align)
    return Pixels(crop(target, plan), draft_crop, reference, (inside > 0).float()), plan


def agreement(p: Pixels) -> float:
    """How well reference and target agree inside the mask once fine detail is blurred, PSNR in dB.

    It is low where the mask takes in much background, where the light could not be matched, or where
    the alignment is off: such a crop teaches the model to distrust the reference.
    """
    error = (blur(p.reference, _BLUR) - blur(p.target, _BLUR)).square() * p.mask
    return -10 * math.log10(float(error.sum() / (3 * p.mask.sum()).clamp_min(1)) + 1e-6)


def gain(p: Pixels) -> float:
    """How much closer the reference is to the target than the draft inside the mask, in dB.

    Where it is not closer, the best answer is to keep the draft. A small model that learns both
    answers learns to mix them, and a mixture of two words reads as neither.
    """

    def error(x: Tensor) -> float:
        return float(((x - p.target).square() * p.mask).sum()) + 1e-4

    return 10 * math.log10(error(p.draft) / error(p.reference))


def check_worth(p: Pixels, data: DataSettings) -> None:
    """Refuse a crop below the least agreement or the least gain.

    Raises:
        ValueError: names the value, the setting and its limit.
    """
    for name, least, measure in (
        ("agreement", data.least_agreement, agreement),
        ("gain", data.least_gain, gain),
    ):
        if least is not None and (value := measure(p)) < least:
            raise ValueError(f"Its {name} is {value:.2f} dB, below data.least_{name} = {least:g}.")
