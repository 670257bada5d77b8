"""The repair of one region in plain steps: prepare, show to the model, correct, stitch.

Each step hands a value on to the next. Sampling stands between `sampling_job` and `correct_region`,
and may be anybody's: the pipeline's, or another sampler's in a graph of single nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..images.crop import box_region, crop, crop_mask, stitch_into, uncrop, uncrop_signed
from ..images.geometry import Box, CropPlan, Extent, plan_crop, plan_native_crop
from ..images.masks import Region, bounds
from ..images.tensors import check_finite, to_float
from ..interfaces import CleanInput, SamplingJob
from ..matching.alignment import POOR_AGREEMENT
from ..matching.detail_transfer import DetailTransfer
from ..matching.find_detail import FoundDetail
from ..matching.tone import close_rim
from ..nano.reference_blend import ReferenceBlend
from ..nano.tile_inputs import with_draft_tone
from ..recipes.recipe import Recipe
from .drift_and_color import correct_drift_and_color
from .model_inputs import align_reference, crop_reference, plan_crops, reference_box
from .native_detail import crop_with_detail, transfer_reference
from .request import RefineOptions, RegionTask

# Scale of the model's crop below which it loses the fine detail.
_SHRUNK = 0.5
# A detail is searched for and laid over the draft within a region's shorter side and these px of it.
_SEARCHED = 16


@dataclass(frozen=True)
class PlannedRegion:
    """A region, and where its crops lie."""

    task: RegionTask
    """The region and what it is repaired from."""
    plan: CropPlan
    """Of the draft's crop."""
    outline_plan: CropPlan
    """Of the draft's crop in which outlines are aligned: the same, but for models that work on tiles."""
    reference_plans: tuple[CropPlan, ...]
    """Of each reference's own crop."""
    largest_scale: float
    """Of the crop that shows the region alone: the model sees it no larger."""
    native: bool
    """Whether the detail is laid over at the draft's own resolution, however small the model sees it."""
    pasted: Region
    """Where the repaired crop is blended in: usually the region itself."""

    @property
    def seen(self) -> Box:
        """All of the draft that its repair may depend on: the crop, and what is around the region as
        far as a detail is searched for and laid over it.
        """
        box, crop = self.task.region.box, self.plan.box
        around = min(box.extent) + _SEARCHED
        return Box(
            min(crop.x0, box.x0 - around),
            min(crop.y0, box.y0 - around),
            max(crop.x1, box.x1 + around),
            max(crop.y1, box.y1 + around),
        )

    @property
    def pasting_note(self) -> str | None:
        """A note if more than the region is pasted, from a crop that the model sees shrunk."""
        if self.task.region.box.contains(self.pasted.box) or self.plan.scale >= 1:
            return None
        return (
            f"{self.pasted.box.extent} px are pasted, of which the model sees only "
            f"{self.plan.scale:.0%} of the resolution, so fine detail around the region comes back "
            "blurred"
        )

    @property
    def pixels(self) -> int:
        """Of all crops at the model's size."""
        return sum(p.target.width * p.target.height for p in (self.plan, *self.reference_plans))


@dataclass(frozen=True)
class ReferenceCrop:
    """A reference and its crop."""

    picture: Tensor
    """The whole reference, 1 3 h w in any stored type."""
    mask: Tensor | None
    """The detail in it, 1 1 h w; None = the whole reference."""
    plan: CropPlan
    """Of its own crop."""
    crop: Tensor
    """As the model sees it, float 1 3 by the plan's size, or by the draft's when aligned."""


@dataclass(frozen=True)
class PreparedRegion:
    """A region, cut out and ready to be shown to a model."""

    recipe: Recipe
    """How it is to be shown, sampled and corrected."""
    region: Region
    """Where it is in the draft."""
    plan: CropPlan
    """Of the draft's crop."""
    draft: Tensor
    """The draft's crop, float 1 3 H W."""
    mask: Tensor
    """The region in that crop, 1 1 H W."""
    references: tuple[ReferenceCrop, ...]
    """At most three."""
    aligned: bool
    """Whether the references lie in the draft's pose and light."""
    blend: ReferenceBlend
    """What goes into the draft and the result of the first reference."""
    pasted: Region
    """Where the repaired crop is blended in."""
    report: dict[str, Any]
    """For JSON."""
    transfer: DetailTransfer | None = None
    """The reference's detail at the draft's own resolution, for recipes that ask for it."""
    left_alone: bool = False
    """Whether the draft stays as it is, because the detail was not found in the reference."""


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
    if recipe.tile and task.references and _aligns(recipe, options):
        plan = alone = plan_native_crop(plan, pasted.box, recipe.tile, options.megapixels)
    native = recipe.native_detail and bool(task.references) and _aligns(recipe, options)
    return PlannedRegion(task, plan, outlines, tuple(others), alone.scale, native, pasted)


def _aligns(recipe: Recipe, options: RefineOptions) -> bool:
    return recipe.align if options.align is None else options.align


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
    check_finite(image[..., i.y0 : i.y1, i.x0 : i.x1], "draft")
    draft, region_mask = crop(image, plan), crop_mask(task.region, plan)
    plans = planned.reference_plans
    given = list(zip(task.references, task.reference_masks, plans, strict=True))
    aligned = bool(given) and _aligns(recipe, options)
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
        lost = not found.sure and (found.searched or found.empty)
        left_alone = lost and options.align is None
        if left_alone:
            report["left_alone"] = _not_found(found)
    for reference, mask, own in given[len(crops) :]:
        cut, done = crop_reference(reference, mask, draft, region_mask, own, aligned=aligned)
        crops.append(ReferenceCrop(reference, mask, own, cut))
        report.setdefault("references", []).append(done)
    report |= {} if left_alone else _poor_match(report)
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


def _not_found(found: FoundDetail) -> str:
    """Why a region was left alone."""
    if found.empty and not found.searched:
        return (
            f"The reference shows only one colour at {list(found.box())}, so the draft was left as "
            "it is. Mark the detail in the reference, or turn alignment on to repair it anyway."
        )
    return (
        f"The detail was not found in the reference (agreement {found.score:.3f}), so the draft was "
        "left as it is. Mark the detail in the reference, or turn alignment on to repair it anyway."
    )


def _poor_match(report: dict[str, Any]) -> dict[str, str]:
    """What is to be said of a region whose first reference hardly agrees with it."""
    alignment = next((r.get("alignment") for r in report.get("references", [])), None)
    if alignment is None or alignment.get("sure", alignment["score"] >= POOR_AGREEMENT):
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


def shown_pictures(
    prepared: PreparedRegion, blend: ReferenceBlend | None = None
) -> list[tuple[str, Tensor]]:
    """Role and picture, float 1 3 H W, of all that the model sees, in the recipe's order.

    Args:
        blend: in place of the region's own.
    """
    references = [r.crop for r in prepared.references]
    draft = prepared.draft
    if prepared.recipe.tile and prepared.transfer is not None:
        draft = with_draft_tone(draft, references[0], prepared.mask)
    elif references:
        draft = (blend or prepared.blend).shown(draft, references[0], prepared.mask)
    mask = (prepared.mask > 0.5).float().expand(-1, 3, -1, -1)
    pictures = {"draft": [draft], "reference": references, "mask": [mask]}
    return [(role, picture) for role in prepared.recipe.order for picture in pictures[role]]


def clean_inputs(
    pictures: Sequence[tuple[str, Tensor]], recipe: Recipe, encode: Callable[[Tensor], Tensor]
) -> tuple[CleanInput, ...]:
    """Those pictures encoded, with their position indices.

    Args:
        encode: picture 1 3 H W to latent 1 C h w.
    """
    first = recipe.indices[0]
    return tuple(
        CleanInput(role, picture, encode(picture), first + i)
        for i, (role, picture) in enumerate(pictures)
    )


def sampling_job(
    recipe: Recipe,
    size: Extent,
    inputs: tuple[CleanInput, ...],
    options: RefineOptions,
    mask: Tensor | None = None,
) -> SamplingJob:
    """What a sampler needs to know, by the recipe.

    Args:
        size: of the crop, in px.
        mask: the region in the crop, 1 1 H W, which `options.model_mask` holds sampling to.
    """
    guidance, cfg = recipe.resolve_guidance(options.guidance)
    job = SamplingJob(
        inputs,
        recipe.sigmas(size, options.steps),
        recipe.text(options.prompt, options.subject),
        guidance,
        options.seed,
        cfg=cfg,
    )
    if mask is None or options.model_mask == 0:
        return job
    small = torch.nn.functional.adaptive_max_pool2d(mask, job.draft.shape[-2:])
    return replace(job, restrict=1 - options.model_mask * (1 - small))


def correct_region(
    prepared: PreparedRegion,
    result: Tensor,
    options: RefineOptions,
    coded_reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """What the model made, with the codec's residual given back and drift and colour cast taken out.

    Args:
        result: the decoded crop, float 1 3 H W.
        options: `drift` and `color_match`; None follows the recipe.
        coded_reference: the first reference's crop encoded and decoded again, for recipes with a
            codec residual; None leaves that out.
    """
    result = result.float().clamp(0, 1)
    if prepared.blend.residual and coded_reference is not None:
        result = prepared.blend.restore(result, prepared.references[0].crop, coded_reference)
    usual = prepared.recipe.correct_drift_and_color
    corrected, report = correct_drift_and_color(
        result,
        prepared.draft,
        prepared.region,
        prepared.plan,
        drift=usual if options.drift is None else options.drift,
        color_match=float(usual) if options.color_match is None else options.color_match,
    )
    if options.blend == "membrane" and prepared.transfer is None:
        mask = prepared.mask
        if prepared.pasted is not prepared.region:
            mask = crop_mask(prepared.pasted, prepared.plan)
        corrected = close_rim(corrected, prepared.draft, mask)
    return corrected, report


def stitch_region(
    image: Tensor, prepared: PreparedRegion, result: Tensor, options: RefineOptions
) -> None:
    """Blend the repaired crop, float 1 3 H W, into `image` itself. Outside of what is pasted it keeps
    its exact bits, and so does a region that is left alone.
    """
    if prepared.left_alone:
        return
    patch = _patch(image, prepared, result)
    stitch_into(image, patch, prepared.pasted, feather_pixels=options.feather, blend=options.blend)


def _patch(image: Tensor, prepared: PreparedRegion, result: Tensor) -> Tensor:
    """The repaired crop at the draft's resolution, cut to the box of what is pasted.

    Where the detail was transferred at that resolution, only what the model changed of it is scaled
    up, and where it was not, the picture stays as it is.
    """
    pasted = prepared.pasted
    if prepared.transfer is None:
        return uncrop(result, prepared.plan, pasted)
    b = pasted.box
    patch = to_float(image[..., b.y0 : b.y1, b.x0 : b.x1]).clone()
    seen = prepared.transfer.window.intersection(b)
    if min(seen.extent) <= 0:
        return patch
    change = uncrop_signed(result - prepared.references[0].crop, prepared.plan, pasted)
    rows, columns = slice(seen.y0 - b.y0, seen.y1 - b.y0), slice(seen.x0 - b.x0, seen.x1 - b.x0)
    picture, shown = prepared.transfer.part(seen)
    patch[..., rows, columns] = picture + shown * change[..., rows, columns]
    return patch.clamp(0, 1)


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
