"""Builds one shard of a data set: a fixed range of samples goes through the stages.

The samples of one shard are written into one tar per split, and the report
(`stages/<stage>/<number>.json`) last, each completely or not at all; an interrupted build finds the
reports and makes the remaining shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..storage.checksums import sha256
from ..storage.output_files import write_text
from .build_settings import Build
from .sample import STAGES, RejectedError, Sample, sample_seed, split_of_identity
from .shards import read_samples, shard_name, write_samples, write_shard
from .triplets import PICTURES, decode_members, encode_members

# What each stage adds to a sample; it is removed when the stage runs again.
_PICTURES = {
    "pair": ("reference", "target"),
    "select": (),
    "mask": ("mask", "reference_mask"),
    "degrade": ("draft",),
}
_NOTES = {"pair": (), "select": ("scores",), "mask": ("boxes",), "degrade": ("degradation",)}

Report = dict[str, Any]


def _new_samples(build: Build, shard: int) -> Iterator[Sample]:
    for number in build.numbers(shard):
        seed = sample_seed(build.seed, number)
        yield Sample(f"{number:08d}", seed, number, info={"seed": seed, "number": number})


def earlier_files(build: Build, shard: int) -> list[Path]:
    """The files that hold the shard's samples after the stage before the first one to run."""
    folder = build.source or build.out
    before = STAGES[STAGES.index(build.first) - 1]
    staged = folder / "stages" / before / f"{shard:05d}.tar"
    if staged.is_file():
        return [staged]
    return sorted(p for p in folder.glob(f"*-{shard:05d}.tar") if not p.name.startswith("."))


def _earlier_samples(build: Build, shard: int) -> Iterator[Sample]:
    rerun = {s.name for s in build.stages}
    dropped = {p for stage in rerun for p in _PICTURES[stage]}
    notes = {n for stage in rerun for n in _NOTES[stage]}
    samples: list[Sample] = []
    for path in earlier_files(build, shard):
        for name, members in read_samples(path):
            try:
                pictures, prompt, info = decode_members(name, members)
            except ValueError as e:
                raise ValueError(f"In the shard {path}: {e}.") from e
            kept = {n: a for n, a in pictures.items() if n not in dropped}
            info = {k: v for k, v in info.items() if k not in notes}
            samples.append(
                Sample(name, info["seed"], info["number"], **kept, prompt=prompt, info=info)
            )
    wanted = build.numbers(shard)
    return iter(sorted((s for s in samples if s.number in wanted), key=lambda s: s.number))


def _run_stages(build: Build, sample: Sample) -> Sample | dict[str, Any]:
    """The sample after all stages, or the record of its rejection."""
    name = build.first
    try:
        for stage in build.stages:
            name = stage.name
            sample = stage(sample)
            versions = {stage.name: stage.version}
            sample = replace(sample, info=sample.noted(stages=versions))
    except (RejectedError, ValueError, FileNotFoundError) as e:
        broken = not isinstance(e, RejectedError)
        return {"id": sample.id, "stage": name, "broken": broken, "reason": str(e)}
    # The scene would keep two backgrounds in memory for every sample of the shard.
    return replace(sample, scene=None)


def _write(build: Build, shard: int, samples: Sequence[Sample]) -> tuple[list[Path], list[Any]]:
    """Write the shard; returns its files and manifest entries."""
    if build.last != STAGES[-1]:
        path = build.report_path(shard).with_suffix(".tar")
        write_samples(path, ((s.id, _members(s)) for s in samples))
        return [path], []
    by_split: dict[str, list[Sample]] = {}
    for sample in samples:
        split = split_of_identity(sample.info["identity"], build.held_out)
        by_split.setdefault(split, []).append(sample)
    files, entries = [], []
    for split, members in sorted(by_split.items()):
        files.append(build.out / shard_name(split, shard))
        entries += write_shard(files[-1], (s.triplet() for s in members))
    return files, entries


def _members(sample: Sample) -> dict[str, bytes]:
    return encode_members(
        sample.id, {n: getattr(sample, n) for n in PICTURES}, sample.prompt, sample.info
    )


def read_report(build: Build, shard: int) -> Report | None:
    """The report of a finished shard, None if it has to be made."""
    path = build.report_path(shard)
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    complete = all(
        (build.out / name).is_file() and (build.out / name).stat().st_size == f["bytes"]
        for name, f in report["files"].items()
    )
    return report if complete and report["samples"] == len(build.numbers(shard)) else None


def build_shard(build: Build, shard: int) -> Report:
    """Make one shard unless it is finished; returns its report.

    Raises:
        ConnectionError: a server that a stage needs cannot be reached.
        OSError: the disk is full or the folder cannot be written to.
    """
    report = read_report(build, shard)
    if report is not None:
        return report
    path = build.report_path(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in (
        *build.out.glob(f".*-{shard:05d}.tar.*"),
        *path.parent.glob(f".{shard:05d}.*"),
    ):
        left_over.unlink(missing_ok=True)
    make = _new_samples if build.first == STAGES[0] else _earlier_samples
    done = [_run_stages(build, s) for s in make(build, shard)]
    kept = [s for s in done if isinstance(s, Sample)]
    try:
        files, entries = _write(build, shard, kept)
    except OSError as e:
        raise OSError(
            f"Shard {shard} cannot be written to {build.out}: {e}. Finished shards are kept: free some "
            "space and run the same command again."
        ) from e
    report = {
        "samples": len(build.numbers(shard)),
        "kept": len(kept),
        "files": {str(f.relative_to(build.out)): _digest(f) for f in files},
        "entries": entries,
        "rejected": [r for r in done if isinstance(r, dict)],
    }
    write_text(path, json.dumps(report, sort_keys=True))
    return report


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
