"""Artwork of the user's own: emblems, drawings and labels, as PNG with alpha or as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .source_files import OwnFile, UnusableFileError

ARTWORK_SUFFIXES = (".png", ".svg")
_MIN_SIDE = 32  # px of a PNG's shorter side
_HEAD = 1 << 16  # bytes in which an SVG file has named its root element
_RENDERED = 1.25  # of the size asked for: a drawing seldom fills its page


def check_picture(file: OwnFile, least: int) -> tuple[OwnFile, ...]:
    """The file, if it is a picture with a shorter side of at least `least` px.

    Raises:
        UnusableFileError: it cannot be used; gives the reason.
    """
    try:
        with Image.open(file.path) as image:
            if min(image.size) < least:
                raise UnusableFileError(f"smaller than {least} px")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise UnusableFileError("unreadable") from e
    return (file,)


def check_artwork(file: OwnFile) -> tuple[OwnFile, ...]:
    """The file, if its first bytes are those of a PNG or SVG. Raises as `check_picture`."""
    if file.path.suffix.lower() != ".svg":
        return check_picture(file, _MIN_SIDE)
    try:
        with file.path.open("rb") as stream:
            if b"<svg" not in stream.read(_HEAD):
                raise UnusableFileError("unreadable")
    except OSError as e:
        raise UnusableFileError("unreadable") from e
    return (file,)


def load_svg_renderer() -> Callable[..., bytes]:
    """The function that turns an SVG into the bytes of a PNG.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as e:
        raise ModuleNotFoundError(
            "SVG artwork needs resvg: pip install resvg-py (the pack's extra svg)."
        ) from e
    return svg_to_bytes


@lru_cache(maxsize=64)
def load_artwork(path: Path, size: tuple[int, int]) -> Image.Image:
    """The drawing without its empty margin, RGBA, as large as fits into `size` (width, height).

    Raises:
        ValueError: it cannot be read, or nothing of it is visible.
        ModuleNotFoundError: as `load_svg_renderer`.
    """
    svg = path.suffix.lower() == ".svg"
    image = _render_svg(path, size) if svg else _read_png(path)
    visible = image.getchannel("A").point([0] * 9 + [255] * 247).getbbox()
    if visible is None:
        raise ValueError(f"The artwork {path} is completely transparent.")
    image = image.crop(visible)
    scale = min(size[0] / image.width, size[1] / image.height)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Colours of transparent pixels are arbitrary: they must not reach the edge of the drawing.
    # A filter that overshoots would give the edge colours that are not in it.
    return image.convert("RGBa").resize(fitted, Image.Resampling.HAMMING).convert("RGBA")


def _render_svg(path: Path, size: tuple[int, int]) -> Image.Image:
    width, height = (round(_RENDERED * side) for side in size)
    try:
        # Without a resolution, resvg gives drawings that are measured in mm or pt no size at all.
        png = load_svg_renderer()(
            svg_path=str(path), width=width, height=height, dpi=96.0, skip_system_fonts=True
        )
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (ValueError, OSError) as e:
        raise ValueError(f"The artwork {path} cannot be rendered: {e}.") from e


def _read_png(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"The artwork {path} is damaged or cut off: {e}.") from e
