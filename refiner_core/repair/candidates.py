"""The candidates of a region: what they start from, what they are compared with, the best of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..interfaces import Engine, SamplingJob
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .best_of_n import Candidate, Score, StepCallback, rounds, search
from .model_inputs import crop_reference
from .region import PreparedRegion, clean_inputs, correct_region, shown_pictures
from .request import RefineOptions


def sample_best(
    engine: Engine,
    prepared: PreparedRegion,
    job: SamplingJob,
    options: RefineOptions,
    scorer: Scorer | None,
    on_step: StepCallback,
) -> tuple[Tensor, dict[str, Any]]:
    """The best of several candidates, decoded, and how it was chosen.

    Args:
        job: the plain run's, which is the first candidate.
        scorer: None = the one without weights.
    """
    scorer = scorer or StructuralScorer()
    targets = prepared.blend.targets(prepared.draft, _goal(prepared), prepared.mask)
    candidates = [_candidate(engine, prepared, job, i) for i in range(options.candidates)]
    steps = len(job.sigmas) - 1
    plan = rounds(steps, options.candidates, options.keep, options.prune_at)
    score = _score(prepared, options, scorer, list(targets.values()))
    result = search(engine, job, candidates, plan, score, on_step)
    report = result.report(candidates, steps)
    return result.picture, {"scorer": scorer.name, "targets": list(targets), **report}


def _goal(prepared: PreparedRegion) -> Tensor:
    """The first reference in the draft's pose: scorers compare in place."""
    first = prepared.references[0]
    if prepared.aligned:
        return first.crop
    goal, _ = crop_reference(
        first.picture, first.mask, prepared.draft, prepared.mask, first.plan, aligned=True
    )
    return goal


def _candidate(engine: Engine, prepared: PreparedRegion, job: SamplingJob, i: int) -> Candidate:
    """The candidate number `i`, of which 0 is the plain run."""
    seed = (job.seed + i) % (1 << 64)
    blend = prepared.blend.candidate(i)
    if blend.share == 0:
        return Candidate(seed, job.inputs)
    inputs = job.inputs
    if i > 0:
        pictures = shown_pictures(prepared, blend)
        inputs = clean_inputs(pictures, prepared.recipe, engine.encode)
    return Candidate(seed, inputs, {"reference_blend": round(blend.share, 3)})


def _score(
    prepared: PreparedRegion, options: RefineOptions, scorer: Scorer, targets: list[Tensor]
) -> Score:
    """Distance of decoded candidates to all targets, as the root of the mean square."""

    def score(pictures: Tensor) -> Tensor:
        corrected = torch.cat([correct_region(prepared, p, options)[0] for p in pictures.split(1)])
        distances = [scorer.distance(corrected, t, prepared.mask) for t in targets]
        return torch.stack(distances).square().mean(0).sqrt()

    return score
