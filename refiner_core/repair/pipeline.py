"""The whole repair: plan, encode, sample, decode, register, match colours, stitch.

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
from ..interfaces import Engine, Progress, Stage
from ..scoring.scorer import Scorer
from .region import Clock, RegionJob
from .request import (
    RefineRequest,
    check,
    check_marked,
    masks_of_box,
    outside_boxes,
    pick,
    regions_of,
)


@dataclass(frozen=True)
class RefineResult:
    """`image` N 3 H W in the draft's type; `crops` the repaired crops at the model's size (region by
    region, picture by picture); `mask` N 1 H W what was allowed to change; `report` for JSON.
    """

    image: Tensor
    crops: list[Tensor]
    mask: Tensor
    report: dict[str, Any]


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
        progress: told of every stage and step.
        scorer: tells candidates apart; None = the one without weights.

    Raises:
        ValueError: for every input that cannot be repaired as asked, with the values and the fix.
    """
    n = check(request)
    engine.recipe.check_references(len(request.references))
    tell = progress or (lambda _: None)
    clock, begun = Clock(), time.perf_counter()
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    check_marked(request, size, engine.recipe.buckets)
    images: list[Tensor] = []
    changed: list[Tensor] = []
    crops: list[Tensor] = []
    reports: list[dict[str, Any]] = []
    for i in range(n):
        draft = pick(request.draft, i)
        refs = tuple(pick(r, i) for r in request.references)
        ref_masks = [None if m is None else pick(m, i) for m in request.reference_masks]
        ref_masks += [None] * (len(refs) - len(ref_masks))
        regions = regions_of(request, i, size)
        image, allowed = draft.clone(), _empty_mask(size)
        for r, region in enumerate(regions):
            place = Stage(
                "plan", picture=i, pictures=n, region=r, regions=len(regions), image=image
            )
            job = RegionJob(engine, request.options, clock, tell, place, scorer)
            done, report = job.run(image, region, refs, masks_of_box(request, r, refs, ref_masks))
            b = region.box
            allowed[..., b.y0 : b.y1, b.x0 : b.x1] = torch.maximum(
                allowed[..., b.y0 : b.y1, b.x0 : b.x1], (region.mask > 0).float()
            )
            crops.append(done)
            reports.append({"picture": i, **report})
        images.append(image)
        changed.append(allowed)
    options = request.options
    guidance, cfg = engine.recipe.resolve_guidance(options.guidance)
    report = {
        "version": __version__,
        "engine": engine.describe(),
        "recipe": engine.recipe.name,
        "steps": engine.recipe.steps if options.steps is None else options.steps,
        "guidance": guidance,
        "cfg": cfg,
        "draft": f"{n} x {size}",
        "seed": options.seed,
        "regions": reports,
        "seconds": {k: round(v, 4) for k, v in clock.seconds.items()},
        "seconds_total": round(time.perf_counter() - begun, 4),
        "peak_memory_mb": _peak_memory(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if request.boxes and request.mask is not None:
        report["mask_outside_boxes_px"] = outside_boxes(request, size)
    return RefineResult(_batch(images), crops, _batch(changed), report)


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
