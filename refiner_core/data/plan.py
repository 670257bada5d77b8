"""What is to be built, and whether a folder was begun with the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.output_files import atomic_path
from .stages.interface import (
    STAGES,
    Stage,
)

FORMAT = 1
CONFIG = "build.json"


@dataclass(frozen=True)
class Build:
    """A data set to be made.

    Attributes:
        out: its folder.
        stages: the stages to run, consecutive ones of `STAGES`.
        count: samples to try (rejected ones are not replaced).
        seed: of the whole build.
        part: samples a part, and so at most in a shard.
        held_out: share of identities that go to "validation".
        source: the folder whose earlier stages are gone on from; None = `out`.
    """

    out: Path
    stages: tuple[Stage, ...]
    count: int
    seed: int = 0
    part: int = 64
    held_out: float = 0.05
    source: Path | None = None

    @property
    def first(self) -> str:
        return self.stages[0].name

    @property
    def last(self) -> str:
        return self.stages[-1].name

    @property
    def parts(self) -> range:
        return range(-(-self.count // self.part))

    def numbers(self, part: int) -> range:
        """The samples of a part."""
        return range(part * self.part, min(self.count, (part + 1) * self.part))

    def report_path(self, part: int) -> Path:
        return self.out / "stages" / self.last / f"{part:05d}.json"


def check_build(build: Build) -> None:
    """Refuse what cannot work, before anything is written.

    Raises:
        ValueError: counts out of range, or stages that do not follow on each other.
    """
    names = tuple(s.name for s in build.stages)
    if build.count < 1 or build.part < 1:
        raise ValueError(f"count and shard must be at least 1, got {build.count} and {build.part}.")
    if not 0 <= build.held_out < 1:
        raise ValueError(f"held-out must be at least 0 and under 1, got {build.held_out}.")
    for stage in build.stages:
        own = stage.settings().get("held_out", build.held_out)
        if own != build.held_out:
            raise ValueError(
                f"The {stage.name} stage holds out {own} of the identities, the build "
                f"{build.held_out}; they must be the same."
            )
    if not names or "".join(names) not in "".join(STAGES):
        raise ValueError(
            f"The stages {', '.join(names)} do not follow on each other; "
            f"the order is {', '.join(STAGES)}."
        )


def _config(build: Build) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seed": build.seed,
        "shard": build.part,
        "held_out": build.held_out,
        "count": build.count,
        "stages": {s.name: {"version": s.version, **s.settings()} for s in build.stages},
    }


def _differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{at}{key}.")
        elif a != b:
            yield f"{at}{key} {json.dumps(a)} there, {json.dumps(b)} now"


def settle_config(build: Build) -> None:
    """Write build.json, or find that the folder's is the same build.

    Raises:
        ValueError: the folder was built with other settings; names them.
    """
    path, config = build.out / CONFIG, json.loads(json.dumps(_config(build)))
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        # Stages run one after another share a folder, and more samples may be asked for later.
        compared = old | {
            "stages": {n: s for n, s in old["stages"].items() if n in config["stages"]}
        }
        known = {n: s for n, s in config["stages"].items() if n in old["stages"]}
        differences = list(_differences(
            compared | {"count": config["count"]}, config | {"stages": known}
        ))  # fmt: skip
        if differences:
            raise ValueError(
                f"{build.out} was built with other settings ({'; '.join(differences)}). Give them "
                "again to go on with it, or another --out."
            )
        if build.count < old["count"]:
            raise ValueError(
                f"{build.out} was built with --count {old['count']}; {build.count} would drop "
                "samples. Give at least as many, or another --out."
            )
        config["stages"] = old["stages"] | config["stages"]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
