"""The course of runs as a picture: every loss, reward and held-out figure of their logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.output_files import atomic_path

_SHOWN = ("loss", "held_out/", "reward/")
_COLUMNS = 3
_PANEL = (4.0, 2.6)  # inches

Curves = dict[str, dict[int, float]]


def read_curves(run: Path) -> Curves:
    """Every figure of a run's `log.jsonl` by its step. A line that a crash cut off is left out; of
    steps that were made again after one, the last counts.

    Raises:
        ValueError: there is no log, or nothing in it to draw.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is no training run: it has no log.jsonl.")
    found: Curves = {}
    for line in path.read_text().splitlines():
        row = _row(line)
        for key, value in row.items():
            if key.startswith(_SHOWN) and isinstance(value, (int, float)):
                found.setdefault(key, {})[int(row["step"])] = float(value)
    if not found:
        raise ValueError(f"{path} has no loss, reward or held-out figures yet.")
    return found


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def draw_curves(runs: Sequence[Path], out: Path) -> None:
    """One panel a figure, one line a run, as a PNG (or SVG, PDF, by the name's end).

    Raises:
        ValueError: a folder is no training run, or a kind of picture that cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"Curves are drawn as .png, .svg or .pdf, not {out.name}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ModuleNotFoundError(
            "Curves are drawn by matplotlib: pip install 'omnirefiner[train]'."
        ) from e
    logs = {run: read_curves(run) for run in runs}
    keys = sorted({key for log in logs.values() for key in log}, key=_place)
    columns = min(_COLUMNS, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure((columns * _PANEL[0], lines * _PANEL[1]), layout="constrained")
    for number, key in enumerate(keys, 1):
        panel = figure.add_subplot(lines, columns, number)
        panel.set_title(key, fontsize="medium")
        panel.grid(alpha=0.3)
        for run, log in logs.items():
            if key in log:
                panel.plot(*zip(*sorted(log[key].items()), strict=True), label=_label(run, runs))
        if len(logs) > 1:
            panel.legend(fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=100)


def _label(run: Path, runs: Sequence[Path]) -> str:
    return run.name if sum(r.name == run.name for r in runs) == 1 else str(run)


def _place(key: str) -> tuple[int, str]:
    return next(i for i, start in enumerate(_SHOWN) if key.startswith(start)), key
