"""What the benchmark `objectives` measures of every row, and its table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refiner_core.evaluation.cases import open_cases
from refiner_core.images.masks import bounds
from refiner_core.models.core_engine import CoreEngine
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO
from refiner_core.scoring.text import TextReader, characters_read
from refiner_core.storage.output_files import atomic_path
from refiner_core.training.compare import (
    HELD_OUT_CROPS,
    held_out_scenes,
    interval,
    is_lower_better,
    measure,
    repairs,
)
from refiner_core.training.crop_triplet import crop_triplet
from refiner_core.training.dataset import Pixels
from refiner_core.training.export import fingerprint
from refiner_core.training.reward import seam_reward

CONTROL, START = "sft", "embedded"
_LEAST_LETTERS = 3
_PARTS = {"seam": seam_reward}
Metrics = Mapping[str, np.ndarray]  # one value per case, NaN where a case has none


@dataclass(frozen=True)
class Cost:
    """What a row cost: the seconds that were asked for and spent, updates, and peak memory in GB."""

    asked: float
    seconds: float
    updates: int
    memory: float


@dataclass(frozen=True)
class Found:
    """A row of the table: its name, seed and cost, and its metrics by the kind of cases."""

    name: str
    seed: int | None
    cost: Cost
    metrics: Mapping[str, Metrics]


class Lettering:
    """What a recognizer reads in the targets of cases and in repairs, within the region's box.

    Reading takes seconds a picture, so targets are read once, and repairs only where a target has at
    least three characters; fewer are mostly specks of a pattern.
    """

    def __init__(self, path: Path, cases: Mapping[str, Sequence[Pixels]]) -> None:
        """Read the targets of the cases by kind, or find what was read in the file `path`."""
        self.reader, self.cases = TextReader(), cases
        self.wanted: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
        for kind, pictures in cases.items():
            read = self.wanted.setdefault(kind, [])
            for p in pictures[len(read) :]:
                read.append(self._read(p.target, p))
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(self.wanted))

    def _read(self, picture: Tensor, p: Pixels) -> str:
        box = bounds(p.mask)
        assert box is not None, "crops are made around a region"
        return self.reader.read(picture[..., box.y0 : box.y1, box.x0 : box.x1])

    def measure(self, engine: CoreEngine, kind: str, first: int = 0) -> Metrics:
        """The share of each target's characters that are read in the repair, from case `first` on; NaN
        where no lettering is looked for.
        """
        cases = self.cases[kind]
        wanted = self.wanted[kind][: len(cases)]
        chosen = [i for i in range(first, len(cases)) if len(wanted[i]) >= _LEAST_LETTERS]
        shares = np.full(len(cases), np.nan)
        repaired = repairs(engine, ((i, cases[i]) for i in chosen))
        for i, (p, image) in zip(chosen, repaired, strict=True):
            shares[i] = characters_read(wanted[i], self._read(image, p))
        return {"text": shares[first:]}


class Cases:
    """The cases that every row is measured on: drawn scenes, and real ones if there are any."""

    def __init__(self, out: Path, count: int, workers: int, real: str | None, text: int) -> None:
        """Draw `count` scenes and crop the cases with targets in the folder `real`, or find them in
        `out`; lettering is read in the first `text` cases of a kind.
        """
        self.cases = {"drawn": _kept(out / f"drawn-{count}.pt", held_out_scenes, count, workers)}
        if real is not None:
            self.cases["real"] = _kept(out / "real.pt", _crop_all, Path(real))
        first = {kind: cases[:text] for kind, cases in self.cases.items()}
        self.lettering = Lettering(out / "lettering.json", first) if text else None

    def measure(self, refiner: Path, folder: Path) -> dict[str, Metrics]:
        """All metrics of a refiner by kind of cases; what is kept in `folder` is not measured again."""
        engine = load_nano(path=refiner)
        kept = _Kept(folder / "measured.json", fingerprint(refiner))
        found: dict[str, Metrics] = {}
        for kind, cases in self.cases.items():
            found[kind] = kept.metrics(
                kind,
                len(cases),
                lambda at, cases=cases: measure(engine, cases[at:], further=_PARTS, first_seed=at),
            )
        if self.lettering is None:
            return found
        texts = _Kept(folder / "lettering.json", fingerprint(refiner))
        for kind, cases in self.lettering.cases.items():
            read = partial(self.lettering.measure, engine, kind)
            shares = np.full(len(self.cases[kind]), np.nan)
            shares[: len(cases)] = texts.metrics(kind, len(cases), read)["text"]
            found[kind] = {**found[kind], "text": shares}
        return found


class _Kept:
    """Metrics of a refiner in a file, by kind of cases; more cases are added to those of before."""

    def __init__(self, path: Path, refiner: str) -> None:
        self.path = path
        self.content: dict[str, Any] = {"refiner": refiner, "metrics": {}}
        if path.is_file() and (old := json.loads(path.read_text()))["refiner"] == refiner:
            self.content = old

    def metrics(self, kind: str, count: int, make: Callable[[int], Metrics]) -> Metrics:
        """The metrics of the first `count` cases; `make` measures those from a number on."""
        lists: dict[str, list[float]] = self.content["metrics"].setdefault(kind, {})
        have = len(next(iter(lists.values()), []))
        if have < count:
            for name, values in make(have).items():
                lists.setdefault(name, []).extend(values.tolist())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.content))
        return {name: np.array(values[:count], float) for name, values in lists.items()}


def _kept(path: Path, make: Callable[..., list[Pixels]], *arguments: Any) -> list[Pixels]:
    """The cases in a file, which is written if there is none."""
    if not path.is_file():
        rows = [[p.target, p.draft, p.reference, p.mask] for p in make(*arguments)]
        with atomic_path(path) as temporary:
            torch.save(rows, temporary)
    return [Pixels(*row) for row in torch.load(path, weights_only=True)]


def _crop_all(folder: Path) -> list[Pixels]:
    cases = open_cases(folder)
    triplets = [cases.load(i) for i in range(len(cases.ids))]
    return [crop_triplet(t, NANO, HELD_OUT_CROPS, 0)[0] for t in triplets if t.target is not None]


def gains(control: Metrics, row: Metrics) -> dict[str, np.ndarray]:
    """How much better a row is than the control, case by case; cases without a value are left out."""
    out: dict[str, np.ndarray] = {}
    for name in control:
        gain = (row[name] - control[name]) * (-1 if is_lower_better(name) else 1)
        out[name] = gain[np.isfinite(gain)]
    return out


def describe(rows: Sequence[Found], chosen: argparse.Namespace) -> str:
    """The gain of every row over the control of the same seed, with its interval, as Markdown; and
    that of every way to learn over the weights that all of them start from.
    """
    lines = [
        f"{chosen.seconds} s for each row. Gains (positive is better) have a 95 % paired bootstrap "
        "interval over cases; those of several seeds are averaged over the seeds first."
    ]
    for kind in rows[0].metrics:
        count = len(next(iter(rows[0].metrics[kind].values())))
        lines += ["", f"## {count} {kind} cases", ""]
        lines += [
            f"Means of {CONTROL}, and the gain of other rows over {CONTROL} of the same seed:",
            "",
        ]
        lines += _rows_over_control(rows, kind)
        lines += [
            "",
            "Gain over the weights that all rows start from, averaged over the seeds:",
            "",
        ]
        lines += _gain_over_start(rows, kind)
    return "\n".join(lines) + "\n"


def _head(metrics: Sequence[str], *further: str) -> list[str]:
    names = ["row", *further, *metrics]
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _rows_over_control(rows: Sequence[Found], kind: str) -> list[str]:
    metrics = list(rows[0].metrics[kind])
    controls = {row.seed: row.metrics[kind] for row in rows if row.name == CONTROL}
    lines = _head(metrics, "s", "updates", "GB")
    together: dict[str, list[Metrics]] = {}
    for row in rows:
        if row.name == CONTROL:
            means = [
                np.nanmean(v) if np.isfinite(v).any() else np.nan
                for v in controls[row.seed].values()
            ]
            lines.append(_line(row, [f"{m:.5f}" for m in means]))
        elif row.name != START:
            gain = gains(controls[row.seed], row.metrics[kind])
            together.setdefault(row.name, []).append(gain)
            lines.append(_line(row, [_cell(gain[m]) for m in metrics]))
    for name, found in together.items():
        if len(found) > 1:
            lines.append(_mean_line(f"{name}, {len(found)} seeds | | |", metrics, found))
    return lines


def _gain_over_start(rows: Sequence[Found], kind: str) -> list[str]:
    start, *others = rows
    metrics = list(start.metrics[kind])
    together: dict[str, list[Metrics]] = {}
    for row in others:
        together.setdefault(row.name, []).append(gains(start.metrics[kind], row.metrics[kind]))
    lines = [_mean_line(name, metrics, found) for name, found in together.items()]
    return [*_head(metrics), *lines]


def _mean_line(title: str, metrics: Sequence[str], found: Sequence[Metrics]) -> str:
    means = [_cell(np.mean([g[m] for g in found], 0)) for m in metrics]
    return f"| {title} | " + " | ".join(means) + " |"


def _line(row: Found, cells: Sequence[str]) -> str:
    cost = row.cost
    figures = f"{cost.seconds:.0f} | {cost.updates} | {cost.memory:.2f}"
    return f"| {row.name}, seed {row.seed} | {figures} | " + " | ".join(cells) + " |"


def _cell(gain: np.ndarray) -> str:
    if not len(gain):
        return "no case"
    mean, low, high = interval(gain)
    return f"{mean:+.2g} [{low:+.2g}, {high:+.2g}]"
