"""A scorer that needs no weights: structure and edges over several scales."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import blur
from .pixels import sobel, structural_similarity
from .scorer import check_pair, only_inside

# Shares of the scales, fine to coarse: Wang et al. 2003, "Multiscale structural similarity".
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIGMA = 1.5  # px, of the window
_SMALLEST = 11  # px: the size of that paper's window
_FLAT = 0.001  # squared gradient under which a pixel counts as flat: 0.03 of the range per pixel


def edge_map(a: Tensor, b: Tensor) -> Tensor:
    """Agreement of edges in place, direction, strength and colour, B 1 H W in [-1, 1]."""
    ga, gb = sobel(a), sobel(b)
    both = (ga * ga).sum(1, keepdim=True) + (gb * gb).sum(1, keepdim=True)
    return (2 * (ga * gb).sum(1, keepdim=True) + _FLAT) / (both + _FLAT)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Local distance B 1 H W: half structure, half edges; 0 = the same, 2 = opposite."""
    structure = structural_similarity(a, b, lambda x: blur(x, _SIGMA)).mean(1, keepdim=True)
    return 1 - (0.5 * structure + 0.5 * edge_map(a, b))


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _scales(a: Tensor, b: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Share and local distances of every scale that is large enough, from fine to coarse."""
    for share in _SCALE_WEIGHTS:
        yield share, _apart(a, b)
        if (min(a.shape[-2:]) + 1) // 2 < _SMALLEST:
            return
        a, b = _half(a), _half(b)


class StructuralScorer:
    """Multi-scale SSIM and edge agreement, both over RGB, averaged over the mask.

    The scales are averaged, not multiplied as in MS-SSIM, so that there is a value per pixel and
    the gradient is finite where one scale disagrees. Differentiable and symmetric; identical
    pictures give exactly 0, the range is [0, 2], unrelated pictures are near 1. Pixels are
    compared in place: two good pictures that are shifted against each other are far apart.
    """

    name = "MS-SSIM + edges (no weights)"

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`."""
        a, b, mask = check_pair(a.float(), b.float(), mask)
        weight = torch.ones_like(a[:, :1])
        if mask is not None:
            a, b = only_inside(a, b, mask)
            weight = (mask > 0).to(a)
        total, shares = a.new_zeros(len(a)), 0.0
        for share, apart in _scales(a, b):
            if apart.shape != weight.shape:
                weight = _half(weight)
            mean = (apart * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
            total, shares = total + share * mean, shares + share
        return total / shares

    def heatmap(self, a: Tensor, b: Tensor) -> Tensor:
        """See `MapScorer.heatmap`: the weighted mean over scales, at the pictures' size."""
        a, b, _ = check_pair(a.float(), b.float())
        total, shares = torch.zeros_like(a[:, :1]), 0.0
        for share, apart in _scales(a, b):
            local = F.interpolate(apart, a.shape[-2:], mode="bilinear", align_corners=False)
            total, shares = total + share * local, shares + share
        return total / shares
