"""Regions are repaired phase by phase: in waves and chunks, and as if one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from refiner_core.images.crop import box_region
from refiner_core.images.geometry import Box, CropPlan, Extent
from refiner_core.images.masks import Region
from refiner_core.interfaces import SamplingJob
from refiner_core.models.core_engine import CoreEngine
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO, Attention, Recipe
from refiner_core.repair import pipeline
from refiner_core.repair.batches import batches, joined
from refiner_core.repair.marking import region_notes
from refiner_core.repair.pipeline import RefineResult, refine
from refiner_core.repair.prepare_region import plan_region
from refiner_core.repair.region import PlannedRegion
from refiner_core.repair.request import RefineOptions, RefineRequest, RegionTask
from refiner_core.repair.waves import waves
from refiner_core.sampling import draw_noise
from tests.jobs import job_of

FAST = RefineOptions(steps=2, align=False, megapixels=0.004)


@pytest.fixture(scope="module")
def nano() -> CoreEngine:
    return load_nano()


def planned(region: tuple[int, int], crop: tuple[int, int]) -> PlannedRegion:
    """From left to right in a picture of one row, in hundreds of pixels."""
    box = Box(100 * region[0], 0, 100 * region[1], 1)
    task = RegionTask(box_region(box), (), ())
    whole = Box(100 * crop[0], 0, 100 * crop[1], 1)
    plan = CropPlan(Extent(2000, 1), box, whole, whole.extent)
    return PlannedRegion(task, plan, plan, (), plan.scale, False, task.region)


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([((2, 3), (0, 5))], [[0]]),
        ([((2, 3), (0, 5)), ((7, 8), (5, 9))], [[0, 1]]),  # crops that only touch
        ([((2, 4), (0, 6)), ((7, 8), (5, 9))], [[0, 1]]),  # crops overlap, regions do not
        ([((2, 4), (0, 6)), ((5, 8), (3, 9))], [[0], [1]]),  # the later crop shows the first region
        ([((2, 4), (0, 6)), ((5, 8), (4, 9))], [[0, 1]]),  # the first crop shows the later region
        # The third changes what the second's crop shows, which has to wait for the first.
        ([((2, 4), (0, 6)), ((5, 8), (3, 12)), ((10, 11), (9, 13))], [[0], [1, 2]]),
        ([((2, 4), (2, 4)), ((4, 6), (4, 6))], [[0], [1]]),  # what is around a region counts, too
        ([((0, 2), (0, 9)), ((3, 5), (0, 9)), ((6, 8), (0, 9))], [[0], [1], [2]]),
    ],
)
def test_waves(
    regions: list[tuple[tuple[int, int], tuple[int, int]]], expected: list[list[int]]
) -> None:
    assert waves([planned(*r) for r in regions]) == expected


@dataclass
class Logged(CoreEngine):
    """Notes in which order it is used."""

    calls: list[str] = field(default_factory=list)

    def encode(self, image: Tensor) -> Tensor:
        self.calls.append("encode")
        return super().encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        self.calls.append("decode")
        return super().decode(latent)

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        self.calls.append(f"text {len(jobs)}")

    def sample(self, job: SamplingJob, step: Any) -> Tensor:
        self.calls.append("sample")
        return super().sample(job, step)


def pictures(count: int, lefts: Sequence[int]) -> RefineRequest:
    """Noise with a square region at each of `lefts`."""
    g = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 1, 64, 256)
    for left in lefts:
        mask[..., 20:44, left : left + 24] = 1
    draft = torch.randint(0, 256, (count, 3, 64, 256), generator=g).to(torch.uint8)
    reference = torch.randint(0, 256, (1, 3, 48, 48), generator=g).to(torch.uint8)
    marked = torch.ones(1, 1, 48, 48)  # a reference without a mask would be searched
    return RefineRequest(draft, (reference,), mask, (marked,), FAST)


def same(a: RefineResult, b: RefineResult) -> bool:
    crops = zip(a.crops, b.crops, strict=True)
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.mask, b.mask)
        and all(torch.equal(x, y) for x, y in crops)
        and a.report["regions"] == b.report["regions"]
    )


def test_each_phase_is_done_for_all_regions_before_the_next(nano: CoreEngine) -> None:
    engine = Logged(nano.recipe, nano.model, nano.codec, nano.text)
    engine.recipe = replace(nano.recipe, codec_residual=0.0)
    refine(engine, pictures(2, (20, 200)))
    assert engine.calls == 8 * ["encode"] + ["text 4"] + 4 * ["sample"] + 4 * ["decode"]


@pytest.mark.parametrize("lefts", [(20, 200), (20, 76, 200), (20, 76, 132, 188)])
def test_the_result_is_that_of_region_after_region(
    nano: CoreEngine, monkeypatch: pytest.MonkeyPatch, lefts: tuple[int, ...]
) -> None:
    """Also where crops overlap, and with several pictures."""
    request = pictures(2, lefts)
    together = refine(nano, request)
    monkeypatch.setattr(pipeline, "waves", lambda regions: [[i] for i in range(len(regions))])
    assert same(together, refine(nano, request))


def test_chunks_change_nothing_but_the_memory(
    nano: CoreEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = pictures(5, (20, 200))
    together = refine(nano, request)
    engine = Logged(nano.recipe, nano.model, nano.codec, nano.text)
    one = sum(c.shape[-1] * c.shape[-2] for c in together.crops[:2])
    monkeypatch.setattr(pipeline, "_CHUNK", 4 * one)  # draft and reference of two pictures
    assert same(together, refine(engine, request))
    assert [c for c in engine.calls if c.startswith("text")] == ["text 4", "text 4", "text 2"]
    assert [r["picture"] for r in together.report["regions"]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@dataclass
class Together(CoreEngine):
    """Samples several jobs at once, and notes how many."""

    most: int = 1
    rows: list[int] = field(default_factory=list)

    def at_once(self, job: SamplingJob) -> int:
        return self.most

    def sample(self, job: SamplingJob, step: Any) -> Tensor:
        self.rows.append(len(job.draft))
        return super().sample(job, step)


@pytest.mark.parametrize("attention", ["both ways", "one way"])
@pytest.mark.parametrize(("most", "rows"), [(1, [1] * 4), (3, [3, 1]), (8, [4])])
@pytest.mark.parametrize("model_mask", [0.0, 0.8])
def test_regions_of_one_size_are_sampled_together(
    nano: CoreEngine, attention: Attention, most: int, rows: list[int], model_mask: float
) -> None:
    recipe = replace(nano.recipe, attention=attention)
    alone, together = (
        Together(recipe, nano.model, nano.codec, nano.text, most=n) for n in (1, most)
    )
    request = pictures(2, (20, 200))
    request = replace(request, options=replace(request.options, model_mask=model_mask))
    wanted, found = (refine(engine, request) for engine in (alone, together))
    assert alone.rows == [1] * 4 and together.rows == rows
    for a, b in zip(found.crops, wanted.crops, strict=True):
        assert float((a - b).abs().max()) < 1e-4
    if most == 1:
        assert same(found, wanted) and same(found, refine(replace_recipe(nano, recipe), request))


def replace_recipe(engine: CoreEngine, recipe: Recipe) -> CoreEngine:
    return CoreEngine(recipe, engine.model, engine.codec, engine.text)


def test_other_prompts_sizes_and_steps_are_sampled_apart() -> None:
    engine = Together(NANO, *[None] * 3, most=8)  # type: ignore[arg-type]
    latent, large = torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 8, 16)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    job = job_of((latent, latent), sigmas)
    others = [
        job_of((large, latent), sigmas),
        replace(job, prompt="other"),
        replace(job, guidance=2.0),
        replace(job, sigmas=sigmas[::2]),
        replace(job, restrict=torch.ones(1, 1, 8, 8)),
    ]
    jobs = [job, *others, replace(job, seed=5), *others]
    assert batches(engine, jobs) == [[0, 6], *([i, i + 6] for i in range(1, 6))]
    start = joined([job, replace(job, seed=5)]).start
    assert start is not None
    assert torch.equal(start, torch.cat([draw_noise((1, 16, 8, 8), seed) for seed in (0, 5)]))


@pytest.mark.parametrize(("recipe", "notes"), [(NANO, 0), (replace(NANO, native_detail=False), 1)])
def test_a_large_region_is_named_only_where_the_model_sees_it_small(
    recipe: Recipe, notes: int
) -> None:
    size = Extent(1000, 1000)
    region = Region(Box(100, 100, 700, 700), torch.ones(1, 1, 600, 600))
    task = RegionTask(region, (torch.rand(1, 3, 200, 200),), (None,))
    planned = plan_region(task, size, recipe, RefineOptions())
    assert planned.largest_scale < 0.5
    assert len(region_notes([planned], size)) == notes
