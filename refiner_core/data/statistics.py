"""What is in a data set, as one HTML page without outside files."""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Entry = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --bar: #4178c4; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 0 0 .4em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1.2em; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 1em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { padding: 1px 6px 1px 0; vertical-align: middle; } td.n { text-align: right; width: 4.5em; }
td.b { width: 40%; } .wide td.b { width: 12%; }
.bar { background: var(--bar); height: .8em; border-radius: 2px; min-width: 1px; }
.bad { color: #c22; font-weight: 600; } .good { color: #282; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); }
"""


def _bars(counts: Iterable[tuple[str, int]], wide: bool = False) -> str:
    rows = list(counts)
    most = max((n for _, n in rows), default=1) or 1
    cells = [
        f'<tr><td>{html.escape(name)}</td><td class="n">{n}</td>'
        f'<td class="b"><div class="bar" style="width:{100 * n / most:.1f}%"></div></td></tr>'
        for name, n in rows
    ]
    style = ' class="wide"' if wide else ""
    return f"<table{style}>{''.join(cells)}</table>"


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{html.escape(title)}</h2>{body}</section>'


def _counted(entries: Iterable[Entry], value: Callable[[Entry], Any]) -> list[tuple[str, int]]:
    return Counter(str(value(e)) for e in entries).most_common(20)


def _histogram(values: Sequence[float], edges: Sequence[float], unit: str) -> str:
    counts, _ = np.histogram(values, [*edges, np.inf])
    names = [f"{a:g} to {b:g} {unit}" for a, b in zip(edges, [*edges[1:], None], strict=True) if b]
    return _bars(zip([*names, f"over {edges[-1]:g} {unit}"], map(int, counts), strict=True))


def _degradation(entry: Entry) -> str:
    return str(entry.get("degradation", {}).get("name", "unknown"))


def _reason(entry: Entry) -> str:
    """A rejection's reason without its numbers, so that like ones are counted together."""
    return f"{entry['stage']}: " + re.sub(r"-?\d+(\.\d+)?%?", "#", str(entry["reason"]))[:90]


def _separation(entries: Sequence[Entry]) -> str:
    """Whether any identity is in two splits."""
    splits: dict[str, set[str]] = {}
    for e in entries:
        splits.setdefault(str(e.get("identity", e["id"])), set()).add(str(e["split"]))
    shared = [name for name, found in splits.items() if len(found) > 1]
    note = (
        f'<p class="bad">{len(shared)} identities are in several splits: {html.escape(shared[0])} ...</p>'
        if shared
        else '<p class="good">No identity is in two splits.</p>'
    )
    return f"<p>{len(splits)} identities in {len(entries)} samples.</p>{note}"


def picture_tag(image: Image.Image, text: str) -> str:
    """An image as part of the page."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/webp;base64,{data}">'


def statistics_page(
    folder: Path, entries: Sequence[Entry], rejected: Sequence[Entry], sheet: Image.Image
) -> str:
    """The page: counts, shares, histograms, reasons of rejection and a contact sheet.

    Args:
        folder: the data set, for the title.
        entries: its manifest.
        rejected: its rejected samples.
        sheet: a contact sheet.
    """
    shards = {str(e["shard"]) for e in entries}
    size = sum((folder / s).stat().st_size for s in shards if (folder / s).is_file())
    changes = [e["degradation"]["change"] for e in entries if "change" in e.get("degradation", {})]
    areas = [100 * float(e["mask_area"]) for e in entries if "mask_area" in e]
    cards = [
        _card("Splits", _bars(_counted(entries, lambda e: e["split"])) + _separation(entries)),
        _card("Degradations", _bars(_counted(entries, _degradation))),
        _card("Kinds", _bars(_counted(entries, lambda e: e.get("kind", "unknown")))),
        _card("Picture sizes", _bars(_counted(entries, _size))),
        _card("Mask's share of the picture", _histogram(areas, (0, 1, 2, 5, 10, 20, 40, 60), "%")),
        _card("Change in the mask, mean of 255", _histogram(changes, (0, 2, 5, 10, 20, 40), "")),
        _card("Source and licence", _bars(_counted(entries, _origin), wide=True)),
        _card(f"Left out: {len(rejected)}", _bars(_counted(rejected, _reason), wide=True)),
    ]
    name = html.escape(folder.resolve().name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style><h1>{name}</h1>"
        f"<p>{len(entries)} triplets in {len(shards)} shards, {size / 1e6:.1f} MB; "
        f"{len(rejected)} samples were left out.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
        f"<h2>Samples</h2><p>Reference, draft with the mask's edge, detail of the draft, true "
        f"detail.</p>{picture_tag(sheet, 'contact sheet')}</html>"
    )


def _size(entry: Entry) -> str:
    width, height = entry.get("size", ("?", "?"))
    return f"{width}x{height}"


def _origin(entry: Entry) -> str:
    return f"{entry.get('source', 'unknown')}: {entry.get('licence', 'unknown')}"
