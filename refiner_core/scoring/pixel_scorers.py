"""The pixel metrics as scorers, which need no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pixels import edge_error, masked_mse, masked_ssim
from .scorer import check_pair
from .seam import seam_error

Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class PixelScorer:
    """`Scorer` by a function of two pictures B 3 H W and a mask that gives B distances."""

    name: str
    measure: Measure

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`."""
        a, b, mask = check_pair(a, b, mask)
        return self.measure(a, b, mask).float()


def _outside(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean squared error outside the mask; 0 if nothing is outside."""
    if mask is None:
        return torch.zeros(len(a), device=a.device)
    return masked_mse(a, b, (mask <= 0).to(a)).nan_to_num().sqrt()


PIXEL_SCORERS: dict[str, PixelScorer] = {
    "pixels": PixelScorer("pixels (RMS error)", lambda a, b, m: masked_mse(a, b, m).sqrt()),
    "ssim": PixelScorer("SSIM", lambda a, b, m: 1 - masked_ssim(a, b, m)),
    "edges": PixelScorer("edges", edge_error),
    "seam": PixelScorer("seam", seam_error),
    "background": PixelScorer("background (RMS error outside)", _outside),
}
