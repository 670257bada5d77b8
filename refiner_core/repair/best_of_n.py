"""Best of N: many candidates are begun, the worse are dropped on the way, the best is returned.

Successive halving (Jamieson & Talwalkar 2016): every few sampling steps each candidate's x0
estimate is decoded and scored, and the worse half goes, so that most of the work is spent on what
looks good. Candidates share what was encoded and run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Engine, SamplingJob
from ..sampling import draw_noise

# Decoded pictures B 3 H W -> distances B, lower is better.
Judge = Callable[[Tensor], Tensor]
StepTold = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Candidate:
    """One way to start: noise `seed`, clean latents `references` in the recipe's order, and `note`
    what else it was made of, for the report.
    """

    seed: int
    references: tuple[Tensor, ...]
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Sample up to step `end`, score, and let the `keep` best go on."""

    end: int
    keep: int


@dataclass(frozen=True)
class Found:
    """The search's outcome.

    `latent` and `picture` (decoded, float 1 3 H W in [0, 1]) of the `chosen` candidate; `scores`
    per candidate, its distance after each step at which it was scored; `evaluations` sampling steps
    spent, summed over candidates, and `full` what all candidates to the end would have taken.
    """

    latent: Tensor
    picture: Tensor
    chosen: int
    scores: list[dict[int, float]]
    evaluations: int
    full: int

    def report(self, candidates: Sequence[Candidate], steps: int) -> dict[str, Any]:
        """For JSON: every candidate's seed and scores, and what was spent."""
        rows = [
            {
                "seed": c.seed, **c.note,
                "scores": {str(k): round(v, 6) for k, v in scores.items()},
                "dropped_after": None if max(scores) == steps else max(scores),
            }
            for c, scores in zip(candidates, self.scores, strict=True)
        ]  # fmt: skip
        return {
            "chosen": self.chosen, "candidates": rows,
            "evaluations": self.evaluations, "evaluations_full": self.full,
        }  # fmt: skip


def rounds(steps: int, count: int, keep: int, prune_at: int | None) -> list[Round]:
    """When to score, and how many go on: half every `prune_at` steps, down to `keep`.

    `prune_at` None = a quarter of the steps, at least one; 0 = nobody is dropped. For eight
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
    judge: Judge,
    step: StepTold,
) -> Found:
    """Run the candidates through the rounds and return the best of those that reached the end.

    Args:
        job: what they share; its references and seed are each candidate's own.
        plan: from `rounds`; the last one ends at the last step.
        judge: scores decoded pictures. A score that is NaN loses against every other.
        step: told after each step: number, steps, x0 estimates of those still there.
    """
    alive = list(range(len(candidates)))
    latents: dict[int, Tensor] = {
        i: draw_noise(tuple(c.references[0].shape), c.seed) for i, c in enumerate(candidates)
    }
    scores: list[dict[int, float]] = [{} for _ in candidates]
    pictures: dict[int, Tensor] = {}
    begin = spent = 0
    for part in plan:
        states, estimates = _run(engine, job, [candidates[i] for i in alive],
                                 [latents[i] for i in alive], begin, part.end, step)  # fmt: skip
        spent += len(alive) * (part.end - begin)
        latents = dict(zip(alive, states, strict=True))
        pictures = {
            i: engine.decode(x0).float().clamp(0, 1) for i, x0 in zip(alive, estimates, strict=True)
        }
        distances = judge(torch.cat([pictures[i] for i in alive])).tolist()
        for i, distance in zip(alive, distances, strict=True):
            scores[i][part.end] = distance
        alive = sorted(alive, key=lambda i: _rank(scores[i][part.end]))[: part.keep]
        begin = part.end
    best = alive[0]
    full = len(candidates) * plan[-1].end
    return Found(latents[best], pictures[best], best, scores, spent, full)


def _rank(distance: float) -> float:
    return distance if distance == distance else float("inf")


def _run(
    engine: Engine,
    job: SamplingJob,
    candidates: Sequence[Candidate],
    latents: Sequence[Tensor],
    begin: int,
    end: int,
    step: StepTold,
) -> tuple[list[Tensor], list[Tensor]]:
    """States at step `end` and the x0 estimates there; in halves where memory does not suffice."""
    seen: list[Tensor] = []

    def remember(i: int, steps: int, x0: Tensor) -> None:
        seen[:] = [x0]
        step(i, steps, x0)

    references = tuple(torch.cat(r) for r in zip(*(c.references for c in candidates), strict=True))
    part = replace(
        job, references=references, seed=candidates[0].seed, start=torch.cat(list(latents)),
        begin=begin, end=None if end == len(job.sigmas) - 1 else end,
    )  # fmt: skip
    try:
        x = engine.sample(part, remember)
    except torch.OutOfMemoryError:
        if len(candidates) == 1:
            raise
        half = len(candidates) // 2
        first = _run(engine, job, candidates[:half], latents[:half], begin, end, step)
        second = _run(engine, job, candidates[half:], latents[half:], begin, end, step)
        return first[0] + second[0], first[1] + second[1]
    return list(x.split(1)), list((x if part.end is None else seen[0]).split(1))
