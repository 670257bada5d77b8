"""Heatmaps of where pictures differ, drawn over a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.geometry import Extent
from ..images.tensors import resize, to_float
from .pixels import check_same_size

_FAINT = 0.05  # local distance under which nothing is drawn hottest

# Cold to hot, RGB. Each step is brighter than the last, so it is readable in grey as well.
_COLORS = (
    (0.0, 0.0, 0.1),
    (0.35, 0.0, 0.45),
    (0.85, 0.15, 0.2),
    (1.0, 0.65, 0.1),
    (1.0, 1.0, 0.75),
)


def difference_heat(a: Tensor, b: Tensor) -> Tensor:
    """How far apart two pictures are at every pixel, `B 1 H W` float32: the largest channel's."""
    check_same_size(a, b, None)
    return (to_float(a) - to_float(b)).abs().amax(1, keepdim=True)


def draw_heat(image: Tensor, heat: Tensor, scale: float = 0.0) -> Tensor:
    """The heatmap over the picture, B 3 H W.

    Args:
        image: B 3 H W or 1 3 H W in [0, 1].
        heat: B 1 h w; resized smoothly.
        scale: the local distance drawn hottest, for all pictures; 0 = each picture's largest (at
            least 0.05, so that rounding errors do not show).
    """
    size = Extent(image.shape[-1], image.shape[-2])
    heat = heat.float().cpu()
    top = heat.flatten(1).amax(1).clamp_min(_FAINT) if scale <= 0 else heat.new_full((1,), scale)
    value = (resize(heat, size) / top.reshape(-1, 1, 1, 1)).clamp(0, 1)
    position = value * (len(_COLORS) - 1)
    color = torch.zeros(len(heat), 3, size.height, size.width)
    for i, rgb in enumerate(_COLORS):
        near = (1 - (position - i).abs()).clamp_min(0)
        color = color + near * torch.tensor(rgb).reshape(1, 3, 1, 1)
    opacity = 0.85 * value.sqrt()
    return (image.float().cpu() * (1 - opacity) + color * opacity).clamp(0, 1)
