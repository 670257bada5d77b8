"""The seam around a repaired region: gradients on a ring around the mask's edge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .pixels import check_same_size, masked_mean, sobel

RING = 3  # px on either side of the mask's edge


def edge_ring(mask: Tensor, width: int = RING) -> Tensor:
    """1 within `width` pixels of the edge of a mask `B 1 H W`, else 0; the picture's border is no edge."""
    on = (mask > 0).float()
    size = 2 * width + 1
    grown = F.max_pool2d(on, size, 1, width)
    shrunk = 1 - F.max_pool2d(1 - on, size, 1, width)
    return grown - shrunk


def seam_error(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the Sobel gradients on the ring around the mask's edge, `B`.

    0 = the same, also for a mask without an edge; differentiable. A step of tone at the edge of the
    region, which errors inside and outside of the region hardly notice, is what it measures.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(a, b, mask)
    apart = (sobel(a.float()) - sobel(b.float())).square()
    ring = torch.zeros_like(apart[:, :1]) if mask is None else edge_ring(mask)
    return masked_mean(apart, ring.to(apart)).nan_to_num()
