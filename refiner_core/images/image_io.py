"""Pictures in and out: files to tensors and back, without losing a bit on the way.

Colour files of every common kind are read as sRGB, RGB, upright; 8-bit stays 8-bit and 16-bit
stays 16-bit. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from .geometry import Extent

MAX_SIDE = 16384
_LOSSLESS = (".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture from a file.

    `pixels` 1 3 H W in uint8 or uint16; `alpha` 1 1 H W of the same type or None; `notes` says
    what reading changed (turned upright, colour profile applied, ...).
    """

    pixels: Tensor
    alpha: Tensor | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def extent(self) -> Extent:
        return Extent(self.pixels.shape[-1], self.pixels.shape[-2])


def to_float(pixels: Tensor) -> Tensor:
    """Any stored type to float32 in [0, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if pixels.dtype == torch.uint16:
        return pixels.float() / 65535
    return pixels.float()


def to_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Float pixels in [0, 1] to a stored type, rounded."""
    if dtype in (torch.uint8, torch.uint16):
        top = 255 if dtype == torch.uint8 else 65535
        return (pixels.clamp(0, 1) * top).round().to(dtype)
    return pixels.to(dtype)


def resize(image: Tensor, size: Extent) -> Tensor:
    """Float images B C H W to `size`, bicubic with antialiasing; the same size is returned as is."""
    if image.shape[-2:] == (size.height, size.width):
        return image
    return F.interpolate(
        image, (size.height, size.width), mode="bicubic", antialias=True, align_corners=False
    )


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass without a mask of the tensor's size."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()) if x.numel() else True


def check_finite(image: Tensor, name: str) -> None:
    """Raise ValueError if a float image carries NaN or infinity."""
    if image.is_floating_point() and not all_finite(image):
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"The {name} has {bad} values that are NaN or infinite. An earlier node or program "
            "produced a broken picture (often a VAE in fp16); repair that first."
        )


def load_picture(path: str | Path, name: str = "picture") -> Picture:
    """Read a colour picture.

    Grey, palette and CMYK become RGB, EXIF rotation is applied, an embedded colour profile is
    converted to sRGB, alpha is kept apart. 16-bit PNGs keep their 16 bits.

    Raises:
        ValueError: no such file, not a picture, truncated, or a side over 16384 px.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The {name} {path} is not a file.")
    with _reading(path, name):
        with path.open("rb") as stream:
            head = stream.read(26)
        with Image.open(path) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(
                    f"The {name} {path} is {image.width}x{image.height}; "
                    f"at most {MAX_SIDE} px on a side are supported."
                )
            if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10":
                return _load_png16(path, "icc_profile" in image.info)
            image.load()
            return _from_pillow(image)


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Generator[None, None, None]:
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    try:
        yield
    except UnidentifiedImageError as e:
        raise ValueError(f"The {name} {path} is not a picture that can be read.") from e
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(f"The {name} {path} is damaged or cut off: {e}.") from e
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _from_pillow(image: Image.Image) -> Picture:
    notes: list[str] = []
    profile = image.info.get("icc_profile")
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright by its EXIF orientation")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
        pixels = torch.from_numpy(np.repeat(grey[None], 3, 0)[None].copy())
        return Picture(pixels, None, ("grey read as RGB",))
    if image.mode == "F":
        raise ValueError("a float picture has no defined range: convert it to 8 or 16 bit")
    alpha = None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = torch.from_numpy(np.array(image.getchannel("A")))[None, None]
        image = image.convert("RGB")
    if image.mode != "RGB":
        notes.append(f"{image.mode} read as RGB")
    if profile:
        image = image.convert("RGB") if image.mode in ("P", "1") else image
        image, note = _to_srgb(image, profile)
        notes.append(note)
    rgb = np.array(image.convert("RGB"))
    return Picture(torch.from_numpy(rgb).permute(2, 0, 1)[None].contiguous(), alpha, tuple(notes))


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        title = ImageCms.getProfileDescription(source).strip()
        if "sRGB" in title:
            return image, f"colour profile {title} kept"
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted is not None
        return converted, f"converted from {title} to sRGB"
    except (ImageCms.PyCMSError, OSError) as e:
        return image, f"colour profile ignored ({e})"


def _load_png16(path: Path, profiled: bool) -> Picture:
    # Pillow cuts 16-bit colour to 8 bits; pypng does not.
    import png

    try:
        width, height, rows, info = png.Reader(filename=str(path)).asDirect()
        data = np.vstack([np.asarray(row, np.uint16) for row in rows])
    except (png.Error, zlib.error, struct.error) as e:
        raise OSError(str(e)) from e
    data = data.reshape(height, width, info["planes"])
    color = data[..., : info["planes"] - bool(info["alpha"])]
    if color.shape[-1] == 1:
        color = np.repeat(color, 3, -1)
    alpha = torch.from_numpy(data[..., -1].copy())[None, None] if info["alpha"] else None
    pixels = torch.from_numpy(color.copy()).permute(2, 0, 1)[None].contiguous()
    # Pillow's colour management has 8 bits only.
    notes = ("colour profile ignored (16-bit pictures are taken as sRGB)",) if profiled else ()
    return Picture(pixels, alpha, notes)


def load_mask(path: str | Path, name: str = "mask") -> Tensor:
    """Read a mask, white = repair: float32 1 1 H W in [0, 1], the luminance of the file."""
    pixels = load_picture(path, name).pixels
    weights = torch.tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)
    mask = torch.empty(1, 1, *pixels.shape[-2:])
    for y in range(0, mask.shape[-2], 1024):  # in bands: three float planes of 16k are 3 GB
        band = to_float(pixels[..., y : y + 1024, :]) * weights
        mask[..., y : y + 1024, :] = band.sum(1, keepdim=True).clamp(0, 1)
    return mask


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Refuse an output path that could not or should not be written, before any work is done.

    Raises:
        ValueError: it exists (without `overwrite`), is a folder, its folder is missing or not
            writable, or its format would change pixels.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise ValueError(f"The output {path} exists; pass --overwrite to replace it.")
    if not path.parent.is_dir():
        raise ValueError(f"The output's folder {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The output's folder {path.parent} is not writable.")
    return path


def check_picture_output(path: str | Path, overwrite: bool) -> Path:
    """`check_output`, and the format must keep every pixel."""
    path = check_output(path, overwrite)
    if path.suffix.lower() not in _LOSSLESS:
        raise ValueError(
            f"The output {path} must be one of {', '.join(_LOSSLESS)}: a lossy format would change "
            "pixels outside the region."
        )
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Generator[Path, None, None]:
    """A temporary path beside `path` that takes its place when the block ends without error."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_picture(picture: Picture, path: str | Path, overwrite: bool = False) -> None:
    """Write a picture in its own bit depth (`.png`, `.tif`, lossless `.webp`).

    Raises:
        ValueError: as `check_picture_output`; 16 bits into a format that has 8.
    """
    path = check_picture_output(path, overwrite)
    data = picture.pixels[0].permute(1, 2, 0).numpy()
    if picture.alpha is not None:
        data = np.concatenate([data, picture.alpha[0].permute(1, 2, 0).numpy()], -1)
    with atomic_path(path) as temporary:
        if data.dtype == np.uint16:
            if path.suffix.lower() != ".png":
                raise ValueError(f"16-bit pictures are written as .png, not {path.suffix}.")
            import png

            depth: dict[str, Any] = {"bitdepth": 16, "greyscale": False}
            writer = png.Writer(data.shape[1], data.shape[0], alpha=data.shape[2] == 4, **depth)
            with temporary.open("wb") as stream:
                writer.write(stream, data.reshape(data.shape[0], -1))
        elif path.suffix.lower() == ".webp":
            Image.fromarray(data).save(temporary, lossless=True, exact=True)
        else:
            Image.fromarray(data).save(temporary)
