"""The candidates of a region: what they start from, what they are compared with, the best of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Engine, SamplingJob
from ..scoring.scorer import IncomparableError, Scorer
from ..scoring.structural import StructuralScorer
from .best_of_n import Candidate, Score, StepCallback, rounds, search
from .model_inputs import crop_reference
from .region import PreparedRegion, shown_pictures
from .request import RefineOptions
from .sampling_inputs import clean_inputs


def sample_best(
    engine: Engine,
    prepared: PreparedRegion,
    job: SamplingJob,
    options: RefineOptions,
    correct: Callable[[Tensor], Tensor],
    scorer: Scorer | None,
    on_step: StepCallback,
) -> tuple[Tensor, dict[str, Any]]:
    """The best of several candidates, decoded, and how it was chosen.

    Args:
        job: the plain run's, which is the first candidate.
        correct: takes drift and colour cast out of a decoded candidate, float 1 3 H W.
        scorer: None = the one without weights.

    Raises:
        ValueError: the scorer cannot compare anything with the reference.
    """
    scorer = scorer or StructuralScorer()
    targets = prepared.blend.targets(prepared.draft, _goal(prepared), prepared.mask)
    targets, left_out = _comparable(scorer, targets, prepared.mask)
    candidates = [_candidate(engine, prepared, job, i) for i in range(options.candidates)]
    steps = len(job.sigmas) - 1
    plan = rounds(steps, options.candidates, options.keep, options.prune_at)
    score = _score(prepared, correct, scorer, list(targets.values()))
    result = search(engine, job, candidates, plan, score, on_step)
    report = result.report(candidates, steps)
    described: dict[str, Any] = {"scorer": scorer.name, "targets": list(targets)}
    if left_out:
        described["targets_left_out"] = left_out
    return result.picture, {**described, **report}


def _comparable(
    scorer: Scorer, targets: Mapping[str, Tensor], mask: Tensor
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The targets that the scorer can compare with; and the others, with the reason.

    Before anything is sampled: a draft may show no lettering, for example.

    Raises:
        ValueError: the reference is one of the others.
    """
    left_out: dict[str, str] = {}
    for name, target in targets.items():
        try:
            scorer.distance(target, target, mask)
        except IncomparableError as e:
            if name == "reference":
                raise ValueError(f"The candidates cannot be compared: {e}") from e
            left_out[name] = str(e)
    return {k: v for k, v in targets.items() if k not in left_out}, left_out


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
    prepared: PreparedRegion,
    correct: Callable[[Tensor], Tensor],
    scorer: Scorer,
    targets: list[Tensor],
) -> Score:
    """Distance of decoded candidates to all targets, as the root of the mean square."""

    def score(pictures: Tensor) -> Tensor:
        corrected = torch.cat([correct(p) for p in pictures.split(1)])
        distances = [scorer.distance(corrected, t, prepared.mask) for t in targets]
        return torch.stack(distances).square().mean(0).sqrt()

    return score
