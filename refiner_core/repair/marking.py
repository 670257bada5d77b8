"""What is marked for a repair: masks of any common range, and regions that are too large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..images.geometry import Extent
from ..images.mask_io import (
    bounded_mask,
    coverage_notes,
    strength_notes,
    uniform_notes,
    usable_mask,
)
from ..images.tensors import check_picture
from .region import PlannedRegion
from .request import RefineRequest

_BLURRED = 0.5  # a region that the model sees at a smaller scale loses its fine detail
_WHOLE = 0.8  # part of the picture's area above which a region is not a detail


def normalize_request(request: RefineRequest) -> RefineRequest:
    """The request with masks from 0 to 1 and without masks in which nothing is painted. One for which
    this was done is returned as it is: all of its masks need not be read again.

    Raises:
        ValueError: NaN in a reference or a mask, or it is not clear what a mask means.
    """
    if request.marked is not None:
        return request
    for reference in request.references:
        check_picture(reference, "reference")
    height, width = request.draft.shape[-2:]
    mask, notes, marked = bounded_mask(request.mask, width, height, "mask")
    if mask is not None:
        notes += (*coverage_notes(mask, marked), *strength_notes(mask, marked))
    reference_masks: list[Tensor | None] = []
    for given, reference in zip(request.reference_masks, request.references, strict=False):
        height, width = reference.shape[-2:]
        own, more = usable_mask(given, width, height, "reference mask")
        reference_masks.append(own)
        notes += (*more, *uniform_notes(reference, own))
    rest = request.reference_masks[len(reference_masks) :]
    height, width = request.draft.shape[-2:]
    paste_mask, more = usable_mask(request.paste_mask, width, height, "paste mask")
    return replace(
        request,
        mask=mask,
        marked=marked,
        reference_masks=(*reference_masks, *rest),
        notes=(*request.notes, *notes, *more),
        paste_mask=paste_mask,
    )


def region_notes(regions: Sequence[PlannedRegion], size: Extent) -> tuple[str, ...]:
    """Notes about regions that the model sees so small that fine detail comes back blurred.

    Args:
        regions: of one picture of that size.

    Raises:
        ValueError: such a region is nearly the whole picture, as with an inverted mask.
    """
    notes: list[str] = []
    for planned in regions:
        if planned.pasting_note:
            notes.append(planned.pasting_note)
        region, scale = planned.task.region, planned.largest_scale
        if scale >= _BLURRED:
            continue
        covered = float((region.mask > 0).sum()) / size.area
        seen = f"the model sees it at {scale:.0%} of its size"
        if covered >= _WHOLE:
            raise ValueError(
                f"The mask or box marks {covered:.0%} of the draft of {size}, and {seen}, so the "
                "picture would come back blurred. Mark only the detail, white on black; if the mask "
                "marks everything but the detail, invert it. To repair the whole picture, scale it "
                "down first, or raise megapixels."
            )
        if planned.native:
            continue
        notes.append(
            f"the region of {region.box.extent} is large: {seen}, so fine detail comes back blurred. "
            "Mark a smaller part, or raise megapixels"
        )
    return tuple(notes)
