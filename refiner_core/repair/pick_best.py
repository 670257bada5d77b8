"""Chooses among finished pictures: which of them shows the reference's detail best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.crop import crop, crop_mask
from ..images.geometry import Extent
from ..images.masks import find_regions, whole_region
from ..images.tensors import check_finite
from ..recipes.recipe import OMNIREFINER
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .model_inputs import plan_views, reference_view

_CONTEXT = 1.3  # of the region's box: what is compared
_MEGAPIXELS = 0.15  # at which it is compared; the detail fills most of it


@dataclass(frozen=True)
class Picked:
    """`order` numbers of the pictures, best first; `distances` by picture; `scorer`'s name."""

    order: list[int]
    distances: list[float]
    scorer: str


@torch.inference_mode()
def pick_best(
    images: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    *,
    scorer: Scorer | None = None,
    align: bool = True,
) -> Picked:
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
    judge = scorer or StructuralScorer()
    distances = []
    for i, image in enumerate(images.split(1)):
        own = None if mask is None else mask[min(i, len(mask) - 1)][None]
        distances.append(_distance(judge, image, reference, own, reference_mask, align))
    order = sorted(range(len(images)), key=lambda i: distances[i])
    return Picked(order, distances, judge.name)


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
    region = whole_region(size) if mask is None else find_regions(mask, split=False)[0]
    context = 1.0 if mask is None else _CONTEXT
    plan, own = plan_views(
        (size, region.box), reference, reference_mask, OMNIREFINER, context, _MEGAPIXELS
    )
    seen, where = crop(image, plan), crop_mask(region, plan)
    view, _ = reference_view(reference, reference_mask, seen, where, own, aligned=align)
    if view.shape != seen.shape:
        view = torch.nn.functional.interpolate(
            view, seen.shape[-2:], mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
    return float(scorer.distance(seen, view, where))
