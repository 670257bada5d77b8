"""Takes out of a repaired crop what the model changed of its own accord: drift and colour cast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..images.crop import ring
from ..images.geometry import CropPlan
from ..images.masks import Region
from ..matching.color import measure_gain, ring_error
from ..matching.registration import register
from ..matching.warping import grid, warp

_DRIFT_LEAST = 0.5  # px at the model's size: less is not worth a resampling
_DRIFT_MOST = 0.06  # of the crop's side: more is not drift but another picture
_ZOOM_MOST = 0.05
_RING_LEAST = 0.05  # share of the crop outside the region below which drift is not measured


def correct_drift_and_color(
    result: Tensor,
    draft: Tensor,
    region: Region,
    plan: CropPlan,
    *,
    drift: bool = True,
    color_match: float = 1.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Take the model's drift and colour cast out of a decoded crop, measured outside the region.

    Args:
        result, draft: the decoded and the original crop, float 1 3 H W.
        region, plan: what was cropped.
        drift: correct shift and zoom.
        color_match: how far to follow the colours of the surroundings, 0..1.
    """
    around = ring(region, plan)
    report: dict[str, Any] = {"drift": {"measured": False}, "color": None}
    if drift:
        result, report["drift"] = _correct_drift(result, draft, around)
    gain = measure_gain(result, draft, around) if color_match > 0 else None
    if gain is not None:
        before = ring_error(result, draft, around)
        result = gain.apply(result, color_match).clamp(0, 1)
        report["color"] = {
            "gain": [round(g, 4) for g in gain.gain],
            "offset": [round(g, 4) for g in gain.offset],
            "ring_error_before": round(before, 4),
            "ring_error_after": round(ring_error(result, draft, around), 4),
        }
    return result, report


def _correct_drift(result: Tensor, draft: Tensor, around: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Measure shift and zoom of the result against the draft on the ring, and take them out."""
    h, w = draft.shape[-2:]
    if float(around.mean()) < _RING_LEAST:
        return result, {"measured": False}
    registration = register(draft, result, around, "shift_zoom", finest=256)
    m = registration.matrix / registration.matrix[2, 2]
    dx, dy, zoom = float(m[0, 2]) * w / 2, float(m[1, 2]) * h / 2, float(m[0, 0])
    p = grid(2, 2)
    moved = ((p @ m.T)[:, :2] - p[:, :2]) * torch.tensor([w / 2, h / 2], dtype=torch.float64)
    most = float(moved.norm(dim=1).max())
    sane = max(abs(dx) / w, abs(dy) / h) <= _DRIFT_MOST and abs(zoom - 1) <= _ZOOM_MOST
    correct = sane and most > _DRIFT_LEAST
    report = {
        "measured": True,
        "dx": round(dx, 3),
        "dy": round(dy, 3),
        "zoom": round(zoom, 5),
        "score": round(registration.score, 3),
        "corrected": correct,
    }
    return (warp(result, m, h, w)[0].clamp(0, 1) if correct else result), report
