"""The evaluation as one HTML file that needs nothing else: tables, plots and every case's pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.triplets import Triplet
from ..images.image_io import load_picture
from ..images.tensors import to_dtype, to_float
from ..scoring.comparison import draw_heat
from ..scoring.pixels import difference_heat
from ..storage.output_files import atomic_path
from .evaluate import ALIGNED, DRAFT, REFINED, Outcome
from .metrics import Case, Column, cut, region_box
from .plots import bars, scatter
from .tables import PAPER, Cell, degradation, ranking, show, summarise, worst_first

_TILE = 228  # px: longer side of a picture in the report
_CONTEXT = 1.6  # of the region's box: what the pictures show
_HOTTEST = 0.35  # difference drawn hottest, of full scale

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --good: #2a9d5c; --dot: #2f6fde; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1500px; padding: 0 16px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin-top: 28px; }
table { border-collapse: collapse; } td, th { padding: 4px 10px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } thead th { border-bottom: 2px solid var(--line); }
tbody td, tbody th { border-bottom: 1px solid var(--line); font-weight: normal; }
.best { font-weight: bold; color: var(--good); } .paper td, .paper th { font-style: italic; opacity: .75; }
.scroll { overflow-x: auto; } .plots { display: flex; flex-wrap: wrap; gap: 16px; }
.plot { width: 420px; font-size: 11px; }
.plot text { fill: currentColor; } .plot .title { font-size: 13px; }
.plot line { stroke: var(--line); stroke-width: .6; }
.plot .even { stroke: currentColor; stroke-dasharray: 4; }
.plot circle { fill: var(--dot); fill-opacity: .65; } .plot rect { fill: var(--dot); }
.case { border-top: 1px solid var(--line); padding: 12px 0; } .case h3 { font-size: 14px; margin: 0 0 6px; }
.row { display: flex; flex-wrap: wrap; gap: 10px; } figure { margin: 0; } figcaption { font-size: 12px; }
img { display: block; image-rendering: auto; } .slider { position: relative; overflow: hidden; }
.slider .after { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut, 50%)); }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.slider i { position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
small { opacity: .75; font-weight: normal; } details pre { white-space: pre-wrap; }
"""

_SCRIPT = """
document.querySelectorAll('.slider input').forEach(input => input.addEventListener('input', () =>
  input.parentElement.style.setProperty('--cut', input.value + '%')));
"""


def _data_url(pixels: Tensor) -> tuple[str, int, int]:
    """uint8 1 3 H W as a picture of at most `_TILE` px, with its width and height."""
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode(), *size


def _img(pixels: Tensor, name: str, kind: str = "") -> str:
    url, width, height = _data_url(pixels)
    attribute = f' class="{kind}"' if kind else ""
    return f'<img{attribute} src="{url}" width="{width}" height="{height}" alt="{escape(name)}">'


def _figure(pixels: Tensor, name: str) -> str:
    return f"<figure>{_img(pixels, name)}<figcaption>{escape(name)}</figcaption></figure>"


def _slider(before: Tensor, after: Tensor) -> str:
    return (
        '<figure><div class="slider">' + _img(before, "draft") + _img(after, "refined", "after")
        + '<i></i><input type="range" min="0" max="100" value="50" aria-label="draft or refined">'
        "</div><figcaption>draft | refined: drag</figcaption></figure>"
    )  # fmt: skip


def _pictures(plan_out: Path, triplet: Triplet) -> str:
    """Draft, reference, refined, target and heatmap of one case, framed on its region."""
    case = Case.of(triplet)
    box = region_box(case.mask, _CONTEXT)
    folder = plan_out / "cases" / case.id
    refined = _read(folder / "refined.png", case)
    tiles = [_figure(cut(case.draft, box), DRAFT), _figure(case.reference_crop, "reference")]
    if refined is None:
        return '<div class="row">' + "".join(tiles) + "</div>"
    tiles.append(_figure(cut(refined, box), REFINED))
    against, title = case.draft, "changed against the draft"
    if case.target is not None:
        against, title = case.target, "refined against the target"
        tiles.append(_figure(cut(case.target, box), "target"))
    heat = difference_heat(cut(refined, box), cut(against, box))
    drawn = draw_heat(to_float(cut(refined, box)), heat, _HOTTEST)
    tiles.append(_figure(to_dtype(drawn, torch.uint8), title))
    tiles.append(_slider(cut(case.draft, box), cut(refined, box)))
    return '<div class="row">' + "".join(tiles) + "</div>"


def _read(path: Path, case: Case) -> Tensor | None:
    if not path.is_file():
        return None
    pixels = to_dtype(to_float(load_picture(path, "result").pixels), torch.uint8)
    return pixels if pixels.shape == case.draft.shape else None


def _best(summary: Mapping[str, Mapping[str, Cell]], column: Column) -> float | None:
    means = [row[column.key].mean for row in summary.values()]
    known = [m for m in means if m is not None]
    if not known:
        return None
    return max(known) if column.higher else min(known)


def _summary_table(outcome: Outcome, columns: Sequence[Column]) -> str:
    summary = summarise(outcome, columns)
    head = "".join(f"<th>{escape(c.title)} {'↑' if c.higher else '↓'}</th>" for c in columns)
    rows = []
    for system, row in summary.items():
        cells = ""
        for c in columns:
            cell = row[c.key]
            mark = (
                ' class="best"' if cell.mean is not None and cell.mean == _best(summary, c) else ""
            )
            count = f' title="over {cell.count} cases"' if cell.mean is not None else ""
            cells += f"<td{mark}{count}>{show(cell, c)}</td>"
        rows.append(f"<tr><th>{escape(system)}</th>{cells}</tr>")
    paper = "".join(f"<td>{'' if c.paper is None else f'{c.paper:g}'}</td>" for c in columns)
    rows.append(f'<tr class="paper"><th>{PAPER}</th>{paper}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th>system</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _coverage(outcome: Outcome, columns: Sequence[Column]) -> str:
    """Columns that not every case has a value in, with how many do."""
    summary, total = summarise(outcome, columns), len(outcome.measured)
    row = summary[REFINED]
    partly = [
        f"{c.title}: {row[c.key].count} of {total}" for c in columns if row[c.key].count < total
    ]
    return (
        f"<p><small>Cases with a value, refined: {escape('; '.join(partly))}.</small></p>"
        if partly
        else ""
    )


def _groups(outcome: Outcome, column: Column) -> str:
    """Means by what was done to the draft, if the data set says."""
    names = sorted({degradation(c) for c in outcome.measured} - {""})
    if len(names) < 2:
        return ""
    rows = []
    for name in names:
        cases = [c for c in outcome.measured if degradation(c) == name]
        cells = ""
        for system in outcome.systems:
            values = [c["scores"].get(system, {}).get(column.key) for c in cases]
            known = [v for v in values if v is not None]
            cells += f"<td>{np.mean(known):.{column.digits}f}</td>" if known else "<td></td>"
        rows.append(f"<tr><th>{escape(name)}</th><td>{len(cases)}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(s)}</th>" for s in outcome.systems)
    return (
        f"<h2>{escape(column.title)} by what was broken</h2><div class='scroll'><table><thead><tr>"
        f"<th>broken by</th><th>cases</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plots(outcome: Outcome, columns: Sequence[Column], column: Column) -> str:
    def pairs(first: str, key: str) -> list[tuple[float, float, str]]:
        found = []
        for case in outcome.measured:
            a, b = (case["scores"].get(s, {}).get(key) for s in (first, REFINED))
            if a is not None and b is not None:
                found.append((a, b, case["id"]))
        return found

    summary = summarise(outcome, columns)
    means = {s: row[column.key].mean for s, row in summary.items()}
    title = f"{column.title}, {'higher' if column.higher else 'lower'} is better"
    return "".join(
        [
            bars({s: m for s, m in means.items() if m is not None}, title, column.digits),
            scatter(pairs(DRAFT, column.key), f"{title}: every case", DRAFT, REFINED),
            scatter(pairs(ALIGNED, column.key), f"{title}: every case", ALIGNED, REFINED),
        ]
    )


def _case(
    outcome: Outcome, case: Mapping[str, Any], triplet: Triplet, columns: Sequence[Column]
) -> str:
    row = case["scores"].get(REFINED, {})
    values = [(c, row.get(c.key)) for c in columns]
    figures = ", ".join(f"{c.title} {v:.{c.digits}f}" for c, v in values if v is not None)
    what = ", ".join(x for x in (str(case["info"].get("kind", "")), degradation(case)) if x)
    return (
        f'<section class="case"><h3>{escape(case["id"])} <small>{escape(what)} seed {case["seed"]}: '
        f"{escape(figures)}</small></h3>{_pictures(outcome.plan.out, triplet)}</section>"
    )


def write_report(
    path: Path, outcome: Outcome, columns: Sequence[Column], triplets: Mapping[str, Triplet],
    described: Mapping[str, str], notes: Sequence[str],
) -> None:  # fmt: skip
    """Write the report.

    Args:
        triplets: the cases to show pictures of, by id; the others only count in the tables.
        described: what measured.
        notes: what could not be measured, and why.
    """
    column = ranking(outcome, columns)
    ordered = worst_first(outcome, column)
    shown = [c for c in ordered if c["id"] in triplets]
    order = f"worst first by {column.title}" if column else "in the data set's order"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>OmniRefiner evaluation</title><style>{_STYLE}</style>",
        f"<h1>OmniRefiner: {len(outcome.measured)} cases of {escape(str(outcome.plan.data))}</h1>",
        _summary_table(outcome, columns),
        "<p><small>Means over cases. ↑ higher is better, ↓ lower is better; bold: the best of this "
        "table. An exact match counts as 60 dB. The paper's figures are from its own test data, "
        "with metrics it does not fully specify: a yardstick, not a competitor.</small></p>",
        _coverage(outcome, columns),
        "".join(f"<p><small>{escape(n)}</small></p>" for n in notes),
    ]
    if column is not None:
        parts.append(f'<div class="plots">{_plots(outcome, columns, column)}</div>')
        parts.append(_groups(outcome, column))
    if outcome.failed:
        rows = "".join(f"<li>{escape(k)}: {escape(v)}</li>" for k, v in outcome.failed.items())
        parts.append(f"<h2>Left out</h2><ul>{rows}</ul>")
    parts.append(f"<h2>Cases, {escape(order)}</h2>")
    if len(shown) < len(ordered):
        parts.append(f"<p><small>Pictures of {len(shown)} of {len(ordered)} cases.</small></p>")
    parts += [_case(outcome, c, triplets[c["id"]], columns) for c in shown]
    listed = "".join(f"<li>{escape(k)}: {escape(v)}</li>" for k, v in described.items())
    parts.append(f"<details><summary>How it was measured</summary><ul>{listed}</ul></details>")
    parts.append(f"<script>{_SCRIPT}</script></html>")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
