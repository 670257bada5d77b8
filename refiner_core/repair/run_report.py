"""What a run tells of itself, for JSON: settings, versions, memory, and what became of the regions."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from .. import __version__
from ..images.geometry import Extent
from ..recipes.recipe import Recipe
from .request import RefineRequest, outside_boxes


def mismatches(regions: list[dict[str, Any]]) -> list[str]:
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


def run_report(
    engine: dict[str, str],
    recipe: Recipe,
    request: RefineRequest,
    regions: list[dict[str, Any]],
) -> dict[str, Any]:
    """What was done, for JSON.

    Args:
        engine: what it says of its weights.
    """
    options = request.options
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    outside: dict[str, int] = {}
    if request.boxes and request.mask is not None:
        outside["mask_outside_boxes_px"] = outside_boxes(request, size)
    guidance, cfg = recipe.resolve_guidance(options.guidance)
    pictures = 1 + max(r["picture"] for r in regions)
    return {
        "version": __version__,
        "engine": engine,
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


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated() >> 20)
    if sys.platform == "win32":  # has no `resource`
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20)
