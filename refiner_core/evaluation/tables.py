"""The evaluation's numbers in files: means per system, one CSV row a case and system, one JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.output_files import atomic_path
from .evaluate import REFINED, Outcome
from .metrics import Column

PAPER = "paper (its own data)"
# What cases are sorted by: the first of these that has values.
_RANKING = ("dreamsim_crop", "structure_crop", "psnr", "dreamsim_reference", "dinov2_reference")


@dataclass(frozen=True)
class Cell:
    """A mean over the `count` cases that have the value; None where none has."""

    mean: float | None
    count: int


Summary = dict[str, dict[str, Cell]]


def summarise(outcome: Outcome, columns: Sequence[Column]) -> Summary:
    """Means per system and column."""
    table: Summary = {}
    for system in outcome.systems:
        rows = [c["scores"][system] for c in outcome.measured if system in c["scores"]]
        table[system] = {}
        for column in columns:
            values = [v for v in (r.get(column.key) for r in rows) if v is not None]
            mean = sum(values) / len(values) if values else None
            table[system][column.key] = Cell(mean, len(values))
    return table


def ranking(outcome: Outcome, columns: Sequence[Column]) -> Column | None:
    """The column by which cases are sorted, None if there is no value anywhere."""
    for key in _RANKING:
        column = next((c for c in columns if c.key == key), None)
        if column and any(_value(c, key) is not None for c in outcome.measured):
            return column
    return None


def _value(case: Mapping[str, Any], key: str) -> float | None:
    return case["scores"].get(REFINED, {}).get(key)


def worst_first(outcome: Outcome, column: Column | None) -> list[dict[str, Any]]:
    """The cases by the refined result's value, worst first; those without one last."""
    if column is None:
        return list(outcome.measured)

    def rank(case: dict[str, Any]) -> tuple[bool, float]:
        value = _value(case, column.key)
        return (value is None, 0.0 if value is None else (value if column.higher else -value))

    return sorted(outcome.measured, key=rank)


def degradation(case: Mapping[str, Any]) -> str:
    """What was done to the draft, as far as the data set says."""
    found = case["info"].get("degradation", "")
    return str(found.get("name", "") if isinstance(found, Mapping) else found)


def write_csv(path: Path, outcome: Outcome, columns: Sequence[Column]) -> None:
    """One row a case and system; an empty cell where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "system", "seed", "kind", "degradation", *(c.key for c in columns)])
    for case in outcome.measured:
        for system in outcome.systems:
            row = case["scores"].get(system)
            if row is not None:
                values = [row.get(c.key) for c in columns]
                head = [case["id"], system, case["seed"], case["info"].get("kind", "")]
                cells = ["" if v is None else repr(v) for v in values]
                writer.writerow([*head, degradation(case), *cells])
    with atomic_path(path) as temporary:
        temporary.write_text(stream.getvalue(), encoding="utf-8")


def write_json(
    path: Path, outcome: Outcome, columns: Sequence[Column], described: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Everything: settings with hashes, what measured, notes, means, and every case."""
    run = json.loads((outcome.plan.out / "run.json").read_text(encoding="utf-8"))
    summary = summarise(outcome, columns)
    data = {
        **run, "metrics": dict(described), "notes": list(notes), "failed": outcome.failed,
        "summary": {
            s: {k: {"mean": c.mean, "cases": c.count} for k, c in row.items()}
            for s, row in summary.items()
        },
        "paper": {c.key: c.paper for c in columns if c.paper is not None},
        "cases": outcome.measured,
    }  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    return data


def text_table(outcome: Outcome, columns: Sequence[Column]) -> str:
    """The summary for a terminal, in Markdown."""
    summary = summarise(outcome, columns)
    lines = [
        "| system | " + " | ".join(c.title for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for system, row in summary.items():
        lines.append(f"| {system} | " + " | ".join(show(row[c.key], c) for c in columns) + " |")
    if any(c.paper is not None for c in columns):
        cells = ("" if c.paper is None else f"{c.paper:g}" for c in columns)
        lines.append(f"| {PAPER} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(cell: Cell, column: Column) -> str:
    """A mean for people."""
    return "" if cell.mean is None else f"{cell.mean:.{column.digits}f}"
