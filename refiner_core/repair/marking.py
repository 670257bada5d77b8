"""What is marked for a repair: masks of any common range, and regions that are too large."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..images.geometry import Buckets, Extent, plan_crop
from ..images.mask_io import coverage_notes, is_unpainted, normalize_mask
from ..images.masks import Region
from .request import RefineRequest

_BLURRED = 0.5  # a region that the model sees at a smaller scale loses its fine detail
_WHOLE = 0.8  # part of the picture's area from which on a region is no detail


def normalize_request(request: RefineRequest) -> RefineRequest:
    """The request with masks from 0 to 1 and without masks in which nothing is painted.

    Raises:
        ValueError: it is not clear what a mask means.
    """
    mask, notes = _normalized(request.mask, request.draft, "mask")
    if mask is not None:
        notes += coverage_notes(mask)
    reference_masks: list[Tensor | None] = []
    for given, reference in zip(request.reference_masks, request.references, strict=False):
        own, more = _normalized(given, reference, "reference mask")
        reference_masks.append(own)
        notes += more
    rest = request.reference_masks[len(reference_masks) :]
    return replace(
        request,
        mask=mask,
        reference_masks=(*reference_masks, *rest),
        notes=(*request.notes, *notes),
    )


def _normalized(
    mask: Tensor | None, image: Tensor, name: str
) -> tuple[Tensor | None, tuple[str, ...]]:
    if mask is None or mask.ndim != 4:
        return mask, ()
    if is_unpainted(mask, image.shape[-1], image.shape[-2]):
        note = f"the {name} is empty and has 64x64 px: nothing is painted, so it is ignored"
        return None, (note,)
    return normalize_mask(mask, name)


def region_notes(
    regions: list[Region], size: Extent, buckets: Buckets, megapixels: float | None
) -> tuple[str, ...]:
    """Notes about regions that the model sees so small that fine detail comes back blurred.

    Args:
        regions: of one picture.
        size: of the picture.
        buckets, megapixels: the sizes at which the model works (see `plan_crop`).

    Raises:
        ValueError: such a region is nearly the whole picture, as with an inverted mask.
    """
    notes: list[str] = []
    for region in regions:
        plan = plan_crop(size, region.box, buckets, 1.0, megapixels)
        if plan.scale >= _BLURRED:
            continue
        extent = region.box.extent
        covered = float((region.mask > 0).sum()) / size.area
        seen = f"the model sees it at {plan.scale:.0%} of its size"
        if covered >= _WHOLE:
            raise ValueError(
                f"The mask or box marks {covered:.0%} of the draft of {size}, and {seen}, so the "
                "picture would come back blurred. Mark only the detail; if the mask marks everything "
                "but the detail, invert it. To repair the whole picture, scale it down first, or "
                "raise megapixels."
            )
        notes.append(
            f"the region of {extent} is large: {seen}, so fine detail comes back blurred. Mark a "
            "smaller part, or raise megapixels"
        )
    return tuple(notes)
