"""Cuts planned crops out of pictures and stitches repaired crops back (plans: see `geometry`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Blend, Box, CropPlan, Extent
from .masks import Region, dilate, feather
from .tensors import resize, to_dtype, to_float

_RIM_PIXELS = 2.0  # width of the fade to the draft's exact value around a multiband blend
_RING_MARGIN = 0.04  # of the crop's shorter side: there the model may have shaded the draft
_OUTSIDE_MASK = 0.01  # a resized mask below this value does not touch a pixel


def crop(image: Tensor, plan: CropPlan) -> Tensor:
    """The planned crop of `image` B C H W (any stored type) at the model's size, float32 in [0, 1].

    Only the box is read. Where it reaches outside the image, the edge pixels are repeated.
    """
    i = plan.inside
    cut = to_float(image[..., i.y0 : i.y1, i.x0 : i.x1])
    if any(plan.padding):
        left, top, right, bottom = plan.padding
        cut = F.pad(cut, (left, right, top, bottom), mode="replicate")
    return resize(cut, plan.target).clamp(0, 1)


def crop_mask(region: Region, plan: CropPlan) -> Tensor:
    """The region's mask in the crop, at the model's size: 1 1 h w in [0, 1]."""
    full = torch.zeros(1, 1, plan.box.extent.height, plan.box.extent.width)
    y, x = region.box.y0 - plan.box.y0, region.box.x0 - plan.box.x0
    h, w = region.mask.shape[-2:]
    full[..., y : y + h, x : x + w] = region.mask
    # Averaging over areas keeps thin strokes, which bicubic sampling can lose.
    if full.shape[-2:] == (plan.target.height, plan.target.width):
        return full
    return F.interpolate(
        full, (plan.target.height, plan.target.width), mode="bilinear", antialias=True
    ).clamp(0, 1)


def uncrop_signed(change: Tensor, plan: CropPlan, region: Region) -> Tensor:
    """`uncrop` for a difference of two crops, which may be negative."""
    full = F.interpolate(
        change.float(),
        (plan.box.extent.height, plan.box.extent.width),
        mode="bilinear",
        align_corners=False,
        antialias=plan.scale > 1,
    )
    y, x = region.box.y0 - plan.box.y0, region.box.x0 - plan.box.x0
    h, w = region.mask.shape[-2:]
    return full[..., y : y + h, x : x + w]


def uncrop(result: Tensor, plan: CropPlan, region: Region) -> Tensor:
    """A repaired crop at the model's size, resized to the picture's scale and cut to the region's box."""
    full = resize(result.float(), plan.box.extent)
    y, x = region.box.y0 - plan.box.y0, region.box.x0 - plan.box.x0
    h, w = region.mask.shape[-2:]
    return full[..., y : y + h, x : x + w].clamp(0, 1)


def stitch_into(
    out: Tensor,
    patch: Tensor,
    region: Region,
    *,
    feather_pixels: float = 8,
    blend: Blend = "feather",
) -> None:
    """Blend `patch` into `out` over the region, in place.

    Every pixel where the region's mask is 0 keeps its exact value in the type that came in.

    Args:
        out: B C H W of any stored type; channels that the patch lacks (alpha) are not changed.
        patch: float B 3 h w in [0, 1] of the size of the region's box.
        region: where the patch goes.
        feather_pixels: width of the blend inside the mask's edge.
        blend: "feather" uses one ramp, "multiband" blends coarse tones over a wider band than detail.
    """
    b = region.box
    extent = Extent(out.shape[-1], out.shape[-2])
    open_sides = (b.x0 == 0, b.y0 == 0, b.x1 == extent.width, b.y1 == extent.height)
    weight = feather(region.mask, feather_pixels, open_sides).to(patch.device)
    channels = patch.shape[1]
    view = out[..., :channels, b.y0 : b.y1, b.x0 : b.x1]
    before = to_float(view).to(patch.device)
    if blend == "multiband":
        # Each band blends over its own width, so the rim has to fade to the draft's exact value.
        inner = multiband(before, patch, weight)
        rim = feather(region.mask, min(_RIM_PIXELS, feather_pixels), open_sides).to(patch.device)
        mixed = before + rim * (inner - before)
    else:
        mixed = before + weight * (patch - before)
    mixed = to_dtype(mixed, out.dtype).to(out.device)
    inside = (region.mask > 0).expand(view.shape).to(out.device)
    if out.dtype == torch.uint16:  # torch cannot index it, so move the same bits as int16
        view, mixed = view.view(torch.int16), mixed.view(torch.int16)
    view[inside] = mixed[inside]


def _down(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def multiband(a: Tensor, b: Tensor, weight: Tensor, levels: int = 5) -> Tensor:
    """Laplacian-pyramid blend of `a` (weight 0) and `b` (weight 1), after Burt & Adelson 1983."""
    if levels == 0 or min(a.shape[-2:]) < 4:
        return a + weight * (b - a)
    small_a, small_b, small_w = _down(a), _down(b), _down(weight)
    coarse = multiband(small_a, small_b, small_w, levels - 1)
    band_a, band_b = a - _up(small_a, a), b - _up(small_b, b)
    return _up(coarse, a) + band_a + weight * (band_b - band_a)


def ring(region: Region, plan: CropPlan) -> Tensor:
    """Where the crop shows the unchanged picture: 1 1 h w at the model's size, 0 or 1.

    The region, a margin around it and the padding are left out.
    """
    mask = crop_mask(region, plan)
    margin = max(1, round(_RING_MARGIN * min(plan.target)))
    near = dilate(mask, margin)
    inside = torch.zeros_like(mask)
    i, s = plan.inside, plan.scale
    y0, y1 = round((i.y0 - plan.box.y0) * s), round((i.y1 - plan.box.y0) * s)
    x0, x1 = round((i.x0 - plan.box.x0) * s), round((i.x1 - plan.box.x0) * s)
    inside[..., y0:y1, x0:x1] = 1
    return (near <= _OUTSIDE_MASK).float() * inside


def box_region(box: Box) -> Region:
    """A full rectangle as a region."""
    return Region(box, torch.ones(1, 1, box.extent.height, box.extent.width))
