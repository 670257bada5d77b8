"""The evaluation as one HTML file without external files: tables, plots and pictures of the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.html_page import image_url, render_page
from ..data.triplets import Triplet
from ..images.image_io import load_picture
from ..images.tensors import to_dtype, to_float
from ..scoring.heatmap import difference_heat, draw_heat
from ..storage.output_files import write_text
from .evaluation_settings import ALIGNED, DRAFT, REFINED, Outcome
from .metric import Column, EvaluationCase, cut, region_box
from .plots import bars, scatter
from .tables import PAPER, Summary, degradation, format_cell, ranking, summarise, worst_first

_TILE = 228  # px: longer side of a picture in the report
_CONTEXT = 1.6  # of the region's box: how much of the surroundings the pictures show
_HOTTEST = 0.35  # difference drawn hottest, of the full range


class _Tile(NamedTuple):
    """A picture of the report."""

    name: str
    url: str
    width: int
    height: int


class _Cell(NamedTuple):
    """A cell of the summary."""

    text: str
    best: bool
    cases: int  # that have the value


def _tile(pixels: Tensor, name: str) -> _Tile:
    """uint8 1 3 H W with a longer side of `_TILE` px."""
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    return _Tile(name, image_url(resized, quality=88), *size)


def _read_refined(folder: Path, case: EvaluationCase) -> Tensor | None:
    path = folder / "cases" / case.id / "refined.png"
    if not path.is_file():
        return None
    pixels = to_dtype(to_float(load_picture(path, "result").pixels), torch.uint8)
    return pixels if pixels.shape == case.draft.shape else None


def _pictures(folder: Path, triplet: Triplet) -> tuple[list[_Tile], list[_Tile]]:
    """One case's region as draft, reference, refined, target and heatmap; and the slider's two."""
    case = EvaluationCase.of(triplet)
    box = region_box(case.mask, _CONTEXT)
    refined = _read_refined(folder, case)
    tiles = [_tile(cut(case.draft, box), DRAFT), _tile(case.reference_crop, "reference")]
    if refined is None:
        return tiles, []
    tiles.append(_tile(cut(refined, box), REFINED))
    other, title = case.draft, "changed against the draft"
    if case.target is not None:
        other, title = case.target, "refined against the target"
        tiles.append(_tile(cut(case.target, box), "target"))
    heat = difference_heat(cut(refined, box), cut(other, box))
    drawn = draw_heat(to_float(cut(refined, box)), heat, _HOTTEST)
    tiles.append(_tile(to_dtype(drawn, torch.uint8), title))
    return tiles, [tiles[0], tiles[2]]


def _best(summary: Summary, column: Column) -> float | None:
    means = [m for m in (row[column.key].mean for row in summary.values()) if m is not None]
    if not means:
        return None
    return max(means) if column.higher else min(means)


def _summary(outcome: Outcome, columns: Sequence[Column]) -> list[dict[str, Any]]:
    summary = summarise(outcome, columns)
    best = {c.key: _best(summary, c) for c in columns}
    rows = []
    for system, row in summary.items():
        cells = []
        for c in columns:
            mean, count = row[c.key].mean, row[c.key].count
            is_best = mean is not None and mean == best[c.key]
            cells.append(_Cell(format_cell(row[c.key], c), is_best, count))
        rows.append({"system": system, "cells": cells})
    return rows


def _coverage(outcome: Outcome, columns: Sequence[Column]) -> str:
    """The columns in which not every case has a value, with the number of cases that do."""
    row, total = summarise(outcome, columns)[REFINED], len(outcome.measured)
    counts = ((c.title, row[c.key].count) for c in columns)
    return "; ".join(f"{title}: {count} of {total}" for title, count in counts if count < total)


def _groups(outcome: Outcome, column: Column) -> list[dict[str, Any]]:
    """Means by degradation, if the data set names at least two."""
    names = sorted({degradation(c) for c in outcome.measured} - {""})
    if len(names) < 2:
        return []
    groups = []
    for name in names:
        cases = [c for c in outcome.measured if degradation(c) == name]
        cells = []
        for system in outcome.systems:
            values = [c["scores"].get(system, {}).get(column.key) for c in cases]
            known = [v for v in values if v is not None]
            cells.append(f"{np.mean(known):.{column.digits}f}" if known else "")
        groups.append({"name": name, "count": len(cases), "cells": cells})
    return groups


def _plots(outcome: Outcome, columns: Sequence[Column], column: Column) -> list[str]:
    def pairs(first: str) -> list[tuple[float, float, str]]:
        points = []
        for case in outcome.measured:
            a, b = (case["scores"].get(s, {}).get(column.key) for s in (first, REFINED))
            if a is not None and b is not None:
                points.append((a, b, case["id"]))
        return points

    summary = summarise(outcome, columns)
    means = {s: row[column.key].mean for s, row in summary.items()}
    title = f"{column.title}, {'higher' if column.higher else 'lower'} is better"
    known = {s: m for s, m in means.items() if m is not None}
    return [
        bars(known, title, column.digits),
        scatter(pairs(DRAFT), f"{title}: every case", DRAFT, REFINED),
        scatter(pairs(ALIGNED), f"{title}: every case", ALIGNED, REFINED),
    ]


def _caption(case: Mapping[str, Any], columns: Sequence[Column]) -> str:
    row = case["scores"].get(REFINED, {})
    values = [(c, row.get(c.key)) for c in columns]
    figures = ", ".join(f"{c.title} {v:.{c.digits}f}" for c, v in values if v is not None)
    what = ", ".join(x for x in (str(case["info"].get("kind", "")), degradation(case)) if x)
    return f"{what} seed {case['seed']}: {figures}"


def _case(
    outcome: Outcome, case: Mapping[str, Any], triplet: Triplet, columns: Sequence[Column]
) -> dict[str, Any]:
    tiles, slider = _pictures(outcome.settings.out, triplet)
    caption = _caption(case, columns)
    return {"id": case["id"], "caption": caption, "tiles": tiles, "slider": slider}


def write_report(
    path: Path,
    outcome: Outcome,
    columns: Sequence[Column],
    triplets: Mapping[str, Triplet],
    described: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write the report, completely or not at all.

    Args:
        path: the HTML file.
        outcome: what was measured.
        columns: of the tables.
        triplets: the cases whose pictures are shown, by id; the others only count in the tables.
        described: what each metric used.
        notes: what could not be measured, and why.

    Raises:
        ModuleNotFoundError: Jinja2 is not installed.
    """
    column = ranking(outcome, columns)
    shown = [c for c in worst_first(outcome, column) if c["id"] in triplets]
    page = render_page(
        Path(__file__).with_name("report.html.j2"),
        data=str(outcome.settings.data),
        count=len(outcome.measured),
        columns=columns,
        systems=outcome.systems,
        summary=_summary(outcome, columns),
        paper=PAPER,
        coverage=_coverage(outcome, columns),
        notes=notes,
        plots=[] if column is None else _plots(outcome, columns, column),
        ranking="" if column is None else column.title,
        groups=[] if column is None else _groups(outcome, column),
        failed=outcome.failed,
        cases=[_case(outcome, c, triplets[c["id"]], columns) for c in shown],
        described=described,
    )
    write_text(path, page)
