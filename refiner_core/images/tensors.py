"""Picture tensors: stored types, sizes, transparency, and values that are not numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# The largest value of the integer types in which pictures are stored.
_FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}
_OVERSHOOT = 0.5  # by which resampling and VAEs leave the range from 0 to 1
_BAND_ROWS = 1024  # rows at a time, as whole float copies of a 16k picture take gigabytes


def to_float(pixels: Tensor) -> Tensor:
    """Any stored type to float32 in [0, 1]."""
    if pixels.dtype in _FULL_SCALE:
        return pixels.float() / _FULL_SCALE[pixels.dtype]
    return pixels.float()


def to_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Float pixels in [0, 1] to a stored type, rounded."""
    if dtype in _FULL_SCALE:
        return (pixels.clamp(0, 1) * _FULL_SCALE[dtype]).round().to(dtype)
    return pixels.to(dtype)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images B C H W to `size` (width, height): bicubic with antialiasing.

    An image that already has this size is returned as it is.
    """
    width, height = size
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(
        image, (height, width), mode="bicubic", antialias=True, align_corners=False
    )


def composite(pixels: Tensor, alpha: Tensor, background: float = 1.0) -> Tensor:
    """Pixels with transparency laid over a uniform background, in the stored type that came in.

    Args:
        pixels: B C H W of any stored type.
        alpha: B 1 H W of any stored type; its full scale is opaque.
        background: the value of every channel behind the picture, in [0, 1]; 1 is white.

    Opaque pixels keep their exact value.
    """
    out = torch.empty_like(pixels)
    for y in range(0, pixels.shape[-2], _BAND_ROWS):
        rows = slice(y, y + _BAND_ROWS)
        opacity = to_float(alpha[..., rows, :])
        band = to_float(pixels[..., rows, :])
        mixed = torch.lerp(torch.full_like(band, background), band, opacity)
        out[..., rows, :] = to_dtype(mixed, pixels.dtype)
    return out


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, without a mask of the tensor's size."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()) if x.numel() else True


def check_picture(image: Tensor, name: str) -> None:
    """Refuse a float image with values far outside 0 to 1; resampling goes a little beyond.

    Raises:
        ValueError: NaN or infinite values, or values clearly outside [0, 1]; names them.
    """
    check_finite(image, name)
    if not image.is_floating_point() or not image.numel():
        return
    low, high = (float(v) for v in torch.aminmax(image))
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise ValueError(
            f"The {name} has values from {low:.4g} to {high:.4g}, but the values of a picture go from "
            "0 to 1. Scale or clamp them in an earlier node."
        )


def check_finite(image: Tensor, name: str) -> None:
    """Refuse a float image that contains NaN or infinite values.

    Raises:
        ValueError: names the image and the number of such values.
    """
    if image.is_floating_point() and not all_finite(image):
        count = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"The {name} contains {count} values that are NaN or infinite. An earlier node or "
            "program produced a broken picture, often a VAE running in fp16. Fix that first."
        )
