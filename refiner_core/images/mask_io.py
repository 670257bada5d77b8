"""Masks as people have them: files of many kinds and tensors of many ranges.

What a mask can only mean is normalized and noted: 0/1 label maps, 0 to 255, a black that is not
quite 0, one color on black, a shape in the alpha channel. What could mean several things is
refused, with the values that were found.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Box
from .image_io import Picture, load_picture
from .masks import MaskScan, bounds, scan_mask
from .tensors import check_finite, to_float

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_BAND_ROWS = 1024  # rows at a time: three float planes of a 16k picture are 3 GB
_BYTE = 255
_LABEL = 1.5 / _BYTE  # a largest value below this is the 1 of a 0/1 label map
_FAINTEST = 0.1  # a largest value below this leaves the repair invisible
_LIFTED_BLACK = 16 / _BYTE  # a smallest value up to this looks black
_ROUNDING = 1e-3  # by which arithmetic leaves the range from 0 to 1
_OVERSHOOT = 0.25  # by which resampling leaves the range from 0 to 1
_GRAY_CHROMA = 16 / _BYTE  # difference of channels that JPEG makes in a gray picture
_SAME_HUE = 0.1  # difference of channels over the brightest one
_FULL = 0.9  # a largest value from this on replaces the detail
_LARGE = 0.5  # part of the picture that is more than a detail
_UNPAINTED = (64, 64)  # ComfyUI's Load Image gives a mask of this size if nothing is painted
_ONE_COLOR = 4 / _BYTE  # difference of values up to which a reference is uniform
_LISTED_COLORS = 4
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jfif")

Notes = tuple[str, ...]


def load_mask(path: str | Path, name: str = "mask") -> Tensor:
    """The mask of `read_mask` without its notes."""
    return read_mask(path, name)[0]


def read_mask(path: str | Path, name: str = "mask") -> tuple[Tensor, Notes]:
    """Read a mask file in which white marks what is meant.

    Returns:
        float32 1 1 H W in [0, 1], and what was normalized.

    Raises:
        ValueError: not a picture, or it is not clear which of its colors or values are meant.
    """
    picture = load_picture(path, name)
    named = f"{name} {path}"
    mask, notes = _mask_of_picture(picture, named)
    noise = (mask > 0) & (mask <= _LIFTED_BLACK)
    if Path(path).suffix.lower() in _LOSSY_SUFFIXES and bool(noise.any()):
        mask = mask.masked_fill(noise, 0)
        notes = (*notes, f"the traces that JPEG leaves on the black of the {named} are removed")
    mask, more = normalize_mask(mask, named)
    return mask, (*notes, *more)


def read_mask_of(
    path: Path, picture: Tensor, name: str = "mask", *, resize: bool = False
) -> tuple[Tensor, Notes]:
    """The mask of `read_mask`, of a picture B 3 H W that has its size.

    Raises:
        ValueError: it has another size, and is not to be resized; and as `read_mask`.
    """
    mask, notes = read_mask(path, name)
    if mask.shape[-2:] == picture.shape[-2:]:
        return mask, notes
    if not resize:
        raise ValueError(
            f"The {name} {path} is {mask.shape[-1]}x{mask.shape[-2]} but its picture is "
            f"{picture.shape[-1]}x{picture.shape[-2]}. Pass --resize-mask to resize it."
        )
    return F.interpolate(mask, picture.shape[-2:], mode="bilinear", antialias=True), notes


def read_reference(
    path: Path, mask_path: Path | None, resize_mask: bool
) -> tuple[Tensor, Tensor | None, list[str]]:
    """A reference as it is seen, the mask of the detail in it, and notes about both.

    The mask is its alpha, unless a mask file is given; None where there is neither.
    """
    picture, mask = load_picture(path, "reference").as_reference()
    notes = [f"reference {path}: {note}" for note in picture.notes]
    if mask_path is not None:
        mask, more = read_mask_of(mask_path, picture.pixels, "reference mask", resize=resize_mask)
        return picture.pixels, mask, [*notes, *more]
    if mask is not None:
        notes.append(f"reference {path}: its alpha channel is taken as the reference mask")
    return picture.pixels, mask, notes


def normalize_mask(mask: Tensor, name: str = "mask") -> tuple[Tensor, Notes]:
    """A mask of any common range with values from 0 to 1.

    Args:
        mask: B 1 H W of any type.
        name: what the mask is to the user, for notes and errors.

    Returns:
        float32 B 1 H W in [0, 1], and what was changed. A mask that is in order is not changed.

    Raises:
        ValueError: NaN, or values whose meaning is not clear; names the smallest and the largest.
    """
    return _normalized(mask, name)[:2]


def _normalized(mask: Tensor, name: str) -> tuple[Tensor, Notes, Box | None]:
    """`normalize_mask`, and the box around what the mask marks."""
    mask = to_float(mask)
    scan = scan_mask(mask) if mask.numel() else MaskScan(0.0, 0.0, None)
    low, high = scan.low, scan.high
    if not math.isfinite(low + high):
        check_finite(mask, name)
    notes: list[str] = []
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        mask = mask.clamp(0, 1) if low < 0 or high > 1 else mask
    else:
        mask, note = _into_range(mask, low, high, name)
        notes.append(note)
        low, high = (float(v) for v in torch.aminmax(mask))
    box = scan.box
    if 0 < high < _LABEL:
        mask = (mask > 0).float()
        notes.append(f"the {name} is a label map of 0 and 1: 1 is taken as white")
    elif 0 < high < _FAINTEST:
        raise ValueError(
            f"The {name} has values from {low:.4g} to {high:.4g}, where 1 is white, so the repair "
            "would hardly show. If it is a label map, make the part to repair white."
        )
    elif 0 < low <= _LIFTED_BLACK and high > 0.5:
        mask = torch.where(mask <= low, 0.0, mask)
        box = bounds(mask)
        notes.append(f"the darkest value of the {name}, {low:.4g}, is taken as black")
    return mask, tuple(notes), box


def _into_range(mask: Tensor, low: float, high: float, name: str) -> tuple[Tensor, str]:
    whole = bool((mask == mask.round()).all())
    if low >= 0 and _BYTE / 2 < high <= _BYTE and whole:
        return mask / _BYTE, f"the {name} has values from 0 to 255: 255 is taken as white"
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return mask.clamp(0, 1), f"values of the {name} from {low:.4g} to {high:.4g} were clamped"
    raise ValueError(
        f"The {name} has values from {low:.4g} to {high:.4g}. A mask needs values from 0 to 1, or "
        "whole numbers from 0 to 255."
    )


def is_unpainted(mask: Tensor, width: int, height: int) -> bool:
    """Whether a mask B 1 H W is the one that Load Image gives where nothing is painted.

    It is empty and has 64x64 pixels, whatever the size of the picture. *Load Image (as Mask)* gives
    the same if the file lacks the chosen channel.

    Args:
        mask: the mask.
        width, height: of the picture it belongs to, in pixels.
    """
    size = tuple(mask.shape[-2:])
    return size == _UNPAINTED and size != (height, width) and not bool(mask.any())


def usable_mask(
    mask: Tensor | None, width: int, height: int, name: str
) -> tuple[Tensor | None, Notes]:
    """A mask with values from 0 to 1, or None if nothing is painted in it, and what was changed.

    Args:
        mask: B 1 H W of any type, or None; one of another shape is returned as it is.
        width, height: of the picture it belongs to, in pixels.
        name: what the mask is to the user.

    Raises:
        ValueError: it is not clear what the mask means.
    """
    return bounded_mask(mask, width, height, name)[:2]


def bounded_mask(
    mask: Tensor | None, width: int, height: int, name: str
) -> tuple[Tensor | None, Notes, Box | None]:
    """`usable_mask`, and the tight box around what the mask marks; None = it marks nothing."""
    if mask is None or mask.ndim != 4:
        return mask, (), None
    if is_unpainted(mask, width, height):
        note = (
            f"the {name} is empty and has 64x64 px, so it is ignored: nothing is painted in the file, or "
            "it does not have the chosen channel"
        )
        return None, (note,), None
    return _normalized(mask, name)


def coverage_notes(mask: Tensor, box: Box | None) -> Notes:
    """A note about a mask B 1 H W in [0, 1] that marks most of the picture, as inverted masks do.

    Args:
        mask: of a picture or several.
        box: tight around all that it marks, which spares reading the rest; None = it marks nothing.
    """
    if box is None or box.extent.area <= _LARGE * mask.shape[-1] * mask.shape[-2]:
        return ()
    coverage = int(torch.count_nonzero(mask > 0)) / mask.numel()
    if coverage == 1 and mask.amin() < mask.amax():
        return (
            f"no part of the mask is black: its values are from {float(mask.amin()):.2g} to "
            f"{float(mask.amax()):.2g}, so all of the picture is repaired. Make black what is to stay",
        )
    if not _LARGE < coverage < 1:
        return ()
    return (
        f"the mask marks {coverage:.0%} of the picture. If the detail is what is black, invert it",
    )


def strength_notes(mask: Tensor, box: Box | None) -> Notes:
    """A note about a mask B 1 H W in [0, 1] that is gray where it is brightest.

    Args:
        mask: of a picture or several.
        box: tight around all that it marks; None = it marks nothing.
    """
    if box is None:
        return ()
    strength = float(mask[..., box.y0 : box.y1, box.x0 : box.x1].amax())
    if strength >= _FULL:
        return ()
    return (
        f"the mask is at most {strength:.0%} white, so the repair is mixed with the draft to that "
        "extent. To replace the detail, make it white",
    )


def uniform_notes(reference: Tensor, mask: Tensor | None) -> Notes:
    """A note about a reference B 3 h w that shows one color where its mask, B 1 h w, marks it."""
    pixels = reference[0].flatten(1)
    if mask is not None and mask.shape[-2:] == reference.shape[-2:]:
        box = bounds(mask[:1])
        if box is None:
            return ()
        marked = mask[0, 0, box.y0 : box.y1, box.x0 : box.x1] > 0
        pixels = reference[0, :, box.y0 : box.y1, box.x0 : box.x1][:, marked]
    # Torch cannot compare uint16, and all of a large picture as floats takes gigabytes.
    values = pixels.int() if pixels.dtype == torch.uint16 else pixels
    low, high = (to_float(v.to(pixels.dtype)) for v in (values.amin(1), values.amax(1)))
    if float((high - low).max()) > _ONE_COLOR:
        return ()
    color = tuple(int(v) for v in ((low + high) / 2 * 255).round())
    return (
        f"the reference is uniformly {color} where it is used, so it shows no detail. If its file is "
        "transparent, save it with an opaque background",
    )


def _mask_of_picture(picture: Picture, name: str) -> tuple[Tensor, Notes]:
    """The mask that a person sees in a picture: 1 1 H W in [0, 1]."""
    if picture.alpha is not None and picture.transparent:
        return _mask_of_alpha(picture, picture.alpha, name)
    pixels = _bytes_in_16_bits(picture.pixels)
    if _is_gray(pixels):
        return _luminance(pixels), ()
    return _mask_of_color(pixels, name)


def _mask_of_alpha(picture: Picture, alpha: Tensor, name: str) -> tuple[Tensor, Notes]:
    opacity = to_float(alpha)
    visible = picture.pixels.float().amax(1, keepdim=True)[alpha.int() > 0]
    if not len(visible):
        raise ValueError(f"The {name} is completely transparent.")
    gray = _is_gray(picture.pixels * (alpha.int() > 0).to(picture.pixels.dtype))
    full = torch.iinfo(picture.pixels.dtype).max
    if float(visible.max() - visible.min()) <= _GRAY_CHROMA * full:
        return opacity, (
            f"the {name} has its shape in the alpha channel: opaque is taken as white",
        )
    if gray:
        black = picture.composited(0.0)
        return _luminance(black.pixels), (f"the {name} was {black.notes[-1]}",)
    return 1 - opacity, (
        f"the {name} is a picture with a hole, as ComfyUI's mask editor saves it: the hole is taken "
        "as white",
    )


def _bytes_in_16_bits(pixels: Tensor) -> Tensor:
    """Values from 0 to 255 that a program wrote to a 16-bit file without scaling them."""
    if pixels.dtype == torch.uint16 and int(pixels.int().max()) <= _BYTE:
        return pixels.to(torch.uint8)
    return pixels


def _is_gray(pixels: Tensor) -> bool:
    limit = _GRAY_CHROMA * torch.iinfo(pixels.dtype).max
    for y in range(0, pixels.shape[-2], _BAND_ROWS):
        band = pixels[..., y : y + _BAND_ROWS, :].float()
        if float((band.amax(1) - band.amin(1)).max()) > limit:
            return False
    return True


def _luminance(pixels: Tensor) -> Tensor:
    weights = torch.tensor(_LUMINANCE).reshape(1, 3, 1, 1)
    mask = torch.empty(1, 1, *pixels.shape[-2:])
    for y in range(0, mask.shape[-2], _BAND_ROWS):
        band = to_float(pixels[..., y : y + _BAND_ROWS, :]) * weights
        mask[..., y : y + _BAND_ROWS, :] = band.sum(1, keepdim=True).clamp(0, 1)
    return mask


def _mask_of_color(pixels: Tensor, name: str) -> tuple[Tensor, Notes]:
    """One color on black, of any strength at antialiased edges."""
    value = to_float(pixels)
    brightness = value.amax(1, keepdim=True)
    peak = float(brightness.max())
    bright = (brightness > peak / 2)[0, 0]
    hues = (value / brightness.clamp_min(1e-6))[0, :, bright]
    one_hue = float((hues.amax(1) - hues.amin(1)).max()) <= _SAME_HUE
    black = float((brightness <= _LIFTED_BLACK).float().mean())
    if not one_hue or black == 0:
        raise ValueError(
            f"The {name} is not black and white: {_colors(pixels)}, and it is not clear which of them "
            "mark the detail. Make those white and all others black."
        )
    color = tuple(int(v) for v in (hues.mean(1) * peak * _BYTE).round())
    return brightness / peak, (f"the color {color} of the {name} is taken as white",)


def _colors(pixels: Tensor) -> str:
    step = max(1, min(pixels.shape[-2:]) // 512)
    colors, counts = pixels[0, :, ::step, ::step].int().flatten(1).unique(dim=1, return_counts=True)
    common = colors[:, counts.argsort(descending=True)[:_LISTED_COLORS]].T.tolist()
    listed = ", ".join(str(tuple(c)) for c in common)
    return f"it has {len(counts)} colors, most often {listed}"
