"""The search for the best of several candidates: what it spends, keeps, returns and reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refiner_core.evaluation.held_out_scenes import HeldOutScene, make_scene
from refiner_core.interfaces import SamplingJob
from refiner_core.models.core_engine import CoreEngine
from refiner_core.nano.nano_engine import load_nano
from refiner_core.nano.reference_blend import ReferenceBlend
from refiner_core.recipes.recipe import NANO, Recipe
from refiner_core.repair.best_of_n import Candidate, Round, rounds, search
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from refiner_core.sampling import draw_noise
from refiner_core.scoring.scorer import IncomparableError
from refiner_core.scoring.structural import StructuralScorer
from tests.jobs import job_of

FAST = RefineOptions(steps=2, align=False, megapixels=0.004)

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


@pytest.fixture(scope="module")
def nano() -> CoreEngine:
    return load_nano()


@pytest.fixture(scope="module")
def scene() -> HeldOutScene:
    return make_scene(3, (160, 120), (0.3, 0.5), held_out=True)


def request_of(scene: HeldOutScene, options: RefineOptions) -> RefineRequest:
    def image(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy()).permute(2, 0, 1)[None]

    masks = [
        torch.from_numpy(m.copy())[None, None] / 255 for m in (scene.mask, scene.reference_mask)
    ]
    return RefineRequest(
        image(scene.draft), (image(scene.reference),), masks[0], (masks[1],), options
    )


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "count", "keep", "prune_at", "plan", "spent"),
    [
        (4, 8, 1, None, [(1, 4), (2, 2), (3, 1), (4, 1)], 15),
        (4, 8, 2, 1, [(1, 4), (2, 2), (4, 1)], 16),
        (4, 8, 1, 0, [(4, 1)], 32),
        (28, 8, 1, None, [(7, 4), (14, 2), (21, 1), (28, 1)], 105),
        (28, 8, 1, 2, [(2, 4), (4, 2), (6, 1), (28, 1)], 50),
        (4, 3, 1, 3, [(3, 1), (4, 1)], 10),
        (4, 5, 3, 1, [(1, 3), (4, 1)], 14),
        (1, 8, 1, None, [(1, 1)], 8),
        (4, 8, 8, 1, [(4, 1)], 32),
        (4, 8, 1, 9, [(4, 1)], 32),
    ],
)
def test_rounds(
    steps: int, count: int, keep: int, prune_at: int | None, plan: list[tuple[int, int]], spent: int
) -> None:
    found = rounds(steps, count, keep, prune_at)
    assert [(r.end, r.keep) for r in found] == plan
    alive = [count, *(r.keep for r in found)]
    ends = [0, *(r.end for r in found)]
    assert sum(a * (e - b) for a, b, e in zip(alive, ends, ends[1:], strict=False)) == spent


@given(st.integers(4, 60), st.integers(2, 16))
def test_pruning_by_default_takes_at_most_half(steps: int, half: int) -> None:
    plan = rounds(steps, 2 * half, 1, None)
    alive = [2 * half, *(r.keep for r in plan)]
    ends = [0, *(r.end for r in plan)]
    spent = sum(a * (e - b) for a, b, e in zip(alive, ends, ends[1:], strict=False))
    # Two or three candidates cannot be halved often enough; from eight on it holds.
    assert spent <= 2 * half * steps * (0.5 if half >= 4 else 0.75) + 2 * half


# --- the search, on an engine whose every number is known ------------------------------------------


@dataclass
class Levels:
    """Its pictures are one grey: the mean of the noise of the candidate, `drift` by step."""

    drift: Tensor = field(default_factory=lambda: torch.zeros(5))
    largest: int = 64
    recipe: Recipe = NANO
    rows: int = 0
    batches: list[int] = field(default_factory=list)

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent[:, :3]

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        pass

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        x = job.start
        assert x is not None
        if len(x) > self.largest:
            raise torch.OutOfMemoryError("too many")
        steps = len(job.sigmas) - 1
        end = steps if job.end is None else job.end
        self.rows += len(x) * (end - job.begin)
        self.batches.append(len(x))
        for i in range(job.begin, end):
            step(i + 1, steps, (x.abs() + self.drift[i + 1]).clamp(0, 1))
        return (x.abs() + self.drift[end]).clamp(0, 1) if job.end is None else x

    def describe(self) -> dict[str, str]:
        return {"kind": "levels"}


def blank_job() -> SamplingJob:
    latent = torch.zeros(1, 3, 2, 2)
    return job_of((latent, latent), SIGMAS)


def candidates_of(count: int) -> list[Candidate]:
    job = blank_job()
    return [Candidate(i, job.inputs) for i in range(count)]


def grey(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).mean(1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 4), st.sampled_from([None, 0, 1, 2, 3]),
    st.lists(st.floats(-0.3, 0.3), min_size=5, max_size=5),
)  # fmt: skip
def test_returns_the_best_it_reports_and_spends_what_it_reports(
    count: int, keep: int, prune_at: int | None, drift: list[float]
) -> None:
    engine = Levels(torch.tensor(drift))
    plan = rounds(4, count, min(keep, count), prune_at)
    found = search(engine, blank_job(), candidates_of(count), plan, grey, lambda *_: None)
    final = {i: s[4] for i, s in enumerate(found.scores) if 4 in s}
    assert final[found.chosen] == min(final.values())
    assert float(grey(found.picture)) == final[found.chosen]
    assert torch.equal(engine.decode(found.latent), found.picture)
    assert found.evaluations == engine.rows and found.full == 4 * count
    # Whoever was dropped was no better, when dropped, than anybody who went on.
    for part, after in zip(plan, plan[1:], strict=False):
        went_on = [s[part.end] for s in found.scores if after.end in s]
        dropped = [s[part.end] for s in found.scores if part.end in s and after.end not in s]
        assert not dropped or min(dropped) >= max(went_on)


def test_memory_that_does_not_suffice_halves_the_batch() -> None:
    plan = rounds(4, 8, 1, None)
    free, tight = Levels(), Levels(largest=3)
    a, b = (
        search(e, blank_job(), candidates_of(8), plan, grey, lambda *_: None) for e in (free, tight)
    )
    assert free.batches == [8, 4, 2, 1] and tight.batches == [2, 2, 2, 2, 2, 2, 2, 1]
    assert a.scores == b.scores and torch.equal(a.picture, b.picture)
    with pytest.raises(torch.OutOfMemoryError):
        search(Levels(largest=0), blank_job(), candidates_of(2), plan, grey, lambda *_: None)


def test_a_score_that_is_nan_loses() -> None:
    def judge(pictures: Tensor) -> Tensor:
        scores = grey(pictures)
        scores[int(scores.argmin())] = torch.nan
        return scores

    found = search(Levels(), blank_job(), candidates_of(4), [Round(4, 1)], judge, lambda *_: None)
    plain = search(Levels(), blank_job(), candidates_of(4), [Round(4, 1)], grey, lambda *_: None)
    ranked = sorted(range(4), key=lambda i: plain.scores[i][4])
    assert found.chosen == ranked[1]


# --- the pipeline --------------------------------------------------------------------------------


def test_a_run_in_two_parts_is_the_run(nano: CoreEngine) -> None:
    g = torch.Generator().manual_seed(0)
    latents = tuple(torch.randn(2, 16, 8, 8, generator=g) for _ in range(2))
    noise = torch.cat([draw_noise((1, 16, 8, 8), s) for s in (5, 6)])
    job = job_of(latents, SIGMAS, seed=5, start=noise)
    seen: list[int] = []
    whole = nano.sample(job, lambda i, n, x0: seen.append(i))
    half = nano.sample(replace(job, end=2), lambda i, n, x0: seen.append(i))
    rest = nano.sample(replace(job, start=half, begin=2), lambda i, n, x0: seen.append(i))
    assert torch.equal(rest, whole)
    assert seen == [1, 2, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize("model_mask", [0.0, 1.0])
def test_the_first_candidate_is_the_plain_run(
    nano: CoreEngine, scene: HeldOutScene, model_mask: float
) -> None:
    """A scorer that loves the plain run's result makes the search return it."""
    options = replace(FAST, model_mask=model_mask)
    plain = refine(nano, request_of(scene, options)).crops[0]

    class Near:
        name = "near the plain run"

        def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
            return (a - plain).abs().flatten(1).mean(1)

    searched = refine(nano, request_of(scene, replace(options, candidates=3)), None, Near())
    report = searched.report["regions"][0]["search"]
    assert report["chosen"] == 0 and report["candidates"][0]["seed"] == 0
    assert float((searched.crops[0] - plain).abs().max()) < 2e-5


def test_one_candidate_takes_the_plain_path(nano: CoreEngine, scene: HeldOutScene) -> None:
    jobs: list[SamplingJob] = []

    @dataclass
    class Watched(CoreEngine):
        def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
            jobs.append(job)
            return super().sample(job, step)

    engine = Watched(nano.recipe, nano.model, nano.codec, nano.text)
    one = refine(engine, request_of(scene, replace(FAST, candidates=1, keep=1, prune_at=1)))
    plain = refine(nano, request_of(scene, FAST))
    assert len(jobs) == 1 and jobs[0].start is None and (jobs[0].begin, jobs[0].end) == (0, None)
    assert one.image.numpy().tobytes() == plain.image.numpy().tobytes()
    assert "search" not in one.report["regions"][0]


@pytest.mark.slow
def test_the_report_is_true_of_the_result(nano: CoreEngine, scene: HeldOutScene) -> None:
    options = RefineOptions(steps=4, candidates=4, seed=2**64 - 2)
    request = request_of(scene, options)
    result = refine(nano, request)
    found = result.report["regions"][0]["search"]
    assert json.loads(json.dumps(found)) == found
    blend = ReferenceBlend.of(NANO, aligned=True)
    assert [c["seed"] for c in found["candidates"]] == [2**64 - 2, 2**64 - 1, 0, 1]
    assert [c["reference_blend"] for c in found["candidates"]] == [
        round(blend.candidate(i).share, 3) for i in range(4)
    ]
    finals = [c["scores"].get("4") for c in found["candidates"]]
    reached = [f for f in finals if f is not None]
    assert finals[found["chosen"]] == min(reached)
    assert found["evaluations"] == 8 and found["evaluations_full"] == 16
    keep = (result.mask == 0).expand(result.image.shape)
    assert torch.equal(result.image[keep], request.draft[keep])


@given(st.floats(0.01, 0.999), st.integers(2, 32))
def test_blends_cover_the_range_around_the_recipes(share: float, count: int) -> None:
    """From five times as far from 1 as the recipe's share, but not below 0, up to 1."""
    blend = ReferenceBlend(share)
    low = max(0.0, 1 - 5 * (1 - share))
    assert blend.candidate(0) is blend
    shares = sorted(blend.candidate(i).share for i in range(count))
    assert shares[0] >= low - 1e-9 and shares[-1] <= 1 + 1e-9
    gaps = np.diff([low, *shares, 1.0])
    assert gaps.max() <= (1 - low) * 2.7 / count + 1e-9


def test_nanos_blends_are_between_085_and_1() -> None:
    blend = ReferenceBlend.of(NANO, aligned=True)
    shares = [round(blend.candidate(i).share, 3) for i in range(4)]
    assert shares == [0.97, 0.913, 0.855, 0.948]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_blend_without_a_range_stays(share: float) -> None:
    assert ReferenceBlend(share).candidate(3).share == share


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates must be between 1 and 64, got 0"),
        ({"candidates": 65}, "got 65"),
        ({"candidates": 4, "keep": 5}, r"keep.*\(4\), got 5"),
        ({"keep": 0}, "got 0"),
        ({"candidates": 2, "prune_at": -1}, "prune_at must be between 0 and 1000, got -1"),
    ],
)
def test_bad_options(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineOptions(**changes)


def test_the_weight_free_scorer_is_the_default(nano: CoreEngine, scene: HeldOutScene) -> None:
    result = refine(nano, request_of(scene, replace(FAST, candidates=2)))
    assert result.report["regions"][0]["search"]["scorer"] == StructuralScorer().name


class OnlyBright:
    """Compares only with pictures that have something bright, as a text scorer needs lettering."""

    name = "only bright"

    def __init__(self, least: float) -> None:
        self.least, self.calls = least, 0

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        if float(b.mean()) < self.least:
            raise IncomparableError(f"nothing is brighter than {self.least}")
        return (a - b).abs().flatten(1).mean(1)


def test_a_draft_that_the_scorer_cannot_compare_is_left_out(
    nano: CoreEngine, scene: HeldOutScene
) -> None:
    scene = replace(scene, draft=scene.target // 8 * 7)  # darker than the reference, in place
    request = request_of(scene, replace(FAST, align=True, candidates=2))
    every = refine(nano, request, None, OnlyBright(0.0)).report["regions"][0]["search"]
    assert every["targets"] == ["reference", "draft"] and "targets_left_out" not in every
    means = _target_means(nano, request)
    between = (means[0] + means[1]) / 2
    found = refine(nano, request, None, OnlyBright(between)).report["regions"][0]["search"]
    assert found["targets"] == ["reference"]
    assert str(between) in found["targets_left_out"]["draft"]


def _target_means(nano: CoreEngine, request: RefineRequest) -> list[float]:
    """Of the aligned reference and of the draft, as scorers see them."""
    seen: list[float] = []

    class Watching(OnlyBright):
        def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
            seen.append(float(b.mean()))
            return super().distance(a, b, mask)

    refine(nano, request, None, Watching(0.0))
    return seen[:2]


def test_a_reference_that_the_scorer_cannot_compare_is_refused_before_sampling(
    nano: CoreEngine, scene: HeldOutScene
) -> None:
    scorer = OnlyBright(2.0)
    with pytest.raises(ValueError, match=r"2\.0"):
        refine(nano, request_of(scene, replace(FAST, candidates=2)), None, scorer)
    assert scorer.calls == 1
