"""Folders of pictures: every kind of file that is read, and none of what systems leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .image_io import PICTURE_SUFFIXES, Picture, load_picture


class FolderPictures(NamedTuple):
    """The pictures of a folder that could be read, and what a person should know about the rest."""

    pictures: list[tuple[Path, Picture]]
    notes: tuple[str, ...]


def picture_files(folder: Path) -> list[Path]:
    """The picture files directly in a folder, by their names' suffixes, sorted by path.

    Hidden files are left out. Among them are the `._NAME` files that macOS writes to other disks,
    which have the suffix of a picture and are none.
    """
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def read_pictures(files: list[Path], limit: int | None = None) -> FolderPictures:
    """Read pictures as a viewer shows them, and leave out those that cannot be read.

    Args:
        files: in the order in which they are read.
        limit: how many pictures to read; None reads all.

    Raises:
        ValueError: none of them can be read; names the first.
    """
    pictures: list[tuple[Path, Picture]] = []
    unreadable: list[ValueError] = []
    for path in files:
        if limit is not None and len(pictures) == limit:
            break
        try:
            pictures.append((path, load_picture(path).composited()))
        except ValueError as e:
            unreadable.append(e)
    if files and not pictures:
        raise ValueError(f"None of {len(files)} pictures can be read. {unreadable[0]}")
    notes = _notes(pictures)
    if unreadable:
        notes.append(f"{len(unreadable)} files were left out. {' '.join(map(str, unreadable))}")
    return FolderPictures(pictures, tuple(notes))


def _notes(pictures: list[tuple[Path, Picture]]) -> list[str]:
    """What reading changed; what is the same for several pictures is said once, with their number."""
    names: dict[str, list[str]] = {}
    for path, picture in pictures:
        for note in picture.notes:
            names.setdefault(note, []).append(path.name)
    return [
        f"{where[0]}: {note}"
        if len(where) == 1
        else f"{len(where)} of {len(pictures)} pictures: {note}"
        for note, where in names.items()
    ]
