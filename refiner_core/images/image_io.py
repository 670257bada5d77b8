"""Picture files to tensors and back, without losing a bit on the way.

Files of every common kind are read upright, as RGB in sRGB; 8 bits stay 8 and 16 bits stay 16.
Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..storage.output_files import atomic_path, check_output
from .geometry import MAX_SIDE, Extent
from .sixteen_bit import (
    UnsupportedPictureError,
    read_16_bit,
    write_png_16_bit,
    write_tiff_16_bit,
)
from .tensors import composite, to_float

# Of the files that are read, in the order in which one of several with one name is chosen.
PICTURE_SUFFIXES = (
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".avif",
    ".gif",
    ".tif",
    ".tiff",
    ".bmp",
    ".tga",
    ".jp2",
    ".ppm",
    ".pgm",
    ".pnm",
)
WHITE = 1.0
_OPAQUE = 0.5  # an alpha below this does not count as opaque
_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}  # the lossless ones
_WRITERS_16_BIT = {".png": write_png_16_bit, ".tif": write_tiff_16_bit, ".tiff": write_tiff_16_bit}
# Files of these kinds hold animations or pages; in others a second frame is a thumbnail or a layer.
_MANY_FRAMES = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
_EXACT_MODES = ("RGB", "L", "1", "P")  # those whose colors are the same in RGB
_EXIF_ORIENTATION = 0x0112
# As what Pillow and the decoders under it report damage.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Picture:
    """A picture from a file."""

    pixels: Tensor  # 1 3 H W, uint8 or uint16, sRGB
    alpha: Tensor | None = None  # 1 1 H W of the same type; full scale is opaque
    notes: tuple[str, ...] = ()  # what reading changed: rotated, color profile converted, ...

    @property
    def extent(self) -> Extent:
        return Extent(self.pixels.shape[-1], self.pixels.shape[-2])

    @property
    def transparent(self) -> bool:
        """Whether any pixel is less than opaque."""
        return self.alpha is not None and bool((to_float(self.alpha) < 1).any())

    @property
    def cut_out(self) -> bool:
        """Whether the picture shows a detail without its surroundings: a corner is transparent.

        Where all corners are opaque, something inside was made transparent, as ComfyUI's mask editor
        saves a painted mask.
        """
        if self.alpha is None:
            return False
        corners = to_float(self.alpha[0, 0])[[0, 0, -1, -1], [0, -1, 0, -1]]
        return bool((corners < _OPAQUE).any())

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
        shade = {0.0: "black", 1.0: "white"}.get(background, f"{background:.0%} gray")
        note = f"transparent pixels composited over {shade}"
        return Picture(composite(self.pixels, self.alpha, background), None, (*self.notes, note))

    def as_reference(self) -> tuple[Picture, Tensor | None]:
        """The picture over white, and its alpha as the mask of what it shows.

        The mask is float 1 1 H W in [0, 1], or None if the picture is opaque.

        Raises:
            ValueError: every pixel is transparent.
        """
        if self.alpha is None or not self.transparent:
            return self.composited(), None
        mask = to_float(self.alpha)
        if not bool((mask > 0).any()):
            raise ValueError("The reference is completely transparent: there is nothing to see.")
        return self.composited(), mask


def load_picture(path: str | Path, name: str = "picture") -> Picture:
    """Read a color picture.

    Gray, palette and CMYK become RGB, EXIF rotation is applied, an embedded color profile is
    converted to sRGB, alpha is kept apart, and PNG and TIFF keep 16 bits per channel. Of an
    animation the first frame is read. Everything that changes the picture is in its notes.

    Raises:
        ValueError: no such file, not a picture, damaged, of a kind that is not supported, or with
            a side over `MAX_SIDE`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The {name} {path} does not exist or is not a file.")
    with _reading(path, name), Image.open(path) as image:
        if max(image.size) > MAX_SIDE:
            raise UnsupportedPictureError(
                f"it is {image.width}x{image.height} px, but the longest side that is supported is "
                f"{MAX_SIDE} px. Scale it down first"
            )
        deep = read_16_bit(image, path)  # first: asking a PNG for its EXIF data decodes it
        notes = _frame_notes(image)
        if deep is not None:
            return _from_16_bit(deep, image, notes)
        image.load()
        return _from_pillow(image, notes)


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Generator[None, None, None]:
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    try:
        yield
    except UnidentifiedImageError as e:
        raise ValueError(f"The {name} {path} is not a picture that can be read.") from e
    except UnsupportedPictureError as e:
        raise ValueError(f"The {name} {path} cannot be read: {e}.") from e
    except DECODING_ERRORS as e:
        raise ValueError(f"The {name} {path} is damaged or cut off: {e}.") from e
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _frame_notes(image: Image.Image) -> list[str]:
    notes: list[str] = []
    frames: int = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in _MANY_FRAMES:
        notes.append(f"only the first of its {frames} frames is used")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        notes.append("rotated according to its EXIF orientation")
    return notes


def _from_16_bit(data: NDArray[np.uint16], image: Image.Image, notes: list[str]) -> Picture:
    """H W C with the channels gray and alpha, RGB or RGBA."""
    channels = data.shape[-1]
    color = data[..., : channels - 1] if channels in (2, 4) else data
    alpha = _planes(data[..., -1:]) if channels in (2, 4) else None
    pixels = _planes(color).expand(-1, 3, -1, -1).contiguous()
    return Picture(pixels, alpha, (*notes, *_ignored_profile(image)))


def _ignored_profile(image: Image.Image) -> list[str]:
    """Pillow's color management has 8 bits only, so the profile of a 16-bit picture is not used."""
    if "icc_profile" not in image.info:
        return []
    return ["color profile ignored: 16-bit pictures are taken as sRGB"]


def _planes(data: NDArray[Any]) -> Tensor:
    """H W C to 1 C H W."""
    return torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1)))[None]


def _from_pillow(image: Image.Image, notes: list[str]) -> Picture:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Picture(_gray_16_bit(image), None, (*notes, *_ignored_profile(image)))
    if image.mode == "F":
        raise UnsupportedPictureError(
            "its values are floating point numbers without a defined range. Save it with 8 or 16 "
            "bits per channel"
        )
    alpha = None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = torch.from_numpy(np.array(image.getchannel("A")))[None, None]
        image = image.convert("RGB")
    if image.mode not in _EXACT_MODES:
        notes.append(f"{image.mode} converted to RGB")
    if profile:
        image = image.convert("RGB") if image.mode in ("P", "1") else image
        image, note = _to_srgb(image, profile)
        notes.append(note)
    return Picture(_planes(np.array(image.convert("RGB"))), alpha, tuple(notes))


def _gray_16_bit(image: Image.Image) -> Tensor:
    gray = np.asarray(image).astype(np.int64)
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise UnsupportedPictureError(
            f"its values reach from {low} to {high}, but 16 bits hold 0 to 65535. Save it with 8 or "
            "16 bits per channel"
        )
    return _planes(gray.astype(np.uint16)[..., None]).expand(-1, 3, -1, -1).contiguous()


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        title = ImageCms.getProfileDescription(source).strip()
        if "sRGB" in title:
            return image, f"color profile {title} kept"
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted is not None
        return converted, f"converted from {title} to sRGB"
    except (ImageCms.PyCMSError, OSError, TypeError) as e:
        return image, f"color profile ignored ({e})"


def check_picture_output(path: str | Path, overwrite: bool) -> Path:
    """`check_output`, and the file's format must keep every pixel.

    Raises:
        ValueError: as `check_output`, or the suffix is not that of a lossless format.
    """
    path = check_output(path, overwrite)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"The output {path} must end in {', '.join(_FORMATS)}. A lossy format would change "
            "pixels outside the region."
        )
    return path


class _WholeWrites(io.BufferedRandom):
    """A file without a descriptor for Pillow, whose encoders take half a write for a whole one: a TIFF
    would end where the disk was full, without an error.
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def save_picture(picture: Picture, path: str | Path, overwrite: bool = False) -> None:
    """Write a picture with its own bit depth: `.png`, `.tif` or lossless `.webp` (8 bits only).

    Raises:
        ValueError: as `check_picture_output`, or a 16-bit picture is to become WebP.
        OSError: the disk is full or not writable; an earlier file of that name is kept.
    """
    path = check_picture_output(path, overwrite)
    suffix = path.suffix.lower()
    data = picture.pixels[0].permute(1, 2, 0).numpy()
    if picture.alpha is not None:
        data = np.concatenate([data, picture.alpha[0].permute(1, 2, 0).numpy()], -1)
    if data.dtype == np.uint16 and suffix not in _WRITERS_16_BIT:
        raise ValueError(
            f"The picture has 16 bits per channel and {suffix} holds 8. Write it to "
            f"{', '.join(_WRITERS_16_BIT)}."
        )
    with atomic_path(path) as temporary:
        if data.dtype == np.uint16:
            with temporary.open("wb") as stream:
                _WRITERS_16_BIT[suffix](data, stream)
        else:
            options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
            with _WholeWrites(io.FileIO(temporary, "w+")) as stream:
                Image.fromarray(data).save(stream, _FORMATS[suffix], **options)
