"""Marks the detail in references that came without a mask, for recipes that do not align them.

A model that is shown the whole photograph sees the detail at a fraction of its resolution. Where the
detail is found in it, the reference is cropped around that place, as if it had been marked there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..images.geometry import Box, Extent
from ..images.masks import box_mask
from ..matching.find_detail import FoundDetail, find_detail
from ..recipes.recipe import Recipe
from .request import RefineOptions, RegionTask

_LARGEST_SHARE = 0.5  # of the reference's area: a larger crop gains too little


def is_searched(image: Tensor, task: RegionTask, recipe: Recipe, options: RefineOptions) -> bool:
    """Whether a reference has to be searched for the detail: it has no mask, the recipe does not align
    it, and the region is not the whole draft.

    Args:
        image: the draft, 1 3 H W in any stored type.
        task, recipe, options: what is repaired, and how.
    """
    whole = task.region.box.extent == Extent(image.shape[-1], image.shape[-2])
    unmarked = any(mask is None for mask in task.reference_masks)
    return unmarked and not whole and not options.aligns(recipe)


def locate_details(
    image: Tensor, task: RegionTask, recipe: Recipe, options: RefineOptions
) -> RegionTask:
    """The task with the detail marked in each reference in which it was found.

    Args:
        image: the draft, 1 3 H W in any stored type.
        task, recipe, options: what is repaired, and how. References that have a mask or in which the
            detail fills most of the picture stay as they are, and so do those in which it is not
            found. Nothing changes where nothing is to be searched (`is_searched`).
    """
    if not is_searched(image, task, recipe, options):
        return task
    context = recipe.context if options.context is None else options.context
    masks: list[Tensor | None] = []
    places: list[dict[str, Any] | None] = []
    for reference, mask in zip(task.references, task.reference_masks, strict=True):
        found = find_detail(image, task.region, reference, None) if mask is None else None
        box = None if found is None else _worth_cropping(found, context)
        size = Extent(reference.shape[-1], reference.shape[-2])
        masks.append(mask if box is None else box_mask(box, size))
        places.append(None if found is None or box is None else found.report())
    return replace(task, reference_masks=tuple(masks), found=tuple(places))


def _worth_cropping(found: FoundDetail, context: float) -> Box | None:
    """Where the detail is in the reference, or None if a crop around it is no better than all of it."""
    if not found.sure:
        return None
    box = found.box().intersection(Box(0, 0, *found.reference))
    if min(box.extent) <= 0:
        return None
    share = box.extent.width * box.extent.height * context**2
    total = found.reference.width * found.reference.height
    return box if share < _LARGEST_SHARE * total else None
