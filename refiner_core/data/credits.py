"""Credits of the user's files that a data set is made of, with the texts of their licences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..storage.output_files import write_text
from .source_files import OwnFile

CREDITS = "credits.json"
_LONGEST = 1 << 18  # characters of a licence that are kept


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
    write_text(folder / CREDITS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
