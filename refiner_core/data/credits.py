"""The user's files that a data set is made of, and the licences that lie beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..storage.output_files import atomic_path

CREDITS = "credits.json"
_STEMS = ("licence", "license", "copying", "copyright", "credits", "notice", "ofl")
_SUFFIXES = ("", ".txt", ".md", ".rst")
_LONGEST = 1 << 18  # characters of a licence that are kept


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
        if stem in _STEMS and path.suffix.lower() in _SUFFIXES and path.is_file():
            return path
    return _licence_of(folder.parent, root) if folder != root else None


def credits_of(files: Iterable[OwnFile | None]) -> list[dict[str, str | None]]:
    """The credits of the files that are there, each once, by name."""
    named = {f.name: f.credit() for f in files if f}
    return [named[name] for name in sorted(named)]


def write_credits(folder: Path, files: Sequence[OwnFile]) -> None:
    """Write `credits.json`: all files, and the text of every licence once."""
    texts = {f.licence_name: f.licence for f in files if f.licence_name and f.licence}
    content = {
        "files": credits_of(files),
        "licences": {name: _text(path) for name, path in sorted(texts.items())},
    }
    with atomic_path(folder / CREDITS) as path:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
