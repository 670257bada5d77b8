"""A triplet cut as inference cuts a repair: the view that is learnt from, in pixels."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from ..data.triplets import Triplet
from ..images.crop import crop, crop_mask
from ..images.geometry import Box, CropPlan, Extent
from ..images.masks import Region, bounds
from ..recipes.recipe import Recipe
from ..repair.model_inputs import crop_reference, plan_crop_pair
from .config import DataSettings
from .dataset import Pixels


def _tensor(image: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.array(image, order="C"))  # a view may be read-only
    return x[None, None].float() / 255 if x.ndim == 2 else x.permute(2, 0, 1)[None]


def _region(mask: Tensor, rng: np.random.Generator) -> Region:
    """The mask's own region; of an empty mask some box, so that the crop is placed at random."""
    box = bounds(mask)
    if box is None:
        h, w = mask.shape[-2:]
        side = max(8, int(min(h, w) * rng.uniform(0.2, 0.5)))
        x, y = (int(rng.integers(0, max(1, v - side + 1))) for v in (w, h))
        box = Box(x, y, min(w, x + side), min(h, y + side))
    return Region(box, mask[..., box.y0 : box.y1, box.x0 : box.x1].contiguous())


def frame(
    triplet: Triplet, recipe: Recipe, data: DataSettings, number: int
) -> tuple[Pixels, CropPlan]:
    """View `number` of a triplet in pixels, as the pipeline frames a repair (see `DataSettings`).

    The crop's context, the reference's mirror and colours follow from (id, number).

    Raises:
        ValueError: the triplet has no target, or cannot be framed.
    """
    if triplet.target is None:
        raise ValueError(f"{triplet.id} has no target; nothing can be learnt from it.")
    name = hashlib.sha256(f"{triplet.id}/{number}".encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(name, "big"))
    draft, target, mask = (_tensor(a) for a in (triplet.draft, triplet.target, triplet.mask))
    region = _region(mask, rng)
    size = Extent(draft.shape[-1], draft.shape[-2])
    context = float(rng.uniform(*data.context))
    given = _tensor(triplet.reference)
    reference_mask = None if triplet.reference_mask is None else _tensor(triplet.reference_mask)
    if reference_mask is not None and bounds(reference_mask) is None:
        reference_mask = None
    plan, own = plan_crop_pair(
        (size, region.box), given, reference_mask, recipe, context, data.megapixels
    )
    seen, inside = crop(draft, plan), crop_mask(region, plan)
    around = inside if bool(inside.any()) else torch.ones_like(inside)
    reference, _ = crop_reference(given, reference_mask, seen, around, own, aligned=recipe.align)
    if data.flip and not recipe.align and rng.random() < 0.5:
        reference = reference.flip(-1)
    if data.jitter:
        gain = torch.from_numpy(np.exp(rng.normal(0, data.jitter, (1, 3, 1, 1)))).float()
        reference = (reference * gain).clamp(0, 1)
    return Pixels(crop(target, plan), seen, reference, (inside > 0).float()), plan
