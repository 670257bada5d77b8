"""Puts a broken picture into the true one, inside the mask only."""

from __future__ import annotations

import numpy as np
import torch

from ...images import masks
from ..shards import mask_box


def paste_inside(
    target: np.ndarray, broken: np.ndarray, mask: np.ndarray, share: float = 0.06
) -> np.ndarray:
    """`broken` over `target`, both uint8 H W 3, with a soft edge that lies inside `mask`.

    Where the mask (uint8 H W) is 0 the target stays bit for bit. `share` of the mask box's
    shorter side is the width of the edge.
    """
    box = mask_box(mask)
    assert box is not None, "an empty mask is rejected before"
    x0, y0, x1, y1 = box
    inside = torch.from_numpy(mask[y0:y1, x0:x1] > 0)[None, None].float()
    width = max(1.0, share * min(x1 - x0, y1 - y0))
    ramp = masks.feather(inside, width, (False, False, False, False))[0, 0].numpy()[..., None]
    out = target.copy()
    true = target[y0:y1, x0:x1].astype(np.float32)
    mixed = true + ramp * (broken[y0:y1, x0:x1].astype(np.float32) - true)
    out[y0:y1, x0:x1] = np.where(inside[0, 0, ..., None].numpy() > 0, np.rint(mixed), true)
    return out
