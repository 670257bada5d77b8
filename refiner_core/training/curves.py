"""Plots the losses, rewards and held-out metrics from the logs of training runs."""

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
    """All values in a run's `log.jsonl`, by name and step.

    A line that a crash cut off is ignored, and of steps that were repeated after one the last counts.

    Raises:
        ValueError: there is no log, or it holds nothing to plot.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is not a training run: it has no log.jsonl.")
    curves: Curves = {}
    for line in path.read_text().splitlines():
        row = _row(line)
        for key, value in row.items():
            if key.startswith(_SHOWN) and isinstance(value, (int, float)):
                curves.setdefault(key, {})[int(row["step"])] = float(value)
    if not curves:
        raise ValueError(f"{path} has no losses, rewards or held-out metrics yet.")
    return curves


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def draw_curves(runs: Sequence[Path], out: Path) -> None:
    """Plot one panel per value and one line per run.

    Args:
        out: a .png, .svg or .pdf file.

    Raises:
        ValueError: a folder is not a training run, or `out` has another suffix.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"Curves are written as .png, .svg or .pdf, not as {out.name}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ModuleNotFoundError(
            "Plotting curves needs matplotlib: pip install matplotlib."
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
