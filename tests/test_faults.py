"""What published refiners do wrong, and these nodes do not.

With models that do nothing or one known thing, so that all that is seen is crop and stitch.
Measured beside the published code: tests/comfyui/test_published_code.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.images.geometry import Box, Extent
from refiner_core.recipes.recipe import IMAGECRITIC, REFINEANYTHING, Recipe
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest

from .faults import ModelThat, checkerboard, displacement, seam

PUBLISHED = [IMAGECRITIC, REFINEANYTHING]  # the FLUX recipes have ImageCritic's sizes
QUICK = RefineOptions(megapixels=0.1, drift=False, color_match=0)
# Pictures and regions of many proportions, in the middle, at an edge and in a corner.
PLACES = [
    (Extent(640, 427), Box(210, 130, 430, 300)),
    (Extent(1000, 300), Box(100, 60, 900, 240)),
    (Extent(300, 900), Box(60, 80, 240, 820)),
    (Extent(1333, 777), Box(0, 0, 400, 250)),
    (Extent(901, 700), Box(700, 200, 901, 520)),
    (Extent(512, 512), Box(0, 0, 512, 512)),
]

OTHER, PART = Extent(377, 611), Box(40, 300, 330, 400)  # a reference of other proportions


def mask_of(size: Extent, box: Box) -> Tensor:
    mask = torch.zeros(1, 1, size.height, size.width)
    mask[..., box.y0 : box.y1, box.x0 : box.x1] = 1
    return mask


def by(engine: ModelThat, draft: Tensor, mask: Tensor, **changes: object) -> Tensor:
    size = Extent(draft.shape[-1], draft.shape[-2])
    options = RefineOptions(**{"megapixels": 0.12, **changes})  # type: ignore[arg-type]
    references = (checkerboard(size, seed=1),) if engine.recipe.references[0] else ()
    marks = tuple(torch.ones(1, 1, *r.shape[-2:]) for r in references)  # nothing is searched for
    return refine(engine, RefineRequest(draft, references, mask, marks, options)).image


@pytest.mark.slow
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, 0.0), (-0.5, 0.75), (3.0, -11.4)])
def test_the_measure_sees_a_quarter_of_a_pixel(shift: tuple[float, float]) -> None:
    board = checkerboard(Extent(320, 256))
    grid = F.affine_grid(
        torch.tensor([[[1.0, 0, 2 * shift[0] / 320], [0, 1.0, 2 * shift[1] / 256]]]),
        [1, 3, 256, 320],
        align_corners=False,
    )
    moved = F.grid_sample(board, grid, align_corners=False, padding_mode="border")
    true = (shift[0] ** 2 + shift[1] ** 2) ** 0.5
    assert displacement(board, moved, (64, 64, 256, 192)) == pytest.approx(true, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda r: r.name)
@pytest.mark.parametrize(("size", "box"), PLACES, ids=lambda v: str(tuple(v)))
def test_a_checkerboard_comes_back_unshifted(recipe: Recipe, size: Extent, box: Box) -> None:
    draft = checkerboard(size)
    mask = mask_of(size, box)
    out = by(ModelThat(recipe), draft, mask)
    assert torch.equal(out[(mask == 0).expand_as(out)], draft[(mask == 0).expand_as(draft)])
    assert (out != draft).any(), "it went through the model's size"
    inner = (box.x0 + 8, box.y0 + 8, box.x1 - 8, box.y1 - 8)  # inside the feather
    assert displacement(draft, out, inner) < 0.25


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda r: r.name)
@pytest.mark.parametrize(("size", "box"), PLACES, ids=lambda v: str(tuple(v)))
def test_the_model_sees_no_stretch_and_all_of_the_region(
    recipe: Recipe, size: Extent, box: Box
) -> None:
    engine = ModelThat(recipe)
    draft, reference = checkerboard(size), checkerboard(OTHER, seed=1)
    masks = mask_of(size, box), mask_of(OTHER, PART)
    result = refine(engine, RefineRequest(draft, (reference,), masks[0], (masks[1],), QUICK))
    region = result.report["regions"][0]
    for found, whole in ((region, box), (region["references"][0], PART)):
        x0, y0, x1, y1 = found["crop"]
        assert x0 <= whole.x0 and y0 <= whole.y0 and whole.x1 <= x1 and whole.y1 <= y1
        seen = found.get("bucket", found.get("size"))
        width, height = map(int, seen.split("x"))
        assert width * (y1 - y0) == height * (x1 - x0), "one scale for both directions"
    shapes = {engine.jobs[0].input(role).image.shape for role in ("draft", "reference")}
    assert len(shapes) == 1 or not recipe.shared_bucket, "ImageCritic needs both at one size"


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda r: r.name)
def test_a_reference_mask_decides_what_the_model_sees(recipe: Recipe) -> None:
    size = Extent(640, 427)
    draft, box = checkerboard(size), Box(210, 130, 430, 300)
    part = Box(40, 40, 200, 180)
    seen = []
    for mask in (None, mask_of(size, part)):
        engine = ModelThat(recipe)
        request = RefineRequest(
            draft, (checkerboard(size, seed=1),), mask_of(size, box), (mask,), QUICK
        )
        report = refine(engine, request).report["regions"][0]["references"][0]
        seen.append((engine.jobs[0].input("reference").image, report["crop"]))
    (whole, all_of_it), (framed, crop) = seen
    assert not torch.equal(whole, framed) and crop != all_of_it
    x0, y0, x1, y1 = crop
    assert x0 <= part.x0 and y0 <= part.y0 and part.x1 <= x1 and part.y1 <= y1
    assert (x1 - x0) * (y1 - y0) < 0.5 * size.area


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda r: r.name)
def test_batches_are_repaired_one_by_one(recipe: Recipe) -> None:
    size, box = Extent(320, 240), Box(80, 60, 240, 180)
    drafts = torch.cat([checkerboard(size, seed=i) for i in range(3)])
    out = by(ModelThat(recipe), drafts, mask_of(size, box))
    assert out.shape == drafts.shape
    alone = [by(ModelThat(recipe), d[None], mask_of(size, box)) for d in drafts]
    assert torch.equal(out, torch.cat(alone))


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda r: r.name)
def test_a_model_that_lightens_leaves_no_hard_seam(recipe: Recipe) -> None:
    size, box = Extent(640, 427), Box(210, 130, 430, 300)
    draft, mask = torch.full((1, 3, size.height, size.width), 0.4), mask_of(size, box)
    lighter = ModelThat(recipe, lambda x: x + 0.2)
    kept = by(lighter, draft, mask, color_match=0.0, drift=False, blend="feather")
    assert float((kept - draft)[..., 215, 320].mean()) == pytest.approx(0.2, abs=0.01)
    assert seam(draft, kept) < 0.2 / 4, "the step is spread over the feather"
    matched = by(lighter, draft, mask, drift=False, blend="feather")
    assert seam(draft, matched) < 0.005, "matched to its surroundings"
    usual = by(lighter, draft, mask, color_match=0.0, drift=False)
    assert seam(draft, usual) < 0.005, "the difference along the edge is continued inside"
