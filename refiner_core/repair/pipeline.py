"""The whole repair: plan, encode, sample, decode, correct, stitch.

`refine` is the one entry; it runs every region of every picture through an `Engine` and reports
what it did. Everything outside the regions keeps its exact bits.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..images.geometry import Extent
from ..interfaces import Engine, Progress, Stage
from ..recipes.recipe import Recipe
from ..scoring.scorer import Scorer
from .marking import normalize_request, region_notes
from .phases import Repaired, Work, repair_together
from .prepare_region import plan_region
from .request import (
    RefineOptions,
    RefineRequest,
    check,
    outside_boxes,
    pick,
    region_tasks,
)
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


@torch.inference_mode()
def refine(
    engine: Engine,
    request: RefineRequest,
    progress: Progress | None = None,
    scorer: Scorer | None = None,
) -> RefineResult:
    """Repair every region of every draft.

    Work goes phase by phase (all crops are encoded, then all sampled, then all decoded), so that
    each model is loaded once; many pictures go in chunks, which bounds the memory.

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
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    watch = Watch(progress)
    images: list[Tensor] = []
    changed: list[Tensor] = []
    done: list[Repaired] = []
    notes = list(request.notes)
    for chunk in _chunks(_works(request, n, engine.recipe)):
        images += [works[0].image for works in chunk]
        changed += [_changed(works, size) for works in chunk]
        for works in chunk:
            notes += region_notes([work.planned for work in works], size)
        done += _repair(engine, chunk, request.options, watch, scorer)
    mismatches = _mismatches([r.report for r in done])
    report = _report(engine, request, [r.report for r in done]) | {
        "notes": list(dict.fromkeys((*notes, *mismatches))),
        "mismatches": mismatches,
        "seconds": {k: round(v, 4) for k, v in watch.seconds.items()},
        "seconds_total": round(time.perf_counter() - begun, 4),
    }
    return RefineResult(_batch(images), [r.crop for r in done], _batch(changed), report)


def _works(request: RefineRequest, n: int, recipe: Recipe) -> Iterator[list[Work]]:
    """The regions of every picture, planned."""
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    for i in range(n):
        image = pick(request.draft, i).clone()
        tasks = region_tasks(request, i, size, recipe.buckets)
        stage = Stage("", picture=i, pictures=n, regions=len(tasks), image=image)
        yield [
            Work(image, plan_region(task, size, recipe, request.options), stage._replace(region=r))
            for r, task in enumerate(tasks)
        ]


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


def _repair(
    engine: Engine,
    chunk: list[list[Work]],
    options: RefineOptions,
    watch: Watch,
    scorer: Scorer | None,
) -> list[Repaired]:
    """Repair all regions of some pictures, wave by wave; in the order of pictures and regions."""
    numbered = [waves([work.planned for work in works]) for works in chunk]
    done: dict[tuple[int, int], Repaired] = {}
    for wave in range(max(len(own) for own in numbered)):
        works = [
            chunk[i][r] for i, own in enumerate(numbered) if wave < len(own) for r in own[wave]
        ]
        for work, repaired in zip(
            works, repair_together(engine, works, options, watch, scorer), strict=True
        ):
            done[work.stage.picture, work.stage.region] = repaired
    return [done[key] for key in sorted(done)]


def _mismatches(regions: list[dict[str, Any]]) -> list[str]:
    """What is to be said of regions whose reference does not show them, or hardly."""
    out: list[str] = []
    numbers: dict[int, int] = {}
    pictures = 1 + max(r["picture"] for r in regions)
    for region in regions:
        picture = region["picture"]
        numbers[picture] = number = numbers.get(picture, 0) + 1
        text = region.get("left_alone") or region.get("poor_match")
        if text:
            place = f"image {picture + 1}, region {number}" if pictures > 1 else f"region {number}"
            out.append(f"{place}: {text.removesuffix('.')}")
    return out


def _report(
    engine: Engine, request: RefineRequest, regions: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was done, for JSON."""
    options, recipe = request.options, engine.recipe
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    outside: dict[str, int] = {}
    if request.boxes and request.mask is not None:
        outside["mask_outside_boxes_px"] = outside_boxes(request, size)
    guidance, cfg = recipe.resolve_guidance(options.guidance)
    pictures = 1 + max(r["picture"] for r in regions)
    return {
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
        **outside,
    }


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


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated() >> 20)
    if sys.platform == "win32":  # has no `resource`
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20)
