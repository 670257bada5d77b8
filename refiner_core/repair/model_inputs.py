"""What a model gets to see: the crops of draft and references, planned, cut and put in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..images.crop import box_region, crop, crop_mask
from ..images.geometry import Box, CropPlan, Extent, plan_crop, plan_pair
from ..images.masks import Region, bounds
from ..matching.alignment import align, apply_alignment
from ..matching.color import match_light
from ..recipes.recipe import Recipe


def ordered_pictures(
    order: tuple[str, ...], draft: Tensor, views: Sequence[Tensor], region_mask: Tensor
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Roles and pictures in the recipe's order; "mask" is the region in black and white."""
    mask = (region_mask > 0.5).float().expand(-1, 3, -1, -1)
    parts = {"draft": [draft], "reference": views, "mask": [mask]}
    pairs = [(role, picture) for role in order for picture in parts[role]]
    return tuple(role for role, _ in pairs), tuple(picture for _, picture in pairs)


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
        plan_crop(*frame, recipe.buckets, c, megapixels)
        for frame, c in zip(references, others, strict=True)
    ]


def reference_frame(reference: Tensor, mask: Tensor | None) -> tuple[Extent, Box]:
    """Size of the reference and the box of the detail in it."""
    size = Extent(reference.shape[-1], reference.shape[-2])
    box = Box(0, 0, *size) if mask is None else bounds(mask)
    if box is None:
        raise ValueError(
            f"The reference mask ({size}) is empty. Paint the detail in the reference, or leave "
            "the mask out to use the whole reference."
        )
    return size, box


def plan_views(
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
    frame = reference_frame(reference, mask)
    contexts = (context, [1.0 if mask is None else context])
    first, second = plan_crops(draft, [frame], recipe, contexts, megapixels)
    return first, second


def reference_view(
    reference: Tensor,
    mask: Tensor | None,
    seen: Tensor,
    region_mask: Tensor,
    plan: CropPlan,
    *,
    aligned: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """The reference as the model sees it: its own crop, or aligned to the draft's.

    Args:
        reference: 1 3 h w in any stored type.
        mask: the detail in it, 1 1 h w; None = the whole reference.
        seen: the draft's crop, float 1 3 H W.
        region_mask: the region in that crop, 1 1 H W.
        plan: of the reference's crop.
        aligned: bring the reference into the draft's pose and light.

    Returns:
        the view, float 1 3 by the plan's size (or H W when aligned), and what was done.
    """
    view = crop(reference, plan)
    report: dict[str, Any] = {"crop": list(plan.box), "size": str(plan.target)}
    if aligned:
        b = plan.region
        part = (
            box_region(b)
            if mask is None
            else Region(b, mask[..., b.y0 : b.y1, b.x0 : b.x1].float())
        )
        found = align(seen, region_mask, view, crop_mask(part, plan))
        view = apply_alignment(view, found, *seen.shape[-2:])
        view = match_light(view, seen, region_mask)
        report["alignment"] = found.report()
    return view, report


def prefill(seen: Tensor, view: Tensor, region_mask: Tensor, share: float) -> Tensor:
    """The draft's crop with `share` of an aligned reference view laid over the region.

    For a model too small to tell a wrong detail from a right one on its own: what it gets to see of
    the wrong one is weakened.
    """
    return seen if share == 0 else seen + share * region_mask * (view - seen)


def spread_share(share: float, i: int) -> float:
    """The share of `prefill` of candidate `i`: `share` itself, then evenly over 0.85 to 1.

    Steps of the golden ratio, so that any first N candidates cover the range. A small model's
    output hardly depends on the noise; what it sees of the draft is what makes candidates differ.
    """
    low, span = 0.85, 0.15
    if i == 0:
        return share
    return low + span * (((share - low) / span + i * 0.6180339887498949) % 1.0)


def lost(view: Tensor, coded: Tensor) -> Tensor:
    """What a codec takes away from an aligned reference view, to be given back to the result.

    Fine print is lost in a coarse codec. Where the model has put the reference's detail at the same
    place, the missing remainder is the reference's too.

    Args:
        view: float 1 3 H W.
        coded: the view encoded and decoded again.
    """
    return view - coded.float().clamp(0, 1)
