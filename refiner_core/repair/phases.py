"""Regions repaired together: every phase for all of them before the next, so that the text encoder,
the transformer and the autoencoder do not push one another out of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..interfaces import Engine, SamplingJob, Stage
from ..scoring.scorer import Scorer
from .batches import batches, joined
from .candidates import sample_best
from .finish_region import correct_region, stitch_region
from .prepare_region import prepare_region
from .region import PlannedRegion, PreparedRegion, shown_pictures
from .request import RefineOptions
from .sampling_inputs import clean_inputs, sampling_job
from .watch import Watch


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


def repair_together(
    engine: Engine,
    works: Sequence[Work],
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> list[Repaired]:
    """Repair regions none of which depends on what another one changes; in their order.

    Those that are to be left alone are only reported.
    """
    prepared = [_prepare(engine, work, options, watch) for work in works]
    pairs = [pair for pair in zip(works, prepared, strict=True) if not pair[1].left_alone]
    jobs = [_encode(engine, work, region, options, watch) for work, region in pairs]
    engine.encode_text(jobs)
    sampled = _sample_all(engine, pairs, jobs, options, watch, scorer)
    decoded = [
        _decode(engine, work, region, job, result, watch)
        for (work, region), job, result in zip(pairs, jobs, sampled, strict=True)
    ]
    finished = iter(
        [
            _finish(work, region, result, *pictures, options, watch)
            for (work, region), result, pictures in zip(pairs, sampled, decoded, strict=True)
        ]
    )
    return [
        _left_alone(work, region) if region.left_alone else next(finished)
        for work, region in zip(works, prepared, strict=True)
    ]


def _left_alone(work: Work, region: PreparedRegion) -> Repaired:
    return Repaired(region.draft, {"picture": work.stage.picture, **region.report})


def _prepare(engine: Engine, work: Work, options: RefineOptions, watch: Watch) -> PreparedRegion:
    watch.enter(work.stage._replace(name="plan"))
    return prepare_region(work.image, work.planned, engine.recipe, options)


def _encode(
    engine: Engine, work: Work, region: PreparedRegion, options: RefineOptions, watch: Watch
) -> SamplingJob:
    watch.enter(work.at("encode"))
    inputs = clean_inputs(shown_pictures(region), engine.recipe, engine.encode)
    return sampling_job(engine.recipe, region.plan.target, inputs, options, region.mask)


def _sample_all(
    engine: Engine,
    pairs: Sequence[tuple[Work, PreparedRegion]],
    jobs: Sequence[SamplingJob],
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> list[Sampled]:
    """What sampling makes of every region; regions of equal size in one batch where that fits."""
    if options.candidates > 1:  # they are a batch already
        return [
            _sample_candidates(engine, work, region, job, options, watch, scorer)
            for (work, region), job in zip(pairs, jobs, strict=True)
        ]
    found: dict[int, Sampled] = {}
    for batch in batches(engine, jobs):
        watch.start(pairs[batch[-1]][0].at("sample"))
        latents = engine.sample(joined([jobs[i] for i in batch]), watch.step)
        found |= {i: Sampled(z) for i, z in zip(batch, latents.split(1), strict=True)}
    return [found[i] for i in range(len(jobs))]


def _sample_candidates(
    engine: Engine,
    work: Work,
    region: PreparedRegion,
    job: SamplingJob,
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> Sampled:
    watch.start(work.at("sample"))

    def correct(picture: Tensor) -> Tensor:
        return correct_region(region, picture, options)[0]

    picture, report = sample_best(engine, region, job, options, correct, scorer, watch.step)
    return Sampled(None, picture, report)


def _decode(
    engine: Engine,
    work: Work,
    region: PreparedRegion,
    job: SamplingJob,
    sampled: Sampled,
    watch: Watch,
) -> tuple[Tensor, Tensor | None]:
    """The decoded crop and, where the recipe needs it, the reference encoded and decoded again."""
    picture = sampled.picture
    if sampled.latent is not None:
        watch.enter(work.at("decode"))
        picture = engine.decode(sampled.latent)
    assert picture is not None, "a latent or a picture"
    coded = engine.decode(job.input("reference").latent) if region.blend.residual else None
    return picture, coded


def _finish(
    work: Work,
    region: PreparedRegion,
    sampled: Sampled,
    picture: Tensor,
    coded_reference: Tensor | None,
    options: RefineOptions,
    watch: Watch,
) -> Repaired:
    watch.enter(work.at("register"))
    crop, corrections = correct_region(region, picture, options, coded_reference)
    watch.enter(work.at("stitch"))
    stitch_region(work.image, region, crop, options)
    watch.leave()
    report: dict[str, Any] = {"picture": work.stage.picture, **region.report}
    if sampled.report is not None:
        report["search"] = sampled.report
    return Repaired(crop, report | corrections)
