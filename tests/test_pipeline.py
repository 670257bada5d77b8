"""The whole repair on real scenes, with the embedded nano and with small engines made to drift."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.evaluation.held_out_scenes import HeldOutScene, make_scene
from refiner_core.images.boxes import BoxPair, RelativeBox
from refiner_core.images.geometry import Box, Extent
from refiner_core.images.tensors import to_dtype
from refiner_core.interfaces import SamplingJob, Stage
from refiner_core.matching.color import match_light
from refiner_core.matching.warping import warp
from refiner_core.models.core_engine import CoreEngine
from refiner_core.nano.nano_engine import load_nano
from refiner_core.nano.reference_blend import ReferenceBlend
from refiner_core.recipes.recipe import NANO, Recipe
from refiner_core.repair.marking import normalize_request
from refiner_core.repair.pipeline import RefineResult, refine
from refiner_core.repair.request import RefineOptions, RefineRequest

STEPS = 2
FAST = RefineOptions(steps=STEPS, align=False, megapixels=0.004)
SHARP = replace(FAST, megapixels=None)  # drift and colour are measured on the whole crop


@pytest.fixture(scope="module")
def nano() -> CoreEngine:
    return load_nano()


def image(x: np.ndarray, dtype: torch.dtype = torch.uint8) -> Tensor:
    pixels = torch.from_numpy(x.copy()).permute(2, 0, 1)[None]
    return pixels if dtype == torch.uint8 else to_dtype(pixels.float() / 255, dtype)


def mask_of(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.copy())[None, None].float() / 255


def scene_of(seed: int = 0, size: tuple[int, int] = (200, 150), **kwargs: Any) -> HeldOutScene:
    return make_scene(seed, size, (0.3, 0.5), held_out=True, **kwargs)


def request_of(
    scene: HeldOutScene,
    options: RefineOptions = FAST,
    dtype: torch.dtype = torch.uint8,
    **kwargs: Any,
) -> RefineRequest:
    request = RefineRequest(
        image(scene.draft, dtype), (image(scene.reference),), mask_of(scene.mask),
        (mask_of(scene.reference_mask),), options,
    )  # fmt: skip
    return replace(request, **kwargs)


def bits(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


def assert_outside_unchanged(result: RefineResult, draft: Tensor) -> None:
    assert result.image.dtype == draft.dtype
    keep = (result.mask == 0).expand(result.image.shape).numpy()
    before = draft.expand(result.image.shape).numpy()
    assert result.image.numpy()[keep].tobytes() == before[keep].tobytes()
    assert (result.image.numpy()[~keep] != before[~keep]).mean() > 0.1


def test_what_the_codec_loses_of_the_reference_is_given_back() -> None:
    reference, coded = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) * 3 - 1
    result = coded.clamp(0, 1)
    restored = ReferenceBlend(residual=1.0).restore(result, reference, coded)
    torch.testing.assert_close(restored, reference)
    half = ReferenceBlend(residual=0.5).restore(result, reference, coded)
    torch.testing.assert_close(half, (result + reference) / 2)


@pytest.mark.parametrize("references", [1, 2])
def test_a_draft_is_changed_only_by_its_owner_and_to_the_same_result(references: int) -> None:
    request = request_of(scene_of())
    request = replace(request, references=(request.references[0].repeat(references, 1, 1, 1),))
    before = request.draft.clone()
    engine = Plain(spoil=lambda x: 1 - x)
    usual = refine(engine, request).image
    assert torch.equal(request.draft, before) and not torch.equal(usual[:1], before)
    own = before.clone()
    result = refine(engine, replace(request, draft=own), in_place=True)
    assert torch.equal(result.image, usual)
    assert (result.image.data_ptr() == own.data_ptr()) is (references == 1)


def test_masks_of_a_normalized_request_are_not_read_again() -> None:
    request = request_of(scene_of(), RefineOptions())
    assert request.mask is not None
    mask = 255 * request.mask
    normalized = normalize_request(replace(request, mask=mask))
    assert normalized.mask is not None and normalized.mask.max() == 1
    assert normalize_request(normalized) is normalized


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 9])
def test_remainder_brings_a_coarse_codec_nearer_to_the_truth(nano: CoreEngine, seed: int) -> None:
    scene = scene_of(seed, (320, 240), degradation="noise", rough_masks=False)
    errors = []
    for remainder in (0.0, 1.0):
        engine = replace(nano, recipe=replace(NANO, codec_residual=remainder))
        out = refine(engine, request_of(scene, RefineOptions())).image
        on = scene.mask > 0
        errors.append(
            np.abs(out[0].permute(1, 2, 0).numpy() - scene.target.astype(float))[on].mean()
        )
    assert errors[1] < errors[0]


# --- engines that do something known -------------------------------------------------------------


@dataclass
class Plain:
    """The draft comes back as it went in, at full resolution, changed by `spoil` in the decoder."""

    recipe: Recipe = replace(NANO, correct_drift_and_color=True)
    spoil: Callable[[Tensor], Tensor] = lambda x: x
    encoded: list[tuple[int, ...]] = field(default_factory=list)
    jobs: list[SamplingJob] = field(default_factory=list)

    def encode(self, image: Tensor) -> Tensor:
        self.encoded.append(tuple(image.shape))
        return F.pixel_unshuffle(image, self.recipe.latent_factor)

    def decode(self, latent: Tensor) -> Tensor:
        return self.spoil(F.pixel_shuffle(latent, self.recipe.latent_factor))

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        pass

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        self.jobs.append(job)
        draft = job.draft
        steps = len(job.sigmas) - 1
        for i in range(steps):
            step(i + 1, steps, draft)
        return draft

    def describe(self) -> dict[str, str]:
        return {"kind": "plain"}


def moved(dx: float, dy: float, zoom: float) -> Callable[[Tensor], Tensor]:
    """Shifts a crop by (dx, dy) px and zooms it."""

    def apply(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        m = torch.diag(torch.tensor([1 / zoom, 1 / zoom, 1.0], dtype=torch.float64))
        m[0, 2], m[1, 2] = -2 * dx / w, -2 * dy / h
        return warp(x, m, h, w)[0]

    return apply


# --- what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("blend", ["feather", "multiband"])
def test_outside_the_mask_every_bit_stays(nano: CoreEngine, dtype: torch.dtype, blend: Any) -> None:
    scene = scene_of(1)
    request = request_of(scene, replace(FAST, blend=blend, grow=3), dtype)
    before = bits(request.draft)
    result = refine(nano, request)
    assert_outside_unchanged(result, request.draft)
    assert bits(request.draft) == before
    assert bool((result.mask >= (request.mask > 0)).all())  # type: ignore[operator]


def test_two_regions_are_repaired_apart(nano: CoreEngine) -> None:
    scene = scene_of(1, (320, 120))
    mask = torch.zeros(1, 1, 120, 320)
    mask[..., 20:60, 10:60] = 1
    mask[..., 50:100, 250:310] = 1
    request = request_of(scene, mask=mask)
    result = refine(nano, request)
    assert [r["region"] for r in result.report["regions"]] == [
        [10, 20, 60, 60],
        [250, 50, 310, 100],
    ]
    assert len(result.crops) == 2
    assert torch.equal(result.mask, mask)
    assert_outside_unchanged(result, request.draft)


def inverting(**options: Any) -> tuple[Plain, RefineRequest]:
    """An engine that inverts the crop, and a request whose region is in the picture's middle."""
    scene = scene_of(4, (320, 240))
    mask = torch.zeros(1, 1, 240, 320)
    mask[..., 100:140, 140:180] = 1
    plain = RefineOptions(align=False, drift=False, color_match=0, feather=0)
    engine = Plain(spoil=lambda x: 1 - x)
    return engine, request_of(scene, replace(plain, **options), mask=mask)


def changed_box(result: RefineResult, draft: Tensor) -> list[int]:
    ys, xs = np.nonzero((result.image != draft).any(1)[0].numpy())
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


def test_what_is_pasted_can_be_the_whole_crop() -> None:
    engine, request = inverting(paste="crop", context=2)
    result = refine(engine, request)
    (region,) = result.report["regions"]
    x0, y0, x1, y1 = region["crop"]
    assert region["region"] == [140, 100, 180, 140]
    assert region["pasted"] == region["crop"] == changed_box(result, request.draft)
    assert result.mask[..., y0:y1, x0:x1].min() == 1
    assert result.mask.sum() == (x1 - x0) * (y1 - y0)
    assert_outside_unchanged(result, request.draft)


@pytest.mark.parametrize(("own", "chosen", "expected"), [
    ("membrane", None, "membrane"), ("feather", None, "feather"), ("membrane", "feather", "feather"),
])  # fmt: skip
def test_the_recipe_decides_how_a_crop_is_blended_unless_a_way_is_chosen(
    own: Any, chosen: Any, expected: Any
) -> None:
    recipe = replace(
        NANO, align=False, native_detail=False, reference_blend=0.0, codec_residual=0.0
    )
    scene = scene_of(1)

    def run(recipe_blend: Any, blend: Any) -> Tensor:
        engine = Plain(replace(recipe, blend=recipe_blend), spoil=lambda x: 0.9 * x)
        return refine(engine, request_of(scene, RefineOptions(blend=blend))).image

    pictures = {b: run("multiband", b) for b in ("feather", "membrane")}
    assert not torch.equal(pictures["feather"], pictures["membrane"])
    assert torch.equal(run(own, chosen), pictures[expected])


@pytest.mark.parametrize("blend", ["feather", "multiband", "membrane"])
def test_what_is_pasted_can_have_a_mask_of_its_own(blend: Any) -> None:
    engine, request = inverting(context=2, blend=blend)
    paste_mask = torch.zeros(1, 1, 240, 320)
    paste_mask[..., 90:120, 150:190] = 1  # reaches out of the region, and leaves a part of it out
    result = refine(engine, replace(request, paste_mask=paste_mask))
    (region,) = result.report["regions"]
    assert region["region"] == [140, 100, 180, 140]
    assert region["pasted"] == changed_box(result, request.draft) == [150, 90, 190, 120]
    assert torch.equal(result.mask, paste_mask)
    assert_outside_unchanged(result, request.draft)


def test_paste_masks_that_do_not_fit_are_refused() -> None:
    engine, request = inverting()
    far = torch.zeros(1, 1, 240, 320)
    far[..., :8, :8] = 1
    for paste_mask, match in (
        (far, r"140, 100, 180, 140"),
        (torch.ones(1, 1, 24, 32), "32x24.*320x240"),
    ):
        with pytest.raises(ValueError, match=match):
            refine(engine, replace(request, paste_mask=paste_mask))
    crop = replace(request, options=replace(request.options, paste="crop"))
    with pytest.raises(ValueError, match="'crop'"):
        refine(engine, replace(crop, paste_mask=torch.ones(1, 1, 240, 320)))


@pytest.mark.slow
def test_the_whole_crop_of_transferred_detail_keeps_what_is_around_it(nano: CoreEngine) -> None:
    """The detail is laid over the draft itself: around it, nothing is scaled down and up again."""
    scene = scene_of(5, (640, 480))
    options = RefineOptions(steps=STEPS, align=True, paste="crop")
    request = request_of(scene, options, reference_masks=(None,))
    result = refine(nano, request)
    (region,) = result.report["regions"]
    assert region["scale"] < 1 and "score_around" in region["references"][0]["alignment"]
    x0, y0, x1, y1 = region["pasted"]
    rx0, ry0, rx1, ry1 = region["region"]
    far = torch.zeros(1, 3, 480, 640, dtype=torch.bool)
    far[..., y0:y1, x0:x1] = True
    around = 12 + round(0.2 * min(rx1 - rx0, ry1 - ry0))
    far[..., max(0, ry0 - around) : ry1 + around, max(0, rx0 - around) : rx1 + around] = False
    assert far.any() and torch.equal(result.image[far], request.draft[far])
    assert_outside_unchanged(result, request.draft)


def test_no_mask_is_the_whole_picture(nano: CoreEngine) -> None:
    scene = scene_of(2, (144, 112))
    result = refine(nano, request_of(scene, mask=None))
    assert float(result.mask.min()) == 1
    (region,) = result.report["regions"]
    assert region["region"] == [0, 0, 144, 112]
    assert region["drift"] == {"measured": False}


@pytest.mark.slow
def test_a_large_picture_with_nothing_marked_is_refused(nano: CoreEngine) -> None:
    scene = scene_of(2, (640, 480))
    request = request_of(scene, mask=None)
    with pytest.raises(ValueError, match="Nothing is marked in the draft of 640x480.* only 72x56"):
        refine(nano, request)
    with pytest.raises(ValueError, match="100% .*640x480.*11%"):
        refine(nano, replace(request, mask=torch.ones(1, 1, 480, 640)))
    larger = replace(request, options=replace(FAST, megapixels=0.09))
    assert refine(nano, larger).report["regions"][0]["region"] == [0, 0, 640, 480]


def test_masks_that_mark_too_much_are_refused_or_noted(nano: CoreEngine) -> None:
    """An inverted mask would blur the picture; a large region loses its fine detail."""
    request = request_of(scene_of(2, (640, 480)))
    inverted = torch.ones(1, 1, 480, 640)
    inverted[..., 200:260, 300:380] = 0
    with pytest.raises(ValueError, match="100% .*640x480.*invert"):
        refine(nano, replace(request, mask=inverted))
    with pytest.raises(ValueError, match="100% .*640x480"):
        refine(nano, replace(request, mask=None, boxes=(BoxPair(RelativeBox(0, 0, 1, 1)),)))
    half = torch.zeros(1, 1, 480, 640)
    half[..., :330] = 1
    notes = refine(nano, replace(request, mask=half)).report["notes"]
    assert [note for note in notes if "330x480" in note] and [n for n in notes if "52%" in n]


def test_a_mask_of_any_range_repairs_the_same(nano: CoreEngine) -> None:
    request = request_of(scene_of(3))
    assert request.mask is not None
    mask = (request.mask > 0.5).float()
    plain = refine(nano, replace(request, mask=mask))
    assert plain.report["notes"] == []
    for other in (mask * 255, mask / 255, mask.bool()):
        found = refine(nano, replace(request, mask=other))
        assert torch.equal(found.image, plain.image)
    with pytest.raises(ValueError, match="from 0 to 300"):
        refine(nano, replace(request, mask=mask * 300))


def test_unpainted_masks_are_no_masks(nano: CoreEngine) -> None:
    """ComfyUI's Load Image gives them for pictures in which nothing is painted."""
    request = replace(request_of(scene_of(3)), reference_masks=(None,))
    empty = torch.zeros(1, 1, 64, 64)
    plain = refine(nano, request)
    found = refine(nano, replace(request, reference_masks=(empty,)))
    assert torch.equal(found.image, plain.image)
    assert [note for note in found.report["notes"] if "64x64" in note]


def test_a_reference_of_one_color_is_noted(nano: CoreEngine) -> None:
    """As the hidden color of a transparent file whose alpha was lost on the way."""
    request = request_of(scene_of(3))
    black = torch.zeros_like(request.references[0])
    black[..., :2, :] = 255  # outside its mask
    for references, masks, noted in (
        ((black,), request.reference_masks, True),
        ((black,), (None,), False),
        ((torch.zeros_like(black),), (None,), True),
    ):
        changed = replace(request, references=references, reference_masks=masks)
        notes = refine(nano, changed).report["notes"]
        assert [n for n in notes if "(0, 0, 0)" in n] == (notes if noted else [])


def test_the_seed_decides(nano: CoreEngine) -> None:
    request = request_of(scene_of(3))
    runs = [refine(nano, replace(request, options=replace(FAST, seed=s))) for s in (5, 5, 6)]
    assert torch.equal(runs[0].image, runs[1].image)
    assert not torch.equal(runs[0].image, runs[2].image)


def test_the_reference_decides(nano: CoreEngine) -> None:
    scene = scene_of(3)
    request = request_of(scene)
    other = replace(request, references=(255 - request.references[0],))
    assert not torch.equal(refine(nano, request).image, refine(nano, other).image)


def test_work_follows_the_region() -> None:
    """A draft of 4096 x 4096: the engine sees no more than a bucket of it."""
    draft = torch.zeros(1, 3, 4096, 4096, dtype=torch.uint8)
    draft[..., 1900:2200, 1900:2200] = torch.randint(0, 256, (1, 3, 300, 300)).to(torch.uint8)
    mask = torch.zeros(1, 1, 4096, 4096)
    mask[..., 2000:2080, 2000:2100] = 1
    engine = Plain()
    reference = torch.randint(0, 256, (1, 3, 700, 900)).to(torch.uint8)
    marked = torch.ones(1, 1, 700, 900)
    result = refine(engine, RefineRequest(draft, (reference,), mask, (marked,), FAST))
    assert [s[-2] * s[-1] <= 16500 for s in engine.encoded] == [True, True]
    assert not bool(((result.image != draft) & (mask == 0)).any())


def test_an_engine_that_changes_nothing_changes_little() -> None:
    scene = scene_of(4)
    request = request_of(scene, dtype=torch.float32)
    result = refine(Plain(), request)
    assert float((result.image - request.draft).abs().mean()) < 0.01
    (region,) = result.report["regions"]
    assert region["drift"]["corrected"] is False
    assert region["color"]["gain"] == pytest.approx([1, 1, 1], abs=0.01)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drafts", "references", "masks", "n"), [(1, 1, 1, 1), (1, 3, 1, 3), (3, 1, 1, 3), (2, 2, 2, 2)]
)
def test_batches(drafts: int, references: int, masks: int, n: int) -> None:
    scene = scene_of(5)
    one = request_of(scene)
    assert one.mask is not None
    batch = replace(
        one, draft=one.draft.repeat(drafts, 1, 1, 1), mask=one.mask.repeat(masks, 1, 1, 1),
        references=(one.references[0].repeat(references, 1, 1, 1),),
    )  # fmt: skip
    engine = Plain()
    result = refine(engine, batch)
    assert result.image.shape == (n, *one.draft.shape[1:])
    assert result.mask.shape == (n, 1, *one.draft.shape[2:])
    assert (len(result.crops), len(engine.jobs)) == (n, n)
    assert [r["picture"] for r in result.report["regions"]] == list(range(n))
    single = refine(Plain(), one).image
    assert all(torch.equal(result.image[i : i + 1], single) for i in range(n))


def test_pairs_stay_together(nano: CoreEngine) -> None:
    one, two = scene_of(6), scene_of(7)
    a, b = request_of(one), request_of(two)
    size = b.references[0].shape[-2:]
    a_reference = F.interpolate(a.references[0].float(), size).to(torch.uint8)
    pair = RefineRequest(
        torch.cat([a.draft, b.draft]), (torch.cat([a_reference, b.references[0]]),),
        torch.cat([a.mask, b.mask]), options=FAST,  # type: ignore[list-item]
    )  # fmt: skip
    both = refine(nano, pair)
    second = refine(nano, RefineRequest(b.draft, b.references, b.mask, options=FAST))
    assert torch.equal(both.image[1:], second.image)
    assert torch.equal(both.mask[1:], second.mask)


def test_up_to_three_references_reach_the_engine() -> None:
    request = request_of(scene_of(5))
    engine = Plain()
    many = replace(
        request, references=request.references * 3, reference_masks=request.reference_masks * 3
    )
    refine(engine, many)
    (job,) = engine.jobs
    assert (len(job.latents), job.indices) == (4, (1, 2, 3, 4))
    reversed_ = Plain(replace(NANO, order=("reference", "draft")))
    refine(reversed_, request)
    assert reversed_.jobs[0].indices == (1, 2)
    assert torch.equal(reversed_.jobs[0].latents[1], engine.jobs[0].latents[0])


# --- drift, colour, model mask -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dx", "dy", "zoom"), [(3, 0, 1), (-2, 3, 1), (0, 0, 1.02), (3, -2, 0.985)]
)
def test_drift_is_found_and_taken_out(dx: float, dy: float, zoom: float) -> None:
    request = request_of(scene_of(8, (320, 240)), SHARP, torch.float32)
    engine = Plain(spoil=moved(dx, dy, zoom))
    result = refine(engine, request)
    (region,) = result.report["regions"]
    drift = region["drift"]
    assert drift["corrected"] is True
    assert drift["dx"] == pytest.approx(dx, abs=0.3)
    assert drift["dy"] == pytest.approx(dy, abs=0.3)
    assert drift["zoom"] == pytest.approx(1 * zoom, abs=0.004)
    left = float((result.image - request.draft).abs().sum())
    without = refine(engine, replace(request, options=replace(SHARP, drift=False)))
    assert left < 0.4 * float((without.image - request.draft).abs().sum())
    assert without.report["regions"][0]["drift"] == {"measured": False}


def test_a_colour_cast_is_taken_out() -> None:
    request = request_of(scene_of(8, (320, 240)), SHARP, torch.float32)
    cast = torch.tensor([0.9, 0.8, 0.85]).reshape(1, 3, 1, 1)
    engine = Plain(spoil=lambda x: x * cast + 0.05)
    result = refine(engine, request)
    color = result.report["regions"][0]["color"]
    assert color["gain"] == pytest.approx((1 / cast).flatten().tolist(), rel=0.03)
    assert color["ring_error_after"] < 0.2 * color["ring_error_before"]
    left = float((result.image - request.draft).abs().sum())
    without = refine(engine, replace(request, options=replace(SHARP, color_match=0)))
    assert left < 0.3 * float((without.image - request.draft).abs().sum())
    assert without.report["regions"][0]["color"] is None


def test_another_picture_is_no_drift() -> None:
    """What cannot be aligned is left where it is."""
    noise = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    engine = Plain(spoil=lambda x: noise[..., : x.shape[-2], : x.shape[-1]])
    result = refine(engine, request_of(scene_of(8), SHARP))
    drift = result.report["regions"][0]["drift"]
    assert drift["corrected"] is False


def test_the_model_mask_holds_the_surroundings(nano: CoreEngine) -> None:
    request = request_of(scene_of(9), replace(FAST, drift=False, color_match=0))

    def with_mask(firmness: float) -> RefineRequest:
        return replace(request, options=replace(request.options, model_mask=firmness))

    probe = Plain()
    refine(probe, with_mask(1.0))
    (job,) = probe.jobs
    assert job.restrict is not None
    draft = nano.decode(nano.encode(F.pixel_shuffle(job.latents[0], 4))).clamp(0, 1)
    held = F.interpolate((job.restrict == 0).float(), draft.shape[-2:])
    assert 0.2 < float(held.mean()) < 0.9

    def error(firmness: float) -> float:
        crop = refine(nano, with_mask(firmness)).crops[0]
        return float(((crop - draft).abs() * held).sum() / held.sum() / 3)

    free, half, firm = error(0.0), error(0.5), error(1.0)
    assert firm < 1e-5
    assert firm < half < free
    refine(probe, with_mask(0.0))
    assert probe.jobs[1].restrict is None


# --- report --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_is_complete_json(nano: CoreEngine) -> None:
    stages: list[str] = []
    request = request_of(scene_of(10), RefineOptions(steps=STEPS, seed=11))
    result = refine(nano, request, lambda s: stages.append(f"{s.name} {s.step}/{s.steps}"))
    report = json.loads(json.dumps(result.report, allow_nan=False))
    assert {"version", "engine", "recipe", "draft", "seed", "regions", "seconds", "torch"} <= set(
        report
    )
    assert (report["recipe"], report["seed"], report["draft"]) == ("nano", 11, "1 x 200x150")
    assert set(report["seconds"]) == {"plan", "encode", "sample", "decode", "register", "stitch"}
    assert report["seconds_total"] >= max(report["seconds"].values())
    assert report["peak_memory_mb"] > 50
    (region,) = report["regions"]
    assert {"region", "crop", "bucket", "scale", "padding", "references", "drift", "color"} <= set(
        region
    )
    assert region["references"][0]["alignment"]["method"] in ("registered", "boxes", "surface")
    assert stages == [
        "plan 0/1", "encode 0/1", "sample 1/2", "sample 2/2", "decode 0/1", "register 0/1",
        "stitch 0/1",
    ]  # fmt: skip


def test_progress_can_stop_the_run(nano: CoreEngine) -> None:
    class StopError(Exception):
        pass

    def stop(stage: Stage) -> None:
        if stage.name == "sample":
            raise StopError

    with pytest.raises(StopError):
        refine(nano, request_of(scene_of(10)), stop)


# --- boxes ---------------------------------------------------------------------------------------


def test_each_box_takes_its_own_part_of_the_reference() -> None:
    scene = scene_of(10)
    left, right = RelativeBox(0.1, 0.2, 0.4, 0.6), RelativeBox(0.6, 0.3, 0.9, 0.8)
    pairs = (BoxPair(left, RelativeBox(0, 0, 0.5, 0.5)), BoxPair(right))
    result = refine(Plain(), request_of(scene, FAST, mask=None, reference_masks=(), boxes=pairs))
    size = Extent(result.image.shape[-1], result.image.shape[-2])
    first, second = result.report["regions"]
    assert first["region"] == list(left.pixels(size))
    assert second["region"] == list(right.pixels(size))
    h, w = scene.reference.shape[:2]
    part = Box(*first["references"][0]["crop"])
    assert part.contains(Box(0, 0, w // 2, h // 2)) and part.extent.area < 0.7 * w * h
    assert second["references"][0]["crop"] != first["references"][0]["crop"]
    assert (
        float(result.mask.sum()) == left.pixels(size).extent.area + right.pixels(size).extent.area
    )


def test_a_mask_outside_all_boxes_changes_nothing_and_is_reported() -> None:
    scene = scene_of(10)
    request = request_of(scene, FAST, boxes=(BoxPair(RelativeBox(0, 0, 0.05, 0.05)),))
    result = refine(Plain(), request)
    assert request.mask is not None
    assert result.report["mask_outside_boxes_px"] == int((request.mask > 0).sum())
    assert torch.equal(result.image[..., 20:, 20:], request.draft[..., 20:, 20:])


# --- refusals ------------------------------------------------------------------------------------


def _with_nan(x: Tensor, y: int, x_at: int) -> Tensor:
    out = x.float() / 255 if x.dtype == torch.uint8 else x.clone()
    out[..., y, x_at] = math.nan
    return out


BASE = request_of(scene_of(11), FAST)
assert BASE.mask is not None
REFERENCE_MASK = mask_of(scene_of(11).reference_mask)
BOX = [int(v) for v in BASE.mask[0, 0].nonzero().float().mean(0)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask": torch.ones(1, 1, 7, 9)}, "mask is 9x7 but the draft is 200x150"),
        ({"mask": torch.ones(150, 200)}, r"mask .*\(150, 200\)"),
        ({"mask": torch.zeros(1, 1, 150, 200)}, "empty"),
        ({"mask": _with_nan(BASE.mask, 0, 0)}, "NaN"),
        ({"draft": _with_nan(BASE.draft, *BOX)}, "draft .* 3 values"),
        ({"draft": BASE.draft.float() / 0}, "draft .* values"),
        ({"draft": BASE.draft[0]}, r"draft .*\(.*150, 200\)"),
        ({"draft": BASE.draft[:, :1]}, r"draft .*\(.*150, 200\)"),
        ({"draft": torch.zeros(1, 3, 1, 16385, dtype=torch.uint8)}, "16385x1"),
        ({"draft": BASE.draft.repeat(2, 1, 1, 1), "mask": BASE.mask.repeat(3, 1, 1, 1)},
         "2 drafts.*3 masks"),
        ({"references": (), "reference_masks": ()}, "no reference.*takes 1 to 3"),
        ({"references": BASE.references * 4}, "got 4"),
        ({"references": (_with_nan(BASE.references[0], 0, 0),)}, "reference .* 3 values"),
        ({"references": (BASE.references[0][..., :7],), "reference_masks": ()}, "7x.*at least 8"),
        ({"references": (BASE.references[0][0],), "reference_masks": ()}, r"reference .*\(.*132, 176\)"),
        ({"references": (BASE.references[0].repeat(1, 2, 1, 1),)}, r"reference .*\(.*132, 176\)"),
        ({"reference_masks": (torch.zeros(1, 1, 5, 6),)}, "reference mask is 6x5"),
        ({"reference_masks": (0 * REFERENCE_MASK,)}, "reference mask .* empty"),
        ({"reference_masks": (_with_nan(REFERENCE_MASK, 0, 0),)}, "reference mask .* 1 values"),
        ({"reference_masks": BASE.reference_masks * 2}, "2 reference masks for 1"),
        ({"options": replace(FAST, context=0.5)}, "context"),
        ({"options": replace(FAST, megapixels=0.0)}, "megapixels"),
        ({"options": replace(FAST, seed=-1)}, "seed"),
    ],
)  # fmt: skip
def test_refused_requests(nano: CoreEngine, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        refine(nano, replace(BASE, **change))


def test_nan_far_from_the_region_is_no_concern(nano: CoreEngine) -> None:
    mask = torch.zeros(1, 1, 150, 200)
    mask[..., 100:120, 150:170] = 1
    draft = _with_nan(BASE.draft, 0, 0)
    result = refine(nano, replace(BASE, draft=draft, mask=mask))
    assert int(result.image.isnan().sum()) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -1), ("steps", 5000), ("guidance", -1), ("guidance", math.nan),
        ("guidance", 101), ("feather", -1), ("feather", math.inf),
        ("grow", 2000), ("grow", math.nan), ("model_mask", 1.5), ("model_mask", -0.1),
        ("color_match", 2), ("blend", "soft"),
    ],
)  # fmt: skip
def test_refused_options(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*got .*{value}"):
        RefineOptions(**{name: value})


def test_a_thin_faint_mask_is_repaired_with_alignment(nano: CoreEngine) -> None:
    """One stroke of a pixel at a tenth of its strength, and a reference mask of a single pixel."""
    mask = torch.zeros(1, 1, 150, 200)
    mask[..., 75, 20:180] = 0.1
    reference_mask = torch.zeros_like(REFERENCE_MASK)
    reference_mask[..., 10, 12] = 1
    request = replace(
        BASE, mask=mask, reference_masks=(reference_mask,), options=RefineOptions(steps=1)
    )
    result = refine(nano, request)
    assert torch.equal(result.mask, (mask > 0).float())


@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_tiny_drafts(nano: CoreEngine, size: tuple[int, int]) -> None:
    draft = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    draft = draft.to(torch.uint8)
    result = refine(nano, RefineRequest(draft, BASE.references, options=RefineOptions(steps=1)))
    assert result.image.shape == draft.shape


def test_match_light_keeps_the_contrast_where_the_draft_shows_something_else() -> None:
    """Black and white tiles, each picture in an order of its own: same light, other detail."""
    g = torch.Generator().manual_seed(3)

    def tiles(seed: int) -> Tensor:
        order = torch.randperm(64, generator=g.manual_seed(seed)).reshape(1, 1, 8, 8)
        return F.interpolate((order % 2).float(), (64, 64)).expand(1, 3, -1, -1)

    light = torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)
    draft, reference = tiles(1) * light + 0.2, tiles(2)
    matched = match_light(reference, draft, torch.ones(1, 1, 64, 64))
    contrast = matched.flatten(2).std(2)[0] / draft.flatten(2).std(2)[0]
    assert bool((contrast > 0.75).all()), contrast
    assert float((matched - (reference * light + 0.2)).abs().mean()) < 0.08
