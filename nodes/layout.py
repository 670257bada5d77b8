"""Converts tensors between ComfyUI's layout and the core's. No other module does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..refiner_core.images.image_io import Picture
from ..refiner_core.images.mask_io import usable_mask
from ..refiner_core.images.tensors import composite

CHANNELS_WITH_ALPHA = 4


def to_core(image: Tensor) -> Tensor:
    """IMAGE `B H W C` -> `B 3 H W`, of 1 (gray), 3 or 4 channels; the fourth, alpha, is left out.

    Raises:
        ValueError: not a tensor, another shape, or the batch is empty.
    """
    _check_image(image)
    color = image[..., :1].expand(*image.shape[:3], 3) if image.shape[-1] < 3 else image[..., :3]
    # ComfyUI's own nodes cannot save bfloat16, which NumPy does not have.
    color = color.float() if color.dtype == torch.bfloat16 else color
    return color.movedim(-1, 1)


def opaque_to_core(image: Tensor) -> Tensor:
    """IMAGE `B H W C` -> `B 3 H W` over white, for images that are only looked at.

    Raises:
        ValueError: another shape.
    """
    pixels = to_core(image)
    if image.shape[-1] == CHANNELS_WITH_ALPHA:
        pixels = composite(pixels, image[..., 3:].movedim(-1, 1))
    return pixels.cpu()


def composited_to_core(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """IMAGE `B H W C` -> `B 3 H W` over white, and its alpha as a mask `B 1 H W` or None.

    References are read like this, so that they look as they are shown.

    Raises:
        ValueError: another shape, or every pixel is transparent.
    """
    pixels = to_core(image).cpu()
    if image.shape[-1] != CHANNELS_WITH_ALPHA:
        return pixels, None
    alpha = image[..., 3:].movedim(-1, 1).cpu()
    picture, mask = Picture(pixels, alpha).as_reference()
    return picture.pixels, mask


def references_to_core(
    images: list[Tensor], mask: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], tuple[str, ...]]:
    """IMAGEs of references -> pictures over white, their masks `B 1 H W`, and notes.

    The mask of a reference is its alpha. For the first one, `mask` (MASK) goes before that.
    """
    read = [composited_to_core(image) for image in images]
    masks = [alpha for _, alpha in read]
    notes = [
        f"reference {number} is transparent: it is laid over white, and its alpha is its mask"
        for number, alpha in enumerate(masks, 1)
        if alpha is not None
    ]
    if images and mask is not None:
        masks[0] = mask_to_core(mask)
    return tuple(pixels for pixels, _ in read), tuple(masks), tuple(notes)


def check_tensor(value: object, kind: str) -> None:
    """Refuse what is not a tensor, which nodes of other packs may hand on.

    Raises:
        ValueError: names its type.
    """
    if not isinstance(value, Tensor):
        raise ValueError(
            f"An input for {kind} gets {type(value).__name__}, which is not a tensor. Connect a node that "
            f"makes {kind}."
        )


def _check_image(image: Tensor) -> None:
    check_tensor(image, "IMAGE")
    if image.ndim != 4 or image.shape[-1] not in (1, 3, CHANNELS_WITH_ALPHA):
        raise ValueError(
            f"An IMAGE needs the shape (batch, height, width, channels) with 1, 3 or 4 channels, got "
            f"{tuple(image.shape)}."
        )
    _check_not_empty(image, "IMAGE")


def _check_not_empty(batch: Tensor, kind: str) -> None:
    if not batch.numel():
        raise ValueError(
            f"The {kind} of the shape {tuple(batch.shape)} is empty: the node that made it found or "
            "kept nothing. Change its settings, or disconnect it."
        )


def from_core(image: Tensor, like: Tensor | None = None) -> Tensor:
    """`B 3 H W` -> IMAGE `B H W C`, with the alpha of `like` (an IMAGE) if it has one."""
    out = image.movedim(1, -1).contiguous()
    if like is None or like.shape[-1] != CHANNELS_WITH_ALPHA:
        return out
    alpha = like[..., 3:].expand(len(out), *like.shape[1:3], like.shape[-1] - 3)
    return torch.cat([out, alpha.to(out)], -1)


def mask_to_core(mask: Tensor | None) -> Tensor | None:
    """MASK `B H W`, and the shapes `H W`, `B 1 H W` and `B H W 1` of other packs -> `B 1 H W`.

    Raises:
        ValueError: not a tensor, another shape, or the batch is empty.
    """
    if mask is None:
        return None
    check_tensor(mask, "MASK")
    if mask.ndim == 2:
        mask = mask[None, None]
    elif mask.ndim == 3:
        mask = mask[:, None]
    elif mask.ndim == 4 and mask.shape[-1] == 1 and mask.shape[1] != 1:
        mask = mask.movedim(-1, 1)
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"A MASK needs the shape (batch, height, width), got {tuple(mask.shape)}.")
    _check_not_empty(mask, "MASK")
    return mask.float().cpu()


def segs_to_core(segs: Any, width: int, height: int) -> Tensor:
    """SEGS of detectors, as ComfyUI Impact Pack defines them -> one mask of all segments, 1 1 H W.

    They are `((height, width), [segment])`. Each segment has a `cropped_mask` (h w, NumPy or Torch)
    and the `crop_region` (x0, y0, x1, y1) in px where that mask lies.

    Raises:
        ValueError: they belong to an image of another size than `width` x `height`.
    """
    (own_height, own_width), segments = segs
    if (own_width, own_height) != (width, height):
        raise ValueError(
            f"The SEGS belong to an image of {own_width}x{own_height}, but the image is "
            f"{width}x{height}. Detect in the image that is connected here."
        )
    mask = torch.zeros(1, 1, height, width)
    for segment in segments:
        x0, y0, x1, y1 = (int(v) for v in segment.crop_region)
        part = torch.as_tensor(segment.cropped_mask).float().reshape(1, 1, y1 - y0, x1 - x0)
        inside = mask[..., y0:y1, x0:x1]
        inside.copy_(torch.maximum(inside, part.cpu()))
    return mask


def usable_mask_to_core(
    mask: Tensor | None, image: Tensor
) -> tuple[Tensor | None, tuple[str, ...]]:
    """A MASK of an image `B C H W` -> `B 1 H W` in [0, 1], None if nothing is painted, and notes.

    Raises:
        ValueError: another shape, or it is not clear what the mask means.
    """
    return usable_mask(mask_to_core(mask), image.shape[-1], image.shape[-2], "mask")


def mask_from_core(mask: Tensor) -> Tensor:
    """`B 1 H W` -> MASK `B H W`."""
    return mask[:, 0]
