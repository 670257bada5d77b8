"""What all degrade stages share: right drafts, pasting inside the mask, and the check of the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...images import masks
from ..sample import RejectedError, Sample
from ..triplets import mask_box

_SOFT_EDGE = 0.06  # width, as a share of the shorter side of the mask's box


def paste_inside(target: np.ndarray, degraded: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`degraded` over `target`, both uint8 H W 3, with a soft edge that lies inside `mask`.

    Where the mask (uint8 H W) is 0 the target stays bit for bit.
    """
    box = mask_box(mask)
    assert box is not None, "an empty mask is rejected before"
    x0, y0, x1, y1 = box
    inside = torch.from_numpy(mask[y0:y1, x0:x1] > 0)[None, None].float()
    width = max(1.0, _SOFT_EDGE * min(x1 - x0, y1 - y0))
    ramp = masks.feather(inside, width, (False, False, False, False))[0, 0].numpy()[..., None]
    out = target.copy()
    true = target[y0:y1, x0:x1].astype(np.float32)
    mixed = true + ramp * (degraded[y0:y1, x0:x1].astype(np.float32) - true)
    out[y0:y1, x0:x1] = np.where(inside[0, 0, ..., None].numpy() > 0, np.rint(mixed), true)
    return out


def with_right_draft(sample: Sample) -> Sample:
    """The sample with its target as the draft: a draft that needs no repair."""
    target, _ = sample.target_and_mask()
    note = {"name": "identity", "strength": 0.0}
    return replace(sample, draft=target.copy(), info=sample.noted(degradation=note))


def with_draft(
    sample: Sample, draft: np.ndarray, min_change: float, note: Mapping[str, Any]
) -> Sample:
    """The sample with its draft; `note` says how it was made.

    Raises:
        RejectedError: the mean change in the mask is under `min_change` (of 255).
    """
    target, mask = sample.target_and_mask()
    change = float(np.abs(draft.astype(np.int16) - target)[mask > 0].mean())
    if change < min_change:
        raise RejectedError(
            f"{note['name']} changed the detail by only {change:.2f} of 255, less than {min_change:g}"
        )
    noted = sample.noted(degradation={**note, "change": round(change, 3)})
    return replace(sample, draft=draft, info=noted)
