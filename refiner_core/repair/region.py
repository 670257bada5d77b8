"""One region of a draft on its way through a repair: what each step hands on to the next.

`prepare_region` makes these values; the model sees `shown_pictures`, and `finish_region` takes what it
made of them. Sampling stands between, and may be anybody's: the pipeline's, or another sampler's in
a graph of single nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..images.geometry import Box, CropPlan
from ..images.masks import Region
from ..matching.detail_transfer import DetailTransfer
from ..nano.reference_blend import ReferenceBlend
from ..nano.tile_inputs import with_draft_tone
from ..recipes.recipe import Recipe
from .request import RegionTask

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
        """All of the draft that its repair may depend on: the crop, and the surroundings of the
        region as far as a detail is searched for and laid over it.
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
