"""Pictures in and out: files to tensors and back, without losing a bit on the way.

Colour files of every common kind are read as sRGB, RGB, upright; 8-bit stays 8-bit and 16-bit
stays 16-bit. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..storage.output_files import atomic_path, check_output
from .geometry import MAX_SIDE, Extent
from .tensors import composite, to_float

WHITE = 1.0
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

    @property
    def transparent(self) -> bool:
        """Whether any pixel is less than opaque."""
        return self.alpha is not None and bool((to_float(self.alpha) < 1).any())

    def composited(self, background: float = WHITE) -> Picture:
        """The picture as a viewer shows it: laid over a uniform background, without alpha.

        A note names the background if any pixel was less than opaque. References, pictures that
        are scored and pictures for training are read like this; a draft keeps its alpha.

        Args:
            background: the value of every channel behind the picture, in [0, 1].
        """
        if self.alpha is None:
            return self
        if not self.transparent:
            return Picture(self.pixels, None, self.notes)
        shade = {0.0: "black", 1.0: "white"}.get(background, f"{background:.0%} grey")
        note = f"transparent pixels composited over {shade}"
        return Picture(composite(self.pixels, self.alpha, background), None, (*self.notes, note))


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


def check_picture_output(path: str | Path, overwrite: bool) -> Path:
    """`check_output`, and the format must keep every pixel."""
    path = check_output(path, overwrite)
    if path.suffix.lower() not in _LOSSLESS:
        raise ValueError(
            f"The output {path} must be one of {', '.join(_LOSSLESS)}: a lossy format would change "
            "pixels outside the region."
        )
    return path


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
