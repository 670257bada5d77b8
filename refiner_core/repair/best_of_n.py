"""Best of N: several candidates are started, the worse are dropped early, the best is returned.

Successive halving (Jamieson & Talwalkar 2016): every few sampling steps each candidate's x0
estimate is decoded and scored, and the worse half is dropped, so that most of the work is spent on
what looks good. Candidates share what was encoded and run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..interfaces import CleanInput, Engine, SamplingJob
from ..sampling import draw_noise

# Decoded pictures B 3 H W -> distances B, lower is better.
Score = Callable[[Tensor], Tensor]
# Number of the step, number of all steps, x0 estimates of the candidates that are left.
StepCallback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Candidate:
    """One way to start."""

    seed: int
    """Of the initial noise."""
    inputs: tuple[CleanInput, ...]
    """What the model sees, in the recipe's order."""
    note: dict[str, Any] = field(default_factory=dict)
    """What else distinguishes it, for the report."""


@dataclass(frozen=True)
class Round:
    """Sample up to step `end`, score, and keep the `keep` best."""

    end: int
    keep: int


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    latent: Tensor
    """Of the chosen candidate, 1 C h w."""
    picture: Tensor
    """The same decoded, float 1 3 H W in [0, 1]."""
    chosen: int
    """Number of the chosen candidate."""
    scores: list[dict[int, float]]
    """For each candidate its distance, by the step after which it was scored."""
    evaluations: int
    """Sampling steps that were run, summed over candidates."""
    full: int
    """Sampling steps that all candidates would have taken to the end."""

    def report(self, candidates: Sequence[Candidate], steps: int) -> dict[str, Any]:
        """For JSON: every candidate's seed and scores, and what was spent."""
        rows = [
            {
                "seed": c.seed,
                **c.note,
                "scores": {str(k): round(v, 6) for k, v in scores.items()},
                "dropped_after": None if max(scores) == steps else max(scores),
            }
            for c, scores in zip(candidates, self.scores, strict=True)
        ]
        return {
            "chosen": self.chosen,
            "candidates": rows,
            "evaluations": self.evaluations,
            "evaluations_full": self.full,
        }


def rounds(steps: int, count: int, keep: int, prune_at: int | None) -> list[Round]:
    """When to score, and how many to keep: half every `prune_at` steps, down to `keep`.

    `prune_at` None = a quarter of the steps, at least one; 0 = none is dropped. For eight
    candidates, one kept and four steps or more this takes under half of eight full runs.
    """
    every = max(1, steps // 4) if prune_at is None else prune_at
    plan, alive, end = [], count, every
    while every and end < steps and alive > keep:
        alive = max(keep, alive // 2)
        plan.append(Round(end, alive))
        end += every
    return [*plan, Round(steps, 1)]


def search(
    engine: Engine,
    job: SamplingJob,
    candidates: Sequence[Candidate],
    plan: Sequence[Round],
    score: Score,
    on_step: StepCallback,
) -> SearchResult:
    """Run the candidates through the rounds and return the best of those that reached the end.

    Args:
        job: what they share; inputs and seed are each candidate's own.
        plan: from `rounds`; the last one ends at the last step.
        score: of decoded pictures. NaN loses against every other score.
        on_step: called after each step.
    """
    alive = list(range(len(candidates)))
    latents: dict[int, Tensor] = {
        i: draw_noise(tuple(c.inputs[0].latent.shape), c.seed) for i, c in enumerate(candidates)
    }
    scores: list[dict[int, float]] = [{} for _ in candidates]
    pictures: dict[int, Tensor] = {}
    begin, spent, last = 0, 0, len(job.sigmas) - 1
    for round_ in plan:
        job = replace(job, begin=begin, end=None if round_.end == last else round_.end)
        states, estimates = _run(
            engine, job, [candidates[i] for i in alive], [latents[i] for i in alive], on_step
        )
        spent += len(alive) * (round_.end - begin)
        latents = dict(zip(alive, states, strict=True))
        pictures = {
            i: engine.decode(x0).float().clamp(0, 1) for i, x0 in zip(alive, estimates, strict=True)
        }
        distances = score(torch.cat([pictures[i] for i in alive])).tolist()
        for i, distance in zip(alive, distances, strict=True):
            scores[i][round_.end] = distance
        alive = sorted(alive, key=lambda i: _rank(scores[i][round_.end]))[: round_.keep]
        begin = round_.end
    best = alive[0]
    full = len(candidates) * plan[-1].end
    return SearchResult(latents[best], pictures[best], best, scores, spent, full)


def _rank(distance: float) -> float:
    return distance if distance == distance else float("inf")


def _run(
    engine: Engine,
    job: SamplingJob,
    candidates: Sequence[Candidate],
    latents: Sequence[Tensor],
    on_step: StepCallback,
) -> tuple[list[Tensor], list[Tensor]]:
    """States after the job's last step and the x0 estimates there, in halves where memory does not
    suffice.
    """
    estimates: list[Tensor] = []

    def remember(i: int, steps: int, x0: Tensor) -> None:
        estimates[:] = [x0]
        on_step(i, steps, x0)

    batch = replace(
        job,
        inputs=_batched(job, candidates),
        seed=candidates[0].seed,
        start=torch.cat(list(latents)),
    )
    try:
        x = engine.sample(batch, remember)
    except torch.OutOfMemoryError:
        if len(candidates) == 1:
            raise
        half = len(candidates) // 2
        first = _run(engine, job, candidates[:half], latents[:half], on_step)
        second = _run(engine, job, candidates[half:], latents[half:], on_step)
        return first[0] + second[0], first[1] + second[1]
    return list(x.split(1)), list((x if job.end is None else estimates[0]).split(1))


def _batched(job: SamplingJob, candidates: Sequence[Candidate]) -> tuple[CleanInput, ...]:
    """Their latents as one batch; text encoders look at the job's own pictures."""
    latents = zip(*([i.latent for i in c.inputs] for c in candidates), strict=True)
    return tuple(
        replace(own, latent=torch.cat(same)) for own, same in zip(job.inputs, latents, strict=True)
    )
