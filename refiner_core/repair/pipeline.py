"""The whole repair: plan, encode, sample, decode, correct, stitch.

`refine` is the one entry; it runs every region of every picture through an `Engine` and reports
what it did. Everything outside the regions keeps its exact bits.
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..images.geometry import Extent
from ..interfaces import Engine, Progress, SamplingJob, Stage
from ..scoring.scorer import Scorer
from .candidates import sample_best
from .marking import normalize_request, region_notes
from .region import (
    PreparedRegion,
    clean_inputs,
    correct_region,
    prepare_region,
    sampling_job,
    shown_pictures,
    stitch_region,
)
from .request import (
    RefineOptions,
    RefineRequest,
    RegionTask,
    check,
    check_marked,
    outside_boxes,
    pick,
    region_tasks,
)
from .watch import Watch


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


@torch.inference_mode()
def refine(
    engine: Engine,
    request: RefineRequest,
    progress: Progress | None = None,
    scorer: Scorer | None = None,
) -> RefineResult:
    """Repair every region of every draft.

    Args:
        engine: the weights.
        request: what to repair, and how.
        progress: called at every stage and step.
        scorer: compares candidates with the reference; None = the one without weights.

    Raises:
        ValueError: for every input that cannot be repaired, with the values and the fix.
    """
    begun = time.perf_counter()
    request = normalize_request(request)
    n = check(request)
    engine.recipe.check_references(len(request.references))
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    check_marked(request, size, engine.recipe.buckets)
    watch = Watch(progress)
    images: list[Tensor] = []
    changed: list[Tensor] = []
    crops: list[Tensor] = []
    reports: list[dict[str, Any]] = []
    notes = list(request.notes)
    for i in range(n):
        image, tasks = pick(request.draft, i).clone(), region_tasks(request, i, size)
        regions = [task.region for task in tasks]
        buckets = engine.recipe.buckets
        notes += region_notes(regions, size, buckets, request.options.megapixels)
        for r, task in enumerate(tasks):
            watch.stage = Stage("plan", picture=i, pictures=n, region=r, regions=len(tasks))
            crop, report = _repair(engine, image, task, request.options, watch, scorer)
            crops.append(crop)
            reports.append({"picture": i, **report})
        images.append(image)
        changed.append(_changed(tasks, size))
    report = _report(engine, request, reports) | {
        "notes": list(dict.fromkeys(notes)),
        "seconds": {k: round(v, 4) for k, v in watch.seconds.items()},
        "seconds_total": round(time.perf_counter() - begun, 4),
    }
    return RefineResult(_batch(images), crops, _batch(changed), report)


def _repair(
    engine: Engine,
    image: Tensor,
    task: RegionTask,
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> tuple[Tensor, dict[str, Any]]:
    """Repair one region in `image` itself; the repaired crop and what was done."""
    watch.enter("plan", image=image)
    prepared = prepare_region(image, task, engine.recipe, options)
    if prepared.left_alone:
        watch.leave()
        return prepared.draft, prepared.report
    watch.enter("encode", plan=prepared.plan)
    inputs = clean_inputs(shown_pictures(prepared), engine.recipe, engine.encode)
    job = sampling_job(engine.recipe, prepared.plan.target, inputs, options, prepared.mask)
    result, search = _sample(engine, prepared, job, options, watch, scorer)
    watch.enter("register")
    coded = engine.decode(job.input("reference").latent) if prepared.blend.residual else None
    result, corrections = correct_region(prepared, result, options, coded)
    watch.enter("stitch")
    stitch_region(image, prepared, result, options)
    watch.leave()
    return result, prepared.report | search | corrections


def _sample(
    engine: Engine,
    prepared: PreparedRegion,
    job: SamplingJob,
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> tuple[Tensor, dict[str, Any]]:
    """The decoded crop, 1 3 H W, and how the best candidate was chosen, if there are several."""
    watch.start("sample")
    if options.candidates > 1:
        result, search = sample_best(engine, prepared, job, options, scorer, watch.step)
        return result, {"search": search}
    latent = engine.sample(job, watch.step)
    watch.enter("decode")
    return engine.decode(latent), {}


def _report(
    engine: Engine, request: RefineRequest, regions: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was done, for JSON."""
    options, recipe = request.options, engine.recipe
    guidance, cfg = recipe.resolve_guidance(options.guidance)
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    pictures = 1 + max(r["picture"] for r in regions)
    report: dict[str, Any] = {
        "version": __version__,
        "engine": engine.describe(),
        "recipe": recipe.name,
        "steps": recipe.steps if options.steps is None else options.steps,
        "guidance": guidance,
        "cfg": cfg,
        "draft": f"{pictures} x {size}",
        "seed": options.seed,
        "regions": regions,
        "peak_memory_mb": _peak_memory(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if request.boxes and request.mask is not None:
        report["mask_outside_boxes_px"] = outside_boxes(request, size)
    return report


def _changed(tasks: list[RegionTask], size: Extent) -> Tensor:
    """What was allowed to change in a picture, 1 1 H W."""
    allowed = _empty_mask(size)
    for task in tasks:
        b = task.region.box
        inside = allowed[..., b.y0 : b.y1, b.x0 : b.x1]
        inside.copy_(torch.maximum(inside, (task.region.mask > 0).float()))
    return allowed


def _empty_mask(size: Extent) -> Tensor:
    """Zeros 1 1 H W. NumPy's are the system's empty pages: what is never written costs nothing."""
    return torch.from_numpy(np.zeros((1, 1, size.height, size.width), np.float32))


def _batch(pictures: list[Tensor]) -> Tensor:
    return pictures[0] if len(pictures) == 1 else torch.cat(pictures)


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated() >> 20)
    if sys.platform == "win32":  # has no `resource`
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20)
