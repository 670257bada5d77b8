"""Files that a data set is made from: which of them count, and the licence that lies beside each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

# What macOS and Windows leave in folders; such files are skipped and counted.
_SYSTEM_NAMES = ("__macosx", ".ds_store", "thumbs.db", "desktop.ini")
_LICENCE_STEMS = ("licence", "license", "copying", "copyright", "credits", "notice", "ofl")
_LICENCE_SUFFIXES = ("", ".txt", ".md", ".rst")


def is_system_file(path: Path) -> bool:
    """Whether macOS or Windows made the file or folder, such as `._picture.png` or `Thumbs.db`."""
    return path.name.startswith("._") or path.name.lower() in _SYSTEM_NAMES


class UnusableFileError(Exception):
    """A file is skipped; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class OwnFile:
    """A file of one of the user's folders."""

    path: Path
    name: str  # "<folder>/<path inside it>"
    licence: Path | None = None  # the licence file nearest to it
    licence_name: str | None = None  # named like the file itself

    def credit(self) -> dict[str, str | None]:
        """What the manifest says about it."""
        return {"file": self.name, "licence": self.licence_name}


def own_file(path: Path, root: Path) -> OwnFile:
    """A file in or under the folder `root`, with its licence.

    The licence is `<file>.license` (as REUSE has it), or else the nearest file named LICENSE, COPYING,
    copyright or the like, in the file's folder or one above it up to `root`.
    """
    sidecar = path.with_name(f"{path.name}.license")
    licence = sidecar if sidecar.is_file() else _licence_of(path.parent, root)
    name = _name(path, root)
    return OwnFile(path, name, licence, _name(licence, root) if licence else None)


def _name(path: Path, root: Path) -> str:
    return f"{root.resolve().name}/{path.relative_to(root).as_posix()}"


@cache
def _licence_of(folder: Path, root: Path) -> Path | None:
    for path in sorted(folder.iterdir()):
        stem = path.name.lower().split(".")[0]
        if stem in _LICENCE_STEMS and path.suffix.lower() in _LICENCE_SUFFIXES and path.is_file():
            return path
    return _licence_of(folder.parent, root) if folder != root else None
