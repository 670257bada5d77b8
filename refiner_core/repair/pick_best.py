"""Chooses among finished pictures: which of them shows the reference's detail best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.crop import crop, crop_mask
from ..images.geometry import Extent
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


@torch.inference_mode()
def pick_best(
    images: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    scorer: Scorer | None = None,
    align: bool = True,
) -> Ranking:
    """Rank pictures by their region's distance to the reference.

    Args:
        images: N 3 H W in any stored type.
        reference: 1 3 h w, of any size.
        mask: the region in all of them, 1 1 H W, or N of them; None = everything.
        reference_mask: the detail in the reference, 1 1 h w; None = all of it.
        scorer: None = the one without weights.
        align: bring the reference into each picture's pose and light first; else its region is
            only cropped and scaled to the picture's.

    Raises:
        ValueError: sizes that do not fit, an empty mask or NaN, with the values and the fix.
    """
    _check(images, reference, mask)
    scorer = scorer or StructuralScorer()
    distances = []
    for i, image in enumerate(images.split(1)):
        own = None if mask is None else mask[min(i, len(mask) - 1)][None]
        distances.append(_distance(scorer, image, reference, own, reference_mask, align))
    order = sorted(range(len(images)), key=lambda i: distances[i])
    return Ranking(order, distances, scorer.name)


def _check(images: Tensor, reference: Tensor, mask: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"The images must be N 3 H W, got {tuple(images.shape)}.")
    if reference.ndim != 4 or len(reference) != 1:
        raise ValueError(f"One reference is needed, got {len(reference)}: pick one of the batch.")
    check_finite(images, "batch of images")
    check_finite(reference, "reference")
    if mask is None:
        return
    if mask.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"The mask is {mask.shape[-1]}x{mask.shape[-2]} but the images are "
            f"{images.shape[-1]}x{images.shape[-2]}. Resize the mask first."
        )
    if len(mask) not in (1, len(images)):
        raise ValueError(f"{len(mask)} masks for {len(images)} images: give one, or as many.")


def _distance(
    scorer: Scorer, image: Tensor, reference: Tensor, mask: Tensor | None,
    reference_mask: Tensor | None, align: bool,
) -> float:  # fmt: skip
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
