"""The settings of an evaluation, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..nano import resolve_weights
from ..repair.request import RefineOptions
from ..workers.dispatch import Place
from .digests import sha256

# The systems that are compared: rows of the tables.
DRAFT, PASTED, ALIGNED, REFINED = "draft", "pasted reference", "aligned reference", "refined"


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate.

    Raises:
        ValueError: a name is taken, a folder does not exist, or a number is out of range.
    """

    data: Path  # the cases, see `cases.open_cases`
    out: Path  # the folder of the evaluation
    split: str | None = None  # of shards
    count: int | None = None  # the first cases; None = all
    model: Mapping[str, Any] = field(
        default_factory=lambda: {"refiner": "nano"}
    )  # of `load_engine`
    options: RefineOptions = field(default_factory=RefineOptions)  # the seed varies by case
    results: Path | None = None  # folder of finished repairs <id>.png to measure instead
    # Other systems by name: folders of <id>.png or <id>/refined.png.
    others: Mapping[str, Path] = field(default_factory=dict)
    place: Place = field(default_factory=Place)  # where the repairs are done

    def __post_init__(self) -> None:
        taken = {DRAFT, PASTED, ALIGNED, REFINED, "target", "reference"}
        for name, folder in self.others.items():
            if name in taken or not name.strip():
                raise ValueError(f"--other needs a name that is not taken, got {name!r}.")
            if not folder.is_dir():
                raise ValueError(f"The results of {name}: the folder {folder} does not exist.")
        if self.results is not None and not self.results.is_dir():
            raise ValueError(f"The results: the folder {self.results} does not exist.")
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}.")

    @property
    def systems(self) -> list[str]:
        """The rows of the table, in order."""
        return [DRAFT, PASTED, ALIGNED, *self.others, REFINED]

    def recorded(self) -> dict[str, Any]:
        """What determines the pictures, for `run.json`: a resumed run must have the same."""
        model = {k: str(v) for k, v in self.model.items() if v is not None and k != "device"}
        repairs = self.results is None
        return {
            "version": __version__,
            "data": str(self.data.resolve()),
            "split": self.split,
            "refiner": model if repairs else {"results": str(self.results)},
            "weights": _weight_digests(self.model) if repairs else {},
            "options": dict(vars(self.options)) if repairs else {},
            "others": {k: str(v.resolve()) for k, v in self.others.items()},
        }


def _weight_digests(model: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the weight files that a model's arguments name."""
    path = resolve_weights(model["refiner"])
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    files += [Path(str(a).rpartition(":")[0] or a) for a in model.get("loras", ())]
    return {f.name: sha256(f) for f in files if f.is_file()}


@dataclass(frozen=True)
class Outcome:
    """All there is to report."""

    settings: EvaluationSettings
    measured: list[dict[str, Any]]  # one record per case, see `runner`
    failed: dict[str, str]  # cases that were left out, with the reason

    @property
    def systems(self) -> list[str]:
        """The rows of the table, in order."""
        return self.settings.systems
