"""The evaluation's figures: means per system, one CSV row per case and system, and one JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.output_files import write_text
from .evaluation_settings import REFINED, Outcome
from .metric import Column

PAPER = "paper (its own data)"
# Cases are sorted by the first of these columns that has values.
_RANKING = ("dreamsim_crop", "structure_crop", "psnr", "dreamsim_reference", "dinov2_reference")


@dataclass(frozen=True)
class Cell:
    """A mean over the cases that have the value."""

    mean: float | None  # None if no case has it
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
    """The column by which cases are sorted, or None without any value."""
    for key in _RANKING:
        column = next((c for c in columns if c.key == key), None)
        if column and any(_value(c, key) is not None for c in outcome.measured):
            return column
    return None


def _value(case: Mapping[str, Any], key: str) -> float | None:
    return case["scores"].get(REFINED, {}).get(key)


def worst_first(outcome: Outcome, column: Column | None) -> list[dict[str, Any]]:
    """The cases by the value of the refined result, worst first; those without one last."""
    if column is None:
        return list(outcome.measured)

    def rank(case: dict[str, Any]) -> tuple[bool, float]:
        value = _value(case, column.key)
        return (value is None, 0.0 if value is None else (value if column.higher else -value))

    return sorted(outcome.measured, key=rank)


def degradation(case: Mapping[str, Any]) -> str:
    """How the draft was degraded, if the data set says so."""
    note = case["info"].get("degradation", "")
    return str(note.get("name", "") if isinstance(note, Mapping) else note)


def write_csv(path: Path, outcome: Outcome, columns: Sequence[Column]) -> None:
    """One row per case and system; a cell is empty where there is no value."""
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
    write_text(path, stream.getvalue())


def write_json(
    path: Path,
    outcome: Outcome,
    columns: Sequence[Column],
    described: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Settings with digests, descriptions of the metrics, notes, means, and every case."""
    run = json.loads((outcome.settings.out / "run.json").read_text(encoding="utf-8"))
    summary = summarise(outcome, columns)
    data = {
        **run,
        "metrics": dict(described),
        "notes": list(notes),
        "failed": outcome.failed,
        "summary": {
            s: {k: {"mean": c.mean, "cases": c.count} for k, c in row.items()}
            for s, row in summary.items()
        },
        "paper": {c.key: c.paper for c in columns if c.paper is not None},
        "cases": outcome.measured,
    }
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False))


def text_table(outcome: Outcome, columns: Sequence[Column]) -> str:
    """The summary for a terminal, in Markdown."""
    summary = summarise(outcome, columns)
    lines = [
        "| system | " + " | ".join(c.title for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for system, row in summary.items():
        lines.append(
            f"| {system} | " + " | ".join(format_cell(row[c.key], c) for c in columns) + " |"
        )
    if any(c.paper is not None for c in columns):
        cells = ("" if c.paper is None else f"{c.paper:g}" for c in columns)
        lines.append(f"| {PAPER} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(cell: Cell, column: Column) -> str:
    """A mean with the column's number of digits."""
    return "" if cell.mean is None else f"{cell.mean:.{column.digits}f}"
