"""Chooses among finished pictures: which of them shows the reference's detail best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.crop import crop, crop_mask
from ..images.geometry import Extent
from ..images.mask_io import usable_mask
from ..images.tensors import check_finite
from ..recipes.recipe import OMNIREFINER
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .model_inputs import crop_reference, plan_crop_pair
from .request import single_region

_CONTEXT = 1.3  # of the region's box: what is compared
_MEGAPIXELS = 0.15  # at which it is compared; the detail fills most of it


@dataclass(frozen=True)
class Ranking:
    """How near the pictures come to the reference."""

    order: list[int]
    """Numbers of the pictures, best first."""
    distances: list[float]
    """Of each picture to the reference, 0 is equal."""
    scorer: str
    """Name of what measured it."""
    notes: tuple[str, ...] = ()
    """What was changed in the masks."""


@torch.inference_mode()
def pick_best(
    images: Sequence[Tensor],
    reference: Tensor,
    masks: Sequence[Tensor] = (),
    reference_mask: Tensor | None = None,
    *,
    scorer: Scorer | None = None,
    align: bool = True,
) -> Ranking:
    """Rank pictures by their region's distance to the reference.

    Args:
        images: each 1 3 H W in any stored type; their sizes may differ.
        reference: 1 3 h w, of any size.
        masks: the region in all of them, one 1 1 H W, or one for each; none = everything.
        reference_mask: the detail in the reference, 1 1 h w; None = all of it.
        scorer: None = the one without weights.
        align: bring the reference into each picture's pose and light first; else its region is
            only cropped and scaled to the picture's.

    Raises:
        ValueError: sizes that do not fit, an empty mask or NaN, or a mask whose meaning is not clear,
            with the values and the fix.
    """
    _check(images, reference)
    regions, notes = _usable(images, masks)
    height, width = reference.shape[-2:]
    reference_mask, more = usable_mask(reference_mask, width, height, "reference mask")
    scorer = scorer or StructuralScorer()
    distances = []
    for i, image in enumerate(images):
        distances.append(_distance(scorer, image, reference, regions[i], reference_mask, align))
    order = sorted(range(len(images)), key=lambda i: distances[i])
    return Ranking(order, distances, scorer.name, tuple(dict.fromkeys((*notes, *more))))


def _check(images: Sequence[Tensor], reference: Tensor) -> None:
    if not images:
        raise ValueError("There are no images to choose from.")
    if reference.ndim != 4 or len(reference) != 1:
        raise ValueError(
            f"Pick Best compares with one reference, got a batch of {len(reference)}. Select one of it."
        )
    check_finite(reference, "reference")
    for i, image in enumerate(images):
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise ValueError(f"Image {i} must be 1 3 H W, got {tuple(image.shape)}.")
        check_finite(image, f"image {i}")


def _usable(
    images: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[list[Tensor | None], list[str]]:
    """The mask of each image, None for all of it, and what was changed in them."""
    if len(masks) > 1 and len(masks) != len(images):
        raise ValueError(f"{len(masks)} masks for {len(images)} images: give one, or as many.")
    regions: list[Tensor | None] = []
    notes: list[str] = []
    for i, image in enumerate(images):
        own = masks[min(i, len(masks) - 1)] if masks else None
        mask, more = usable_mask(own, image.shape[-1], image.shape[-2], "mask")
        if mask is not None and mask.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"The mask is {mask.shape[-1]}x{mask.shape[-2]} but image {i} is "
                f"{image.shape[-1]}x{image.shape[-2]}. Resize the mask first, or give every image its "
                "own."
            )
        regions.append(mask)
        notes += more
    return regions, notes


def _distance(
    scorer: Scorer,
    image: Tensor,
    reference: Tensor,
    mask: Tensor | None,
    reference_mask: Tensor | None,
    align: bool,
) -> float:
    size = Extent(image.shape[-1], image.shape[-2])
    region = single_region(mask, size)
    context = 1.0 if mask is None else _CONTEXT
    plan, own = plan_crop_pair(
        (size, region.box), reference, reference_mask, OMNIREFINER, context, _MEGAPIXELS
    )
    cut, where = crop(image, plan), crop_mask(region, plan)
    goal, _ = crop_reference(reference, reference_mask, cut, where, own, aligned=align)
    if goal.shape != cut.shape:
        goal = torch.nn.functional.interpolate(
            goal, cut.shape[-2:], mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
    return float(scorer.distance(cut, goal, where))
