"""The settings of a data build, and the check that a folder was started with the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.output_files import write_text
from .sample import STAGES, BuildStage

FORMAT = 1
CONFIG = "build.json"


@dataclass(frozen=True)
class Build:
    """A data set to be made, in shards of consecutive samples."""

    out: Path  # its folder
    stages: tuple[BuildStage, ...]  # the stages to run, consecutive ones of `STAGES`
    count: int  # samples to try; rejected ones are not replaced
    seed: int = 0  # of the whole build
    shard_size: int = 64  # samples to try per shard
    held_out: float = 0.05  # share of identities that go to "validation"
    source: Path | None = None  # the folder that holds the earlier stages; None = `out`

    @property
    def first(self) -> str:
        return self.stages[0].name

    @property
    def last(self) -> str:
        return self.stages[-1].name

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(-(-self.count // self.shard_size))

    def numbers(self, shard: int) -> range:
        """The numbers of the samples of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def report_path(self, shard: int) -> Path:
        """Where the report of a finished shard is."""
        return self.out / "stages" / self.last / f"{shard:05d}.json"


def check_build(build: Build) -> None:
    """Check the settings before anything is written.

    Raises:
        ValueError: a number is out of range, or the stages are not consecutive.
    """
    names = tuple(s.name for s in build.stages)
    if build.count < 1 or build.shard_size < 1:
        raise ValueError(
            f"--count and --shard must be at least 1, got {build.count} and {build.shard_size}."
        )
    if not 0 <= build.held_out < 1:
        raise ValueError(f"--held-out must be at least 0 and less than 1, got {build.held_out}.")
    for stage in build.stages:
        own = stage.settings().get("held_out", build.held_out)
        if own != build.held_out:
            raise ValueError(
                f"The {stage.name} stage holds out {own} of the identities but the build "
                f"{build.held_out}; both must be the same."
            )
    if not names or "".join(names) not in "".join(STAGES):
        raise ValueError(
            f"The stages {', '.join(names)} are not consecutive; the order is {', '.join(STAGES)}."
        )


def _config(build: Build) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seed": build.seed,
        "shard": build.shard_size,
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
            yield f"{at}{key} was {json.dumps(a)}, now {json.dumps(b)}"


def write_config(build: Build) -> None:
    """Write build.json, or check that the existing one is of the same build.

    Raises:
        ValueError: the folder was built with other settings; names them.
    """
    path, config = build.out / CONFIG, json.loads(json.dumps(_config(build)))
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        # Stages run one after another share a folder, and more samples may be asked for later.
        both = old["stages"].keys() & config["stages"].keys()
        before, now = ({n: c["stages"][n] for n in both} for c in (old, config))
        differences = list(
            _differences(
                old | {"stages": before, "count": config["count"]}, config | {"stages": now}
            )
        )
        if differences:
            raise ValueError(
                f"{build.out} was built with other settings ({'; '.join(differences)}). Use the "
                "same settings to continue it, or another --out."
            )
        if build.count < old["count"]:
            raise ValueError(
                f"{build.out} was built with --count {old['count']}; {build.count} would remove "
                "samples. Use at least as many, or another --out."
            )
        config["stages"] = old["stages"] | config["stages"]
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
