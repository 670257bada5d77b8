"""Pictures for networks with a small square input, resampled exactly as Pillow does or smoothly."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images.crop import crop
from ..images.geometry import Box, Buckets, Extent, plan_crop
from ..images.masks import bounds
from ..images.tensors import resize, to_dtype
from .scorer import only_inside


def prepare_image(image: Image.Image, side: int) -> Tensor:
    """A Pillow image as the network's input 1 3 S S in [0, 1].

    Resized in 8 bits without keeping the aspect, then divided by 255: bit for bit the result of
    torchvision's `Resize((S, S), BICUBIC)` and `ToTensor`.
    """
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255


def prepare_exact(images: Tensor, side: int) -> Tensor:
    """Float pictures B 3 H W in [0, 1] through 8 bits and `prepare_image`; no gradient."""
    pixels = to_dtype(images.detach().cpu(), torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return torch.cat([prepare_image(Image.fromarray(p), side) for p in pixels])


def prepare_smooth(images: Tensor, side: int) -> Tensor:
    """Float pictures B 3 H W in [0, 1] by torch's antialiased bicubic; differentiable.

    Differs from `prepare_exact`, which rounds to 8 bits after each of two passes, by at most 0.008 and
    on average 0.0013 of the range.
    """
    return resize(images.float(), Extent(side, side)).clamp(0, 1)


def region_views(
    a: Tensor, b: Tensor, mask: Tensor, context: float, side: int, exact: bool
) -> tuple[Tensor, Tensor]:
    """The square around every item's mask in both pictures, B 3 S S each.

    Outside the mask both show the mean of the two, so that only differences inside count.
    """
    pairs = [
        _region_pair(x, y, m, context, side, exact)
        for x, y, m in zip(a.split(1), b.split(1), mask.split(1), strict=True)
    ]
    return torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs])


def _region_pair(
    a: Tensor, b: Tensor, mask: Tensor, context: float, side: int, exact: bool
) -> tuple[Tensor, Tensor]:
    box = bounds(mask)
    assert box is not None  # checked with the pair
    first, second = only_inside(a, b, mask)
    return square_view(first, box, context, side, exact), square_view(
        second, box, context, side, exact
    )


def square_view(image: Tensor, box: Box, context: float, side: int, exact: bool = False) -> Tensor:
    """The square around `box` with `context`, of one or more pictures, B 3 S S; never stretched."""
    buckets = Buckets((Extent(side, side),), 1)
    plan = plan_crop(Extent(image.shape[-1], image.shape[-2]), box, buckets, context)
    if not exact:
        return crop(image, plan)
    return prepare_exact(crop(image, plan._replace(target=plan.box.extent)), side)
