"""Fonts: those of the training extra's packages, and what a font file can write."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .scripts import LATIN, SCRIPTS, needed_characters
from .source_files import OwnFile, UnusableFileError

FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_HAIRLINE = (
    300  # OpenType's weight class Light: its strokes vanish at the few pixels they have here
)
_SAMPLE = 12  # letters of a script that are drawn to see whether the font has more than empty boxes
_SAMPLE_SIZE = 24  # px
_NOT_A_CHARACTER = "\U0010ffff"  # every font draws its sign for a missing letter


@dataclass(frozen=True)
class Font:
    """A font: a file, or one of the fonts in a collection file."""

    path: str
    index: int = 0  # in a collection file
    scripts: tuple[str, ...] = (LATIN,)  # of `scripts.SCRIPTS`: those it has every character of
    file: OwnFile | None = None  # None = a font of the training extra


@cache
def bundled_fonts() -> tuple[str, ...]:
    """Paths of the scalable fonts of the training extra's `font-*` packages, or none.

    Without them Pillow's own bundled font is used, so drawing works on a bare install.
    """
    try:
        from fonts import ttf  # type: ignore[import-not-found]
    except ImportError:
        return ()
    found = [p for p in vars(ttf).values() if isinstance(p, str) and p.endswith((".ttf", ".otf"))]
    # Hairline weights vanish at the few pixels that a stroke has here.
    usable = (p for p in set(found) if not any(w in p for w in ("Thin", "Light", "Amatic")))
    return tuple(sorted(p for p in usable if Path(p).is_file()))


def load_font(font: Font | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font at `size` px, or Pillow's bundled one when `font` is None."""
    if font is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(font.path, size, font.index)


def read_fonts(file: OwnFile) -> list[Font]:
    """The fonts of a file that words can be drawn with.

    Raises:
        UnusableFileError: there is none; gives the reason.
        ModuleNotFoundError: fontTools is not installed.
    """
    library = _font_library()
    fonts, reasons = [], []
    try:
        for index, tables in enumerate(_open(library, file.path)):
            reason, scripts = _assess(str(file.path), index, tables)
            if reason:
                reasons.append(reason)
            else:
                fonts.append(Font(str(file.path), index, scripts, file))
    except (library.TTLibError, OSError, ValueError, KeyError, AssertionError, struct.error) as e:
        raise UnusableFileError("unreadable") from e
    if not fonts:
        raise UnusableFileError(reasons[0] if reasons else "unreadable")
    return fonts


def _font_library() -> Any:
    try:
        from fontTools import ttLib
    except ImportError as e:
        raise ModuleNotFoundError(
            "--fonts needs fontTools: pip install fonttools (the pack's extra train)."
        ) from e
    return ttLib


def _open(library: Any, path: Path) -> Iterator[Any]:
    """The font's tables, of a collection those of each font."""
    if path.suffix.lower() in (".ttc", ".otc"):
        with library.TTCollection(path, lazy=True) as collection:
            yield from collection.fonts
    else:
        with library.TTFont(path, lazy=True) as font:
            yield font


def _assess(path: str, index: int, tables: Any) -> tuple[str | None, tuple[str, ...]]:
    """Why a font cannot be used, or None; and the scripts it can write."""
    weight = tables["OS/2"].usWeightClass if "OS/2" in tables else None
    if weight is not None and 10 < weight <= _HAIRLINE:  # very old fonts count from 1 to 9
        return "of a weight too light to see", ()
    names = tables.getBestCmap() or {}
    known = {chr(code) for code, glyph in names.items() if glyph != ".notdef"}
    scripts = tuple(s for s in SCRIPTS if known.issuperset(needed_characters(s)))
    drawing = ImageFont.truetype(path, _SAMPLE_SIZE, index)
    scripts = tuple(s for s in scripts if _draws(drawing, s))
    return (None, scripts) if scripts else ("without all letters of a script", ())


def _draws(font: ImageFont.FreeTypeFont, script: str) -> bool:
    """Whether the letters leave ink, and different ink: not the same box for each of them."""
    characters = needed_characters(script)
    sample = characters[:: max(1, len(characters) // _SAMPLE)]
    empty, missing = _ink(font, ""), _ink(font, _NOT_A_CHARACTER)
    inks = [_ink(font, c) for c in sample]
    return not {empty, missing}.intersection(inks) and len(set(inks)) > len(inks) // 2


def _ink(font: ImageFont.FreeTypeFont, text: str) -> bytes:
    image = Image.new("L", (2 * _SAMPLE_SIZE, 2 * _SAMPLE_SIZE))
    ImageDraw.Draw(image).text((_SAMPLE_SIZE // 2, 0), text, 255, font)
    return image.tobytes()
