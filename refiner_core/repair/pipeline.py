"""The whole repair: plan, encode, sample, decode, correct, stitch.

`refine` is the one entry; it runs every region of every picture through an `Engine` and reports
what it did. Everything outside the regions keeps its exact bits. Every phase is done for all regions
that are repaired together before the next one begins, so that the text encoder, the transformer and
the autoencoder do not push one another out of memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images.geometry import Extent
from ..interfaces import Engine, Progress, SamplingJob, Stage
from ..recipes.recipe import Recipe
from ..scoring.scorer import Scorer
from .batches import batches, joined
from .candidates import sample_best
from .finish_region import correct_region, stitch_region
from .locate_detail import is_searched, locate_details
from .marking import normalize_request, region_notes
from .prepare_region import plan_region, prepare_region
from .region import PlannedRegion, PreparedRegion, shown_pictures
from .request import RefineOptions, RefineRequest, RegionTask, check, pick, region_tasks
from .run_report import mismatches, run_report
from .sampling_inputs import clean_inputs, sampling_job
from .watch import Watch
from .waves import waves

# Pixels of crops that are held at a time: 24 regions of a megapixel with one reference, 0.6 GB.
_CHUNK = 48_000_000


@dataclass(frozen=True)
class RefineResult:
    """The repaired pictures and what was done."""

    image: Tensor
    """N 3 H W in the draft's type."""
    crops: list[Tensor]
    """The repaired crops at the model's size, region by region, picture by picture."""
    mask: Tensor
    """What was allowed to change, N 1 H W, 0 or 1."""
    report: dict[str, Any]
    """For JSON."""


@dataclass(frozen=True)
class Work:
    """One region of one picture in a run."""

    image: Tensor
    """The picture, 1 3 H W, which is repaired in place."""
    planned: PlannedRegion
    """The region in it."""
    stage: Stage
    """Which of the run's pictures and regions it is."""

    def at(self, name: str) -> Stage:
        """This region in the stage `name`."""
        return self.stage._replace(name=name, plan=self.planned.plan)


@dataclass(frozen=True)
class Sampled:
    """What sampling made of a region."""

    latent: Tensor | None
    """The latent, or None if there is a picture already."""
    picture: Tensor | None = None
    """The best candidate, decoded."""
    report: dict[str, Any] | None = None
    """How the best candidate was chosen."""


@dataclass(frozen=True)
class Repaired:
    """The repaired crop of a region, float 1 3 H W, and what was done."""

    crop: Tensor
    report: dict[str, Any]


@torch.inference_mode()
def refine(
    engine: Engine,
    request: RefineRequest,
    progress: Progress | None = None,
    scorer: Scorer | None = None,
    *,
    in_place: bool = False,
) -> RefineResult:
    """Repair every region of every draft.

    Work goes phase by phase (all crops are encoded, then all sampled, then all decoded), so that
    each model is loaded once; many pictures go in chunks, which bounds the memory.

    Args:
        engine: the weights.
        request: what to repair, and how.
        progress: called at every stage and step.
        scorer: compares candidates with the reference; None = the one without weights.
        in_place: whether a single draft may be changed itself, also if the run ends early. A copy of
            8192x8192 px takes as long as a tenth of a repair with nano.

    Raises:
        ValueError: for every input that cannot be repaired, with the values and the fix.
    """
    begun = time.perf_counter()
    request = normalize_request(request)
    n = check(request)
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    recipe = engine.recipe
    run = _Run(engine, recipe, request.options, Watch(progress), scorer)
    images: list[Tensor] = []
    changed: list[Tensor] = []
    done: list[Repaired] = []
    notes = list(request.notes)
    in_place = in_place and n == 1  # a draft that makes several pictures is needed again
    for chunk in _chunks(_works(run, request, n, in_place)):
        images += [works[0].image for works in chunk]
        changed += [_changed(works, size) for works in chunk]
        for works in chunk:
            notes += region_notes([work.planned for work in works], size)
        done += _repair(run, chunk)
    unmatched = mismatches([r.report for r in done])
    report = run_report(engine.describe(), recipe, request, [r.report for r in done]) | {
        "notes": list(dict.fromkeys((*notes, *unmatched))),
        "mismatches": unmatched,
        "seconds": {k: round(v, 4) for k, v in run.watch.seconds.items()},
        "seconds_total": round(time.perf_counter() - begun, 4),
    }
    return RefineResult(_batch(images), [r.crop for r in done], _batch(changed), report)


def _works(run: _Run, request: RefineRequest, n: int, in_place: bool) -> Iterator[list[Work]]:
    """The regions of every picture, planned; in copies of the drafts unless these may be changed."""
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    for i in range(n):
        draft = pick(request.draft, i)
        image = draft if in_place else draft.clone()
        tasks = region_tasks(request, i, size, run.recipe.buckets)
        stage = Stage("plan", picture=i, pictures=n, regions=len(tasks), image=image)
        yield [_work(run, task, stage._replace(region=r), image) for r, task in enumerate(tasks)]


def _work(run: _Run, task: RegionTask, stage: Stage, image: Tensor) -> Work:
    """A region, planned; its unmarked references are searched for the detail."""
    recipe = run.recipe
    if is_searched(image, task, recipe, run.options):
        run.watch.enter(stage)  # it takes seconds for each reference
        task = locate_details(image, task, recipe, run.options)
    size = Extent(image.shape[-1], image.shape[-2])
    return Work(image, plan_region(task, size, recipe, run.options), stage)


def _chunks(pictures: Iterable[list[Work]]) -> Iterator[list[list[Work]]]:
    """As many pictures at a time as memory for their crops is meant to hold; at least one."""
    chunk: list[list[Work]] = []
    pixels = 0
    for works in pictures:
        own = sum(work.planned.pixels for work in works)
        if chunk and pixels + own > _CHUNK:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(works)
        pixels += own
    yield chunk


@dataclass(frozen=True)
class _Run:
    """What every step of a run uses."""

    engine: Engine
    recipe: Recipe
    options: RefineOptions
    watch: Watch
    scorer: Scorer | None


def _repair(run: _Run, chunk: list[list[Work]]) -> list[Repaired]:
    """Repair all regions of some pictures, wave by wave; in the order of pictures and regions."""
    numbered = [waves([work.planned for work in works]) for works in chunk]
    done: dict[tuple[int, int], Repaired] = {}
    for wave in range(max(len(own) for own in numbered)):
        works = [
            chunk[i][r] for i, own in enumerate(numbered) if wave < len(own) for r in own[wave]
        ]
        for work, repaired in zip(works, _repair_together(run, works), strict=True):
            done[work.stage.picture, work.stage.region] = repaired
    return [done[key] for key in sorted(done)]


def _repair_together(run: _Run, works: Sequence[Work]) -> list[Repaired]:
    """Repair regions none of which depends on what another one changes; in their order.

    Those that are to be left alone are only reported.
    """
    prepared = [_prepare(run, work) for work in works]
    pairs = [pair for pair in zip(works, prepared, strict=True) if not pair[1].left_alone]
    jobs = [_encode(run, *pair) for pair in pairs]
    run.engine.encode_text(jobs)
    sampled = _sample_all(run, pairs, jobs)
    decoded = [
        _decode(run, *pair, job, result)
        for pair, job, result in zip(pairs, jobs, sampled, strict=True)
    ]
    finished = iter(
        [
            _finish(run, *pair, result, *pictures)
            for pair, result, pictures in zip(pairs, sampled, decoded, strict=True)
        ]
    )
    return [
        _left_alone(work, region) if region.left_alone else next(finished)
        for work, region in zip(works, prepared, strict=True)
    ]


def _left_alone(work: Work, region: PreparedRegion) -> Repaired:
    return Repaired(region.draft, {"picture": work.stage.picture, **region.report})


def _prepare(run: _Run, work: Work) -> PreparedRegion:
    run.watch.enter(work.stage._replace(name="plan"))
    return prepare_region(work.image, work.planned, run.recipe, run.options)


def _encode(run: _Run, work: Work, region: PreparedRegion) -> SamplingJob:
    run.watch.enter(work.at("encode"))
    inputs = clean_inputs(shown_pictures(region), run.recipe, run.engine.encode)
    return sampling_job(run.recipe, region.plan.target, inputs, run.options, region.mask)


def _sample_all(
    run: _Run, pairs: Sequence[tuple[Work, PreparedRegion]], jobs: Sequence[SamplingJob]
) -> list[Sampled]:
    """What sampling makes of every region; regions of equal size in one batch where that fits."""
    if run.options.candidates > 1:  # they are a batch already
        return [_sample_candidates(run, *pair, job) for pair, job in zip(pairs, jobs, strict=True)]
    found: dict[int, Sampled] = {}
    for batch in batches(run.engine, jobs):
        run.watch.start(pairs[batch[-1]][0].at("sample"))
        latents = run.engine.sample(joined([jobs[i] for i in batch]), run.watch.step)
        found |= {i: Sampled(z) for i, z in zip(batch, latents.split(1), strict=True)}
    return [found[i] for i in range(len(jobs))]


def _sample_candidates(run: _Run, work: Work, region: PreparedRegion, job: SamplingJob) -> Sampled:
    options, watch = run.options, run.watch
    watch.start(work.at("sample"))

    def correct(picture: Tensor) -> Tensor:
        return correct_region(region, picture, options)[0]

    picture, report = sample_best(run.engine, region, job, options, correct, run.scorer, watch.step)
    return Sampled(None, picture, report)


def _decode(
    run: _Run, work: Work, region: PreparedRegion, job: SamplingJob, sampled: Sampled
) -> tuple[Tensor, Tensor | None]:
    """The decoded crop and, where the recipe needs it, the reference encoded and decoded again."""
    picture, decode = sampled.picture, run.engine.decode
    if sampled.latent is not None:
        run.watch.enter(work.at("decode"))
        picture = decode(sampled.latent)
    assert picture is not None, "a latent or a picture"
    coded = decode(job.input("reference").latent) if region.blend.residual else None
    return picture, coded


def _finish(
    run: _Run,
    work: Work,
    region: PreparedRegion,
    sampled: Sampled,
    picture: Tensor,
    coded_reference: Tensor | None,
) -> Repaired:
    run.watch.enter(work.at("register"))
    crop, corrections = correct_region(region, picture, run.options, coded_reference)
    run.watch.enter(work.at("stitch"))
    stitch_region(work.image, region, crop, run.options)
    run.watch.leave()
    report: dict[str, Any] = {"picture": work.stage.picture, **region.report}
    if sampled.report is not None:
        report["search"] = sampled.report
    return Repaired(crop, report | corrections)


def _changed(works: list[Work], size: Extent) -> Tensor:
    """What was allowed to change in a picture, 1 1 H W."""
    allowed = _empty_mask(size)
    for region in (work.planned.pasted for work in works):
        b = region.box
        inside = allowed[..., b.y0 : b.y1, b.x0 : b.x1]
        inside.copy_(torch.maximum(inside, (region.mask > 0).float()))
    return allowed


def _empty_mask(size: Extent) -> Tensor:
    """Zeros 1 1 H W. NumPy's are the system's empty pages: what is never written costs nothing."""
    return torch.from_numpy(np.zeros((1, 1, size.height, size.width), np.float32))


def _batch(pictures: list[Tensor]) -> Tensor:
    return pictures[0] if len(pictures) == 1 else torch.cat(pictures)
