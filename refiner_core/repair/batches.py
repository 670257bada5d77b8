"""Jobs of equal size are sampled together, as far as the engine's memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..interfaces import Engine, SamplingJob
from ..sampling import draw_noise


@runtime_checkable
class Batching(Protocol):
    """An engine that can sample several jobs in one batch."""

    def at_once(self, job: SamplingJob) -> int:
        """How many jobs of this one's size fit into a batch; 1 if each must be sampled alone."""
        ...


def batches(engine: Engine, jobs: Sequence[SamplingJob]) -> list[list[int]]:
    """Numbers of the jobs that are sampled together; each in order, and so are their first ones."""
    if len(jobs) == 1 or not isinstance(engine, Batching):
        return [[i] for i in range(len(jobs))]
    found: list[list[int]] = []
    for i, job in enumerate(jobs):
        most = engine.at_once(job)
        fitting = (b for b in found if len(b) < most and _alike(jobs[b[0]], job))
        batch = next(fitting, None)
        if batch is None:
            found.append([i])
        else:
            batch.append(i)
    return found


def _alike(a: SamplingJob, b: SamplingJob) -> bool:
    """Whether two jobs differ in nothing but pictures, noise and mask."""
    facts = [
        (
            [(i.role, i.index, i.latent.shape) for i in job.inputs],
            (job.prompt, job.guidance, job.cfg, job.begin, job.end, job.start is None),
            None if job.restrict is None else job.restrict.shape,
        )
        for job in (a, b)
    ]
    return facts[0] == facts[1] and torch.equal(a.sigmas, b.sigmas)


def joined(jobs: Sequence[SamplingJob]) -> SamplingJob:
    """One job with the samples of several that are alike; each keeps the noise that it has alone."""
    if len(jobs) == 1:
        return jobs[0]
    first = jobs[0]
    inputs = tuple(
        replace(i, latent=torch.cat([job.inputs[n].latent for job in jobs]))
        for n, i in enumerate(first.inputs)
    )
    masks = [job.restrict for job in jobs if job.restrict is not None]
    return replace(
        first,
        inputs=inputs,
        start=torch.cat([_start(job) for job in jobs]),
        restrict=torch.cat(masks) if masks else None,
    )


def _start(job: SamplingJob) -> Tensor:
    return draw_noise(tuple(job.draft.shape), job.seed) if job.start is None else job.start
