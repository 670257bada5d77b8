"""The first reference's detail at the draft's own resolution, and the crop of it that a model sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.crop import crop
from ..images.geometry import Box, CropPlan, Extent
from ..images.masks import bounds
from ..images.tensors import to_float
from ..matching.detail_transfer import DetailTransfer, transfer_detail
from ..matching.find_detail import FoundDetail, find_detail
from ..matching.surface_map import SurfaceMap
from .request import RegionTask


def transfer_reference(
    image: Tensor,
    task: RegionTask,
    plan: CropPlan,
    reference_plan: CropPlan,
    homography: Tensor | None,
) -> tuple[DetailTransfer, FoundDetail]:
    """Find the detail in the task's first reference and lay it over the region.

    Args:
        image: the draft, 1 3 H W in any stored type.
        task: the region and its references.
        plan, reference_plan: of the draft's and the first reference's crop.
        homography: 3 3, from one crop to the other in normalised coordinates, where
            one is known: outlines tell it to a fraction of a pixel.

    Returns:
        the draft's surroundings with the detail, and where it was found.
    """
    reference, mask = task.references[0], task.reference_masks[0]
    known = None
    if homography is not None:
        to_crop = _between(task.region.box, plan.box)
        size = Extent(reference.shape[-1], reference.shape[-2])
        to_reference = _between(reference_plan.box, Box(0, 0, *size))
        known = SurfaceMap(task.region.box, to_reference @ homography.double() @ to_crop)
    found = find_detail(image, task.region, reference, mask, known)
    marked = None if mask is None or found.searched else bounds(mask)
    transfer = transfer_detail(image, task.region, reference, found.surface, marked)
    return transfer, found


def crop_with_detail(image: Tensor, transfer: DetailTransfer, plan: CropPlan) -> Tensor:
    """The draft's crop with the detail in its place, float 1 3 by the plan's size."""
    i = plan.inside
    part = to_float(image[..., i.y0 : i.y1, i.x0 : i.x1]).clone()
    seen = transfer.window.intersection(i)
    picture, _ = transfer.part(seen)
    part[..., seen.y0 - i.y0 : seen.y1 - i.y0, seen.x0 - i.x0 : seen.x1 - i.x0] = picture
    moved = CropPlan(
        i.extent, plan.region.moved(-i.x0, -i.y0), plan.box.moved(-i.x0, -i.y0), plan.target
    )
    return crop(part, moved)


def _between(box: Box, other: Box) -> Tensor:
    """Normalised coordinates of a box to those of another, 3 3 float64."""
    matrix = torch.eye(3, dtype=torch.float64)
    for axis in range(2):
        own, sides = box.extent[axis], other.extent[axis]
        matrix[axis, axis] = own / sides
        matrix[axis, 2] = 2 * (box.center[axis] - other.center[axis]) / sides
    return matrix
