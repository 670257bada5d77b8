"""The crops of draft and references: planned and cut, the reference aligned if the recipe says so."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..images.crop import box_region, crop, crop_mask
from ..images.geometry import Box, CropPlan, Extent, plan_crop, plan_pair
from ..images.masks import Region, bounds
from ..matching.alignment import Alignment, align, apply_alignment
from ..matching.color import match_light
from ..recipes.recipe import Recipe


def plan_crops(
    draft: tuple[Extent, Box],
    references: list[tuple[Extent, Box]],
    recipe: Recipe,
    contexts: tuple[float, list[float]],
    megapixels: float | None,
) -> list[CropPlan]:
    """The draft's crop and the references': each at its own bucket, or all at a common one."""
    own, others = contexts
    if recipe.shared_bucket and references:
        first, second = plan_pair(
            draft, references[0], recipe.buckets, (own, others[0]), megapixels
        )
        return [first, second]
    return [plan_crop(*draft, recipe.buckets, own, megapixels)] + [
        plan_crop(*reference, recipe.buckets, c, megapixels)
        for reference, c in zip(references, others, strict=True)
    ]


def reference_box(reference: Tensor, mask: Tensor | None) -> tuple[Extent, Box]:
    """Size of the reference 1 3 h w, and the box of the detail in it (`mask` 1 1 h w or None: all).

    Raises:
        ValueError: the mask is empty.
    """
    size = Extent(reference.shape[-1], reference.shape[-2])
    box = Box(0, 0, *size) if mask is None else bounds(mask)
    if box is None:
        raise ValueError(
            f"The reference mask ({size}) is empty. Paint the detail in the reference, or leave "
            "the mask out to use the whole reference."
        )
    return size, box


def plan_crop_pair(
    draft: tuple[Extent, Box],
    reference: Tensor,
    mask: Tensor | None,
    recipe: Recipe,
    context: float,
    megapixels: float | None = None,
) -> tuple[CropPlan, CropPlan]:
    """Plans of the draft's and of one reference's crop, as `refine` makes them.

    Args:
        draft: size of the draft and box of the region.
        reference: 1 3 h w; `mask` 1 1 h w the detail in it, None = the whole reference.
        recipe, context, megapixels: whose buckets, crop over region, area in 10^6 px.

    Raises:
        ValueError: the mask is empty.
    """
    box = reference_box(reference, mask)
    contexts = (context, [1.0 if mask is None else context])
    first, second = plan_crops(draft, [box], recipe, contexts, megapixels)
    return first, second


def crop_reference(
    reference: Tensor,
    mask: Tensor | None,
    draft: Tensor,
    region_mask: Tensor,
    plan: CropPlan,
    *,
    aligned: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """The reference as the model sees it: its own crop, or aligned to the draft's.

    Args:
        reference: 1 3 h w in any stored type.
        mask: the detail in it, 1 1 h w; None = the whole reference.
        draft: the draft's crop, float 1 3 H W.
        region_mask: the region in that crop, 1 1 H W.
        plan: of the reference's crop.
        aligned: bring the reference into the draft's pose and light.

    Returns:
        the crop, float 1 3 by the plan's size (or H W when aligned), and what was done.
    """
    report: dict[str, Any] = {"crop": list(plan.box), "size": str(plan.target)}
    if not aligned:
        return crop(reference, plan), report
    cut, alignment = align_reference(reference, mask, draft, region_mask, plan)
    cut = match_light(apply_alignment(cut, alignment, *draft.shape[-2:]), draft, region_mask)
    return cut, report | {"alignment": alignment.report()}


def align_reference(
    reference: Tensor, mask: Tensor | None, draft: Tensor, region_mask: Tensor, plan: CropPlan
) -> tuple[Tensor, Alignment]:
    """The reference's own crop, 1 3 by the plan's size, and how it lies over the draft's crop.

    Args:
        reference, mask, draft, region_mask, plan: as for `crop_reference`.
    """
    b = plan.region
    part = None if mask is None else mask[..., b.y0 : b.y1, b.x0 : b.x1].float()
    detail = box_region(b) if part is None else Region(b, part)
    cut = crop(reference, plan)
    return cut, align(draft, region_mask, cut, crop_mask(detail, plan))
