"""The embedded refiner at the draft's own resolution, end to end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from refiner_core.evaluation.baselines import PastedReference
from refiner_core.images.crop import box_region
from refiner_core.images.filters import blur
from refiner_core.images.geometry import Box
from refiner_core.matching.find_detail import find_detail
from refiner_core.matching.tone import close_rim
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest


def _picture(seed: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 24, width // 24, generator=rng)
    fine = torch.rand(1, 3, height // 4, width // 4, generator=rng)
    shapes = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False) > 0.5
    texture = F.interpolate(fine, (height, width), mode="bilinear", align_corners=False)
    return blur(0.7 * shapes.float() + 0.3 * texture, 0.7)


def _case(seed: int = 5) -> tuple[RefineRequest, Tensor]:
    """A large region, blurred away, with the same picture a few pixels off as reference."""
    truth = _picture(seed, 600, 640)
    mask = torch.zeros(1, 1, 600, 640)
    mask[..., 110:490, 100:540] = 1
    draft = truth * (1 - mask) + blur(truth, 4.0) * mask
    reference = truth.roll((7, -5), (2, 3))
    stored = [(x * 255).round().to(torch.uint8) for x in (draft, reference)]
    return RefineRequest(stored[0], (stored[1],), mask, (mask.roll((7, -5), (2, 3)),)), truth


@pytest.mark.slow
@pytest.mark.parametrize("engine", [load_nano(), PastedReference(NANO)], ids=["nano", "pasted"])
def test_a_large_region_comes_back_as_sharp_as_its_surroundings(engine: PastedReference) -> None:
    request, truth = _case()
    done = refine(engine, request)
    region = (slice(None), slice(None), slice(140, 460), slice(130, 510))

    def fine(x: Tensor) -> float:
        return float((x - blur(x, 1.5))[region].square().mean())

    assert 0.7 < fine(done.image.float() / 255) / fine(truth) < 1.3
    outside = (request.mask == 0).expand_as(request.draft)
    assert torch.equal(done.image[outside], request.draft[outside])


@pytest.mark.slow
def test_an_unrelated_reference_leaves_the_draft_alone_unless_alignment_is_asked_for() -> None:
    request, _ = _case()
    other = (_picture(77, 600, 640) * 255).to(torch.uint8)
    request = replace(request, references=(other,), reference_masks=())
    left = refine(PastedReference(NANO), request)
    assert torch.equal(left.image, request.draft)
    assert "agreement" in left.report["regions"][0]["left_alone"]
    forced = refine(PastedReference(NANO), replace(request, options=RefineOptions(align=True)))
    assert not torch.equal(forced.image, request.draft)
    assert "left_alone" not in forced.report["regions"][0]
    assert "agreement" in forced.report["regions"][0]["poor_match"]
    for result in (left, forced):
        (mismatch,) = result.report["mismatches"]
        assert mismatch in result.report["notes"] and mismatch.startswith("region 1: ")
    found = refine(PastedReference(NANO), _case()[0])
    assert found.report["mismatches"] == [] and "poor_match" not in found.report["regions"][0]


@pytest.mark.parametrize(("scale", "repaired"), [(0.1, False), (0.4, True)])
def test_a_reference_that_shows_the_detail_too_small(scale: float, repaired: bool) -> None:
    request, _ = _case()
    small = [
        F.interpolate(x.float(), scale_factor=scale, mode="area")
        for x in (request.references[0], request.reference_masks[0])
        if x is not None
    ]
    reference, mask = small[0].round().to(torch.uint8), (small[1] > 0.5).float()
    request = replace(request, references=(reference,), reference_masks=(mask,))
    done = refine(PastedReference(NANO), request)
    region = done.report["regions"][0]
    assert torch.equal(done.image, request.draft) is not repaired
    assert f"{scale:.0%}" in region["poor_match" if repaired else "left_alone"]
    assert done.report["mismatches"]
    forced = refine(PastedReference(NANO), replace(request, options=RefineOptions(align=True)))
    assert not torch.equal(forced.image, request.draft)
    assert f"{scale:.0%}" in forced.report["regions"][0]["poor_match"]


def _written(word: str, size: tuple[int, int], at: tuple[int, int], paper: int) -> Tensor:
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text(at, word, fill=20, font=ImageFont.load_default(size=48))
    return torch.from_numpy(np.array(image))[None, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize(
    ("drawn", "right"), [("AOCRN", "ACORN"), ("BRIDGE", "BRIDGE"), ("COFEFE", "COFFEE")]
)
def test_letters_are_found_whose_mask_is_smaller_than_the_region(drawn: str, right: str) -> None:
    """As a transparent wordmark's own alpha is, where the region is the whole sign."""
    draft = _written(drawn, (400, 200), (110, 70), 230)
    reference = _written(right, (240, 90), (40, 20), 255)
    letters = (reference[:, :1] < 128).float()
    found = find_detail(draft, box_region(Box(95, 65, 290, 135)), reference, letters)
    assert found.sure and found.searched
    # 70 px to the left and 50 px above its place in the draft.
    for got, expected in zip(found.box(), (25, 15, 220, 85), strict=True):
        assert abs(got - expected) <= 3


@pytest.mark.slow
def test_both_marked_are_repaired_and_the_report_says_that_nothing_fits() -> None:
    request, _ = _case()
    other = (_picture(77, 600, 640) * 255).to(torch.uint8)
    repaired = refine(PastedReference(NANO), replace(request, references=(other,)))
    (region,) = repaired.report["regions"]
    assert not torch.equal(repaired.image, request.draft)
    assert "left_alone" not in region and "poor_match" in region
    assert not region["references"][0]["alignment"]["sure"]


@pytest.mark.slow
def test_a_mark_on_one_colour_leaves_the_draft_alone() -> None:
    request, _ = _case()
    plain = torch.full((1, 3, 600, 640), 128, dtype=torch.uint8)
    left = refine(PastedReference(NANO), replace(request, references=(plain,)))
    assert torch.equal(left.image, request.draft)
    assert left.report["mismatches"] and "left_alone" in left.report["regions"][0]


def test_the_report_says_where_the_detail_was_found() -> None:
    request, _ = _case()
    (region,) = refine(PastedReference(NANO), request).report["regions"]
    found = region["references"][0]["alignment"]
    assert found["sure"]
    for got, expected in zip(found["found_at"], (95, 117, 535, 497), strict=True):
        assert abs(got - expected) <= 3


def test_a_planted_step_along_the_rim_is_closed() -> None:
    draft = _picture(8, 120, 160)
    mask = torch.zeros(1, 1, 120, 160)
    mask[..., 30:90, 40:120] = 1
    result = (draft + 0.05).clamp(0, 1)
    closed = close_rim(result, draft, mask)
    assert float(((closed - draft) * mask).abs().mean()) < 0.005


_LARGE = """
import resource, torch
from refiner_core.images.geometry import Box
from refiner_core.images.masks import Region
from refiner_core.matching.detail_transfer import transfer_detail
from refiner_core.matching.find_detail import find_detail
picture = (torch.nn.functional.interpolate(torch.rand(1, 3, 230, 230), (2300, 2300)) * 255).to(torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
box = Box(100, 100, 2148, 2148)
mask = torch.zeros(1, 1, 2300, 2300)
mask[..., 100:2148, 100:2148] = 1
region = Region(box, torch.ones(1, 1, 2048, 2048))
found = find_detail(picture, region, picture, mask)
transfer_detail(picture, region, picture, found.surface)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
def test_a_region_of_2048_px_fits_in_bounded_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1000
