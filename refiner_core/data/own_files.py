"""The user's own photographs, fonts and artwork, which procedural scenes are made of.

A folder is searched with all folders inside it. What cannot be used is skipped and counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from ..images.image_io import PICTURE_SUFFIXES
from .artwork import ARTWORK_SUFFIXES, check_artwork, check_picture, load_svg_renderer
from .fonts import FONT_SUFFIXES, Font, read_fonts
from .scripts import SCRIPTS
from .source_files import OwnFile, UnusableFileError, is_system_file, own_file

_MIN_PHOTO = 256  # px of the shorter side
_T = TypeVar("_T")


@dataclass(frozen=True)
class OwnFiles:
    """What procedural scenes are drawn with; where a kind is empty, with what comes built in."""

    photos: tuple[OwnFile, ...] = ()
    held_out_photos: tuple[OwnFile, ...] = ()  # for validation samples
    fonts: tuple[Font, ...] = ()
    artwork: tuple[OwnFile, ...] = ()

    def files(self) -> dict[str, list[OwnFile]]:
        """The files of each kind that is not empty."""
        kinds = {
            "photos": [*self.photos, *self.held_out_photos],
            "fonts": [f.file for f in self.fonts if f.file],
            "artwork": [*self.artwork],
        }
        return {kind: files for kind, files in kinds.items() if files}

    @cached_property
    def scripts(self) -> tuple[str, ...]:
        """The scripts that some font can write."""
        return tuple(s for s in SCRIPTS if self.fonts_of(s))

    def fonts_of(self, script: str) -> tuple[Font, ...]:
        """The fonts that can write a script."""
        return tuple(f for f in self.fonts if script in f.scripts)

    def settings(self) -> dict[str, str]:
        """A digest per kind; it changes when a file is added, removed, renamed or of another size."""
        return {kind: _digest(files) for kind, files in self.files().items()}


NO_FILES = OwnFiles()


def _digest(files: Sequence[OwnFile]) -> str:
    listed = sorted({(f.name, f.path.stat().st_size) for f in files})
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def find_own_files(
    photos: Sequence[Path], fonts: Sequence[Path], artwork: Sequence[Path], held_out: float
) -> tuple[OwnFiles, list[str]]:
    """What is in the folders of each kind, and a line about each that says what was skipped.

    Args:
        photos, fonts, artwork: the folders; none of a kind = what comes built in.
        held_out: share of the photographs that only validation samples show.

    Raises:
        ValueError: a folder does not exist, or has no file that can be used; names it.
        ModuleNotFoundError: a package that fonts or SVG files need is not installed.
    """
    lines: list[str] = []
    found = _find(
        "--photos", photos, PICTURE_SUFFIXES, partial(check_picture, least=_MIN_PHOTO), lines
    )
    shown, kept_back = _split(found, held_out)
    drawn_with = _find("--fonts", fonts, FONT_SUFFIXES, read_fonts, lines)
    pictures = _find("--artwork", artwork, ARTWORK_SUFFIXES, check_artwork, lines)
    if any(f.path.suffix.lower() == ".svg" for f in pictures):
        load_svg_renderer()  # fails here rather than at every sample
    return OwnFiles(shown, kept_back, tuple(drawn_with), tuple(pictures)), lines


def _find(
    option: str,
    folders: Sequence[Path],
    suffixes: Sequence[str],
    read: Callable[[OwnFile], Sequence[_T]],
    lines: list[str],
) -> list[_T]:
    """What `read` finds in the folders' files; adds a line about them to `lines`."""
    found: list[_T] = []
    skipped = Counter[str]()
    seen: set[Path] = set()
    for folder in folders:
        refused = Counter[str]()
        files = list(_listed(option, folder, suffixes))
        for file in files:
            if file.path.resolve() in seen:  # a link to a file that is there already
                continue
            seen.add(file.path.resolve())
            try:
                found += read(file)
            except UnusableFileError as e:
                refused[str(e)] += 1
        if refused.total() == len(files):
            raise ValueError(
                f"{option} {folder}: none of its {len(files)} files can be used "
                f"({_reasons(refused)})."
            )
        skipped += refused
    if folders:
        rest = f", {skipped.total()} skipped ({_reasons(skipped)})" if skipped else ""
        lines.append(f"{option}: {len(seen) - skipped.total()} files{rest}")
    return found


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in skipped.most_common())


def _listed(option: str, folder: Path, suffixes: Sequence[str]) -> Iterator[OwnFile]:
    """The files of these kinds in a folder and the folders inside it, in the order of their names.

    Raises:
        ValueError: the folder does not exist, or there is no such file.
    """
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: the folder does not exist.")
    count = 0
    for inside, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for name in sorted(names):
            path = Path(inside, name)
            if path.suffix.lower() in suffixes and not is_system_file(path) and path.is_file():
                count += 1
                yield own_file(path, folder)
    if not count:
        raise ValueError(f"{option} {folder}: the folder holds no file ({', '.join(suffixes)}).")


def _split(
    photos: Sequence[OwnFile], held_out: float
) -> tuple[tuple[OwnFile, ...], tuple[OwnFile, ...]]:
    """Those for training and those held out: at least one of each, unless nothing is held out."""
    if not held_out or not photos:
        return tuple(photos), ()
    if len(photos) < 2:
        raise ValueError(
            f"--photos has only one photograph, {photos[0].path}. Add another one, as validation "
            "samples need one that training does not show, or use --held-out 0."
        )
    count = max(1, min(round(held_out * len(photos)), len(photos) - 1))
    mixed = sorted(photos, key=lambda f: hashlib.blake2b(f.name.encode()).digest())
    back = {f.name for f in mixed[:count]}
    return tuple(f for f in photos if f.name not in back), tuple(mixed[:count])
