"""Plans where the crops of a region lie, and cuts them out, the references aligned with the draft."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..images.crop import box_region, crop, crop_mask
from ..images.geometry import CropPlan, Extent, plan_crop, plan_native_crop
from ..images.masks import Region, bounds
from ..images.tensors import check_picture
from ..matching.alignment import POOR_AGREEMENT
from ..matching.find_detail import FoundDetail
from ..nano.reference_blend import ReferenceBlend
from ..recipes.recipe import Recipe
from .model_inputs import align_reference, crop_reference, plan_crops, reference_box
from .native_detail import crop_with_detail, transfer_reference
from .region import PlannedRegion, PreparedRegion, ReferenceCrop
from .request import RefineOptions, RegionTask

# Scale of the model's crop below which it loses the fine detail.
_SHRUNK = 0.5
# Pixels of the reference per pixel of the draft below which it has no detail to give, and little.
_LEAST_ZOOM, _SMALL_ZOOM = 0.2, 0.5


def plan_region(
    task: RegionTask, size: Extent, recipe: Recipe, options: RefineOptions
) -> PlannedRegion:
    """Where the crops of a region in a picture of that size lie.

    Raises:
        ValueError: an empty reference mask, a paste mask that marks nothing in the crop, or more or
            fewer references than the recipe takes.
    """
    recipe.check_references(len(task.references))
    context = recipe.context if options.context is None else options.context
    given = list(zip(task.references, task.reference_masks, strict=True))
    plan, *others = plan_crops(
        (size, task.region.box),
        [reference_box(reference, mask) for reference, mask in given],
        recipe,
        (context, [1.0 if mask is None else context for _, mask in given]),
        options.megapixels,
    )
    alone = plan_crop(size, task.region.box, recipe.buckets, 1.0, options.megapixels)
    pasted, outlines = _pasted(task, plan), plan
    if recipe.tile and task.references and options.aligns(recipe):
        plan = alone = plan_native_crop(plan, pasted.box, recipe.tile, options.megapixels)
    native = recipe.native_detail and bool(task.references) and options.aligns(recipe)
    return PlannedRegion(task, plan, outlines, tuple(others), alone.scale, native, pasted)


def _pasted(task: RegionTask, plan: CropPlan) -> Region:
    """Where a repaired crop is blended in: the region, all of the crop, or the paste mask in it."""
    if task.paste == "region":
        return task.region
    i = plan.inside
    if task.paste == "crop":
        return box_region(i)
    assert isinstance(task.paste, Tensor)
    mask = task.paste[..., i.y0 : i.y1, i.x0 : i.x1].float()
    box = bounds(mask)
    if box is None:
        raise ValueError(
            f"The paste mask marks nothing in the crop {tuple(i)} of the region "
            f"{tuple(task.region.box)}. Paint what is to be pasted there, or leave the paste mask out."
        )
    cut = mask[..., box.y0 : box.y1, box.x0 : box.x1].contiguous()
    return Region(box.moved(i.x0, i.y0), cut)


def prepare_region(
    image: Tensor, planned: PlannedRegion, recipe: Recipe, options: RefineOptions
) -> PreparedRegion:
    """Cut the crops of a region out.

    Args:
        image: the picture, 1 3 H W in any stored type; may be repaired elsewhere already.
        recipe, options: how its references are aligned and blended in.

    Raises:
        ValueError: NaN within the crop.
    """
    task, plan = planned.task, planned.plan
    i = plan.inside
    check_picture(image[..., i.y0 : i.y1, i.x0 : i.x1], "draft")
    draft, region_mask = crop(image, plan), crop_mask(task.region, plan)
    plans = planned.reference_plans
    given = list(zip(task.references, task.reference_masks, plans, strict=True))
    aligned = bool(given) and options.aligns(recipe)
    report = _plan_report(planned)
    crops: list[ReferenceCrop] = []
    transfer, left_alone = None, False
    if aligned and recipe.native_detail and (recipe.tile or _is_searched(task, plan)):
        reference, mask, own = given[0]
        flat = None
        if mask is not None:
            flat = _outline_alignment(image, planned, reference, mask)
        transfer, found = transfer_reference(image, task, planned.outline_plan, own, flat)
        crops.append(ReferenceCrop(*given[0], crop_with_detail(image, transfer, plan)))
        report["references"] = [
            {"crop": list(own.box), "size": str(own.target), "alignment": found.report()}
        ]
        why = _useless(found)
        left_alone = why is not None and options.align is None
        report |= {"left_alone": why} if left_alone else _coarse(found)
    for reference, mask, own in given[len(crops) :]:
        cut, done = crop_reference(reference, mask, draft, region_mask, own, aligned=aligned)
        if task.found and (found := task.found[len(crops)]) is not None:
            done["found"] = found
        crops.append(ReferenceCrop(reference, mask, own, cut))
        report.setdefault("references", []).append(done)
    report |= {} if left_alone or "poor_match" in report else _poor_match(report)
    blend = ReferenceBlend.of(recipe, aligned=aligned)
    return PreparedRegion(
        recipe,
        task.region,
        plan,
        draft,
        region_mask,
        tuple(crops),
        aligned,
        blend,
        planned.pasted,
        report,
        transfer,
        left_alone,
    )


def _useless(found: FoundDetail) -> str | None:
    """Why a region is left alone, or None."""
    fix = "Mark the detail in the reference"
    if not found.sure and found.searched:
        reason = f"The detail was not found in the reference (agreement {found.score:.3f})"
    elif not found.sure and found.empty:
        reason = f"The reference shows only one color at {list(found.box())}"
    elif found.zoom < _LEAST_ZOOM:
        reason, fix = _resolution(found), "Use a larger picture of the detail"
    else:
        return None
    return f"{reason}, so the draft was left as it is. {fix}, or turn alignment on to repair it anyway."


def _coarse(found: FoundDetail) -> dict[str, str]:
    """What is to be said of a reference that shows the detail smaller than the draft does."""
    found_by_chance = found.searched and not found.sure
    if found.zoom >= _SMALL_ZOOM or found_by_chance:
        return {}
    text = f"{_resolution(found)}, so the repair is softer than the draft around it"
    return {"poor_match": f"{text}. Use a larger picture of the detail."}


def _resolution(found: FoundDetail) -> str:
    width, height = found.box().extent
    size = f"{width}x{height} px"
    return f"The reference shows the detail at {found.zoom:.0%} of the draft's resolution ({size})"


def _poor_match(report: dict[str, Any]) -> dict[str, str]:
    """What is to be said of a region whose first reference hardly agrees with it."""
    alignment = next((r.get("alignment") for r in report.get("references", [])), None)
    if alignment is None or not alignment.get("weak", alignment["score"] < POOR_AGREEMENT):
        return {}
    text = (
        f"The reference hardly matches the region (agreement {alignment['score']:.3f}). Check that "
        "both are marked on the same detail."
    )
    return {"poor_match": text}


def _outline_alignment(
    image: Tensor, planned: PlannedRegion, reference: Tensor, mask: Tensor
) -> Tensor:
    """The homography 3 3 that lays the draft's outline crop on the first reference's."""
    plan = planned.outline_plan
    draft, region_mask = crop(image, plan), crop_mask(planned.task.region, plan)
    own = planned.reference_plans[0]
    return align_reference(reference, mask, draft, region_mask, own)[1].matrix


def _is_searched(task: RegionTask, plan: CropPlan) -> bool:
    """Whether the detail is searched for and laid over the draft at the draft's own resolution.

    An outline of a flat detail that fits the model's crop already says exactly where it lies. A box
    does not, and neither does a reference without a mask.
    """
    is_box = bool((task.region.mask > 0).all())
    return is_box or plan.scale < _SHRUNK or task.reference_masks[0] is None


def _plan_report(planned: PlannedRegion) -> dict[str, Any]:
    plan = planned.plan
    report: dict[str, Any] = {
        "region": list(plan.region),
        "crop": list(plan.box),
        "bucket": str(plan.target),
        "scale": round(plan.scale, 4),
        "padding": list(plan.padding),
    }
    if planned.pasted is not planned.task.region:
        report["pasted"] = list(planned.pasted.box)
    return report
