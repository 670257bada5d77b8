"""The detail of an unmarked reference, found for recipes that do not align it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.evaluation.baselines import PastedReference
from refiner_core.images.crop import box_region
from refiner_core.images.filters import blur
from refiner_core.images.geometry import Box, Extent
from refiner_core.images.masks import box_mask
from refiner_core.interfaces import Stage
from refiner_core.recipes.recipe import KONTEXT, NANO
from refiner_core.repair.locate_detail import locate_details
from refiner_core.repair.pipeline import refine
from refiner_core.repair.prepare_region import plan_region, prepare_region
from refiner_core.repair.request import RefineOptions, RefineRequest, RegionTask

REGION = Box(120, 90, 280, 210)
DETAIL = Box(420, 300, 580, 420)  # of the reference


def _picture(seed: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 20, width // 20, generator=rng)
    shapes = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False) > 0.5
    return blur(shapes.float(), 0.7)


def _case() -> tuple[Tensor, Tensor]:
    """A draft whose region is blurred, and a larger reference with the detail elsewhere."""
    truth = _picture(1, 300, 400)
    reference = _picture(2, 600, 800)
    margin = 30  # what is around the detail is around it in the reference too
    b, d = REGION, DETAIL
    reference[..., d.y0 - margin : d.y1 + margin, d.x0 - margin : d.x1 + margin] = truth[
        ..., b.y0 - margin : b.y1 + margin, b.x0 - margin : b.x1 + margin
    ]
    draft = truth.clone()
    inside = draft[..., b.y0 : b.y1, b.x0 : b.x1]
    inside.copy_(blur(inside, 3.0))
    return draft, reference


def test_the_reference_is_cropped_to_the_detail_that_was_found_in_it() -> None:
    draft, reference = _case()
    options = RefineOptions()
    task = RegionTask(box_region(REGION), (reference,), (None,))
    located = locate_details(draft, task, KONTEXT, options)
    planned = plan_region(located, Extent(400, 300), KONTEXT, options)
    crop = planned.reference_plans[0].box
    assert crop.contains(DETAIL) and crop.extent.width < 400
    (reported,) = prepare_region(draft, planned, KONTEXT, options).report["references"]
    assert reported["found"]["sure"]
    assert reported["found"]["found_at"] == pytest.approx(list(DETAIL), abs=4)


@pytest.mark.parametrize(
    "case", ["aligned", "masked", "whole draft", "another picture", "fills the reference"]
)
def test_all_of_the_reference_is_shown_where_that_is_better(case: str) -> None:
    draft, reference = _case()
    region, mask, recipe = box_region(REGION), None, KONTEXT
    if case == "aligned":
        recipe = NANO
    if case == "masked":
        mask = torch.ones(1, 1, 600, 800)
    if case == "whole draft":
        region = box_region(Box(0, 0, 400, 300))
    if case == "another picture":
        reference = _picture(3, 600, 800)
    if case == "fills the reference":
        reference = reference[..., DETAIL.y0 : DETAIL.y1, DETAIL.x0 : DETAIL.x1].contiguous()
    task = RegionTask(region, (reference,), (mask,))
    located = locate_details(draft, task, recipe, RefineOptions())
    assert located.reference_masks[0] is mask
    assert not any(located.found)


@pytest.mark.parametrize("marked", [False, True])
def test_a_stage_is_shown_before_references_are_searched(marked: bool) -> None:
    draft, reference = _case()
    mask = torch.ones(1, 1, 600, 800) if marked else None
    request = RefineRequest(
        draft, (reference,), box_mask(REGION, Extent(400, 300)), (mask,), RefineOptions(align=False)
    )
    stages: list[Stage] = []

    def stop(stage: Stage) -> None:
        stages.append(stage)
        if stage.name == "encode":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        refine(PastedReference(KONTEXT), request, stop)
    assert [s.name for s in stages] == ["plan"] * (1 if marked else 2) + ["encode"]
    assert stages[0].plan is None


def test_every_reference_is_searched_on_its_own() -> None:
    draft, reference = _case()
    task = RegionTask(box_region(REGION), (_picture(3, 600, 800), reference), (None, None))
    recipe = replace(KONTEXT, references=(1, 2))
    located = locate_details(draft, task, recipe, RefineOptions())
    assert located.reference_masks[0] is None and located.reference_masks[1] is not None
    assert [f is not None for f in located.found] == [False, True]
