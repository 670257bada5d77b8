"""What is in a data set, as one HTML page without external files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .html_page import image_url, render_page

Entry = Mapping[str, Any]
Counts = list[tuple[str, int]]


@dataclass(frozen=True)
class _Card:
    """One table of the page."""

    title: str
    rows: Counts
    wide: bool = False  # for long texts

    @property
    def largest(self) -> int:
        """The count whose bar has full length."""
        return max((n for _, n in self.rows), default=1) or 1


def _count(entries: Iterable[Entry], value: Callable[[Entry], Any]) -> Counts:
    return Counter(str(value(e)) for e in entries).most_common(20)


def _histogram(values: Sequence[float], edges: Sequence[float], unit: str) -> Counts:
    counts, _ = np.histogram(values, [*edges, np.inf])
    names = [f"{a:g} to {b:g} {unit}" for a, b in zip(edges, [*edges[1:], None], strict=True) if b]
    return list(zip([*names, f"over {edges[-1]:g} {unit}"], map(int, counts), strict=True))


def _degradation(entry: Entry) -> str:
    return str(entry.get("degradation", {}).get("name", "unknown"))


def _reason(entry: Entry) -> str:
    """A rejection's reason without its numbers, so that like ones are counted together."""
    return f"{entry['stage']}: " + re.sub(r"-?\d+(\.\d+)?%?", "#", str(entry["reason"]))[:90]


def _size(entry: Entry) -> str:
    width, height = entry.get("size", ("?", "?"))
    return f"{width}x{height}"


def _origin(entry: Entry) -> str:
    return f"{entry.get('source', 'unknown')}: {entry.get('licence', 'unknown')}"


def _splits_by_identity(entries: Sequence[Entry]) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for e in entries:
        splits.setdefault(str(e.get("identity", e["id"])), set()).add(str(e["split"]))
    return splits


def _cards(entries: Sequence[Entry], rejected: Sequence[Entry]) -> list[_Card]:
    changes = [e["degradation"]["change"] for e in entries if "change" in e.get("degradation", {})]
    areas = [100 * float(e["mask_area"]) for e in entries if "mask_area" in e]
    return [
        _Card("Splits", _count(entries, lambda e: e["split"])),
        _Card("Degradations", _count(entries, _degradation)),
        _Card("Kinds", _count(entries, lambda e: e.get("kind", "unknown"))),
        _Card("Picture sizes", _count(entries, _size)),
        _Card("Mask's share of the picture", _histogram(areas, (0, 1, 2, 5, 10, 20, 40, 60), "%")),
        _Card("Change in the mask, mean of 255", _histogram(changes, (0, 2, 5, 10, 20, 40), "")),
        _Card("Source and licence", _count(entries, _origin), wide=True),
        _Card(f"Rejected: {len(rejected)}", _count(rejected, _reason), wide=True),
    ]


def statistics_page(
    folder: Path, entries: Sequence[Entry], rejected: Sequence[Entry], sheet: Image.Image
) -> str:
    """The page: counts, shares, histograms, reasons of rejection and a contact sheet.

    Args:
        folder: the data set, for the title.
        entries: its manifest.
        rejected: its rejected samples.
        sheet: a contact sheet.

    Raises:
        ModuleNotFoundError: Jinja2 is not installed.
    """
    shards = {str(e["shard"]) for e in entries}
    size = sum((folder / s).stat().st_size for s in shards if (folder / s).is_file())
    splits = _splits_by_identity(entries)
    return render_page(
        Path(__file__).with_name("statistics.html.j2"),
        name=folder.resolve().name,
        triplets=len(entries),
        shards=len(shards),
        megabytes=size / 1e6,
        rejected=len(rejected),
        cards=_cards(entries, rejected),
        identities=len(splits),
        shared=[name for name, found in splits.items() if len(found) > 1],
        sheet=image_url(sheet, quality=80),
    )
