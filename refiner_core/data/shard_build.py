"""One part of a data set: a fixed range of samples through the stages, into shards.

The shards are written first and the report (`stages/<stage>/<number>.json`) last, each whole or not
at all; a build that was interrupted finds the reports and makes the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..storage.checksums import sha256
from ..storage.output_files import atomic_path
from .plan import Build
from .shards import (
    read_samples,
    shard_name,
    write_samples,
    write_shard,
)
from .stages.interface import (
    STAGES,
    RejectedError,
    Sample,
    sample_seed,
    split_of_identity,
)
from .triplets import PICTURES, decode_members, encode_members

# What each stage adds to a sample: all of it goes when the stage runs again.
_MAKES = {
    "pair": ("reference", "target"),
    "select": (),
    "mask": ("mask", "reference_mask"),
    "degrade": ("draft",),
}
_NOTES = {"pair": (), "select": ("scores",), "mask": ("boxes",), "degrade": ("degradation",)}

Report = dict[str, Any]


def _fresh(build: Build, part: int) -> Iterator[Sample]:
    for number in build.numbers(part):
        seed = sample_seed(build.seed, number)
        yield Sample(f"{number:08d}", seed, number, info={"seed": seed, "number": number})


def earlier_files(build: Build, part: int) -> list[Path]:
    """The files that hold the part's samples after the stage before the first that runs."""
    folder = build.source or build.out
    before = STAGES[STAGES.index(build.first) - 1]
    staged = folder / "stages" / before / f"{part:05d}.tar"
    if staged.is_file():
        return [staged]
    return sorted(p for p in folder.glob(f"*-{part:05d}.tar") if not p.name.startswith("."))


def _earlier(build: Build, part: int) -> Iterator[Sample]:
    again = {s.name for s in build.stages}
    gone = {p for stage in again for p in _MAKES[stage]}
    notes = {n for stage in again for n in _NOTES[stage]}
    found: list[Sample] = []
    for path in earlier_files(build, part):
        for name, members in read_samples(path):
            try:
                pictures, prompt, info = decode_members(name, members)
            except ValueError as e:
                raise ValueError(f"In the shard {path}: {e}.") from e
            kept = {n: a for n, a in pictures.items() if n not in gone}
            info = {k: v for k, v in info.items() if k not in notes}
            found.append(
                Sample(name, info["seed"], info["number"], **kept, prompt=prompt, info=info)
            )
    wanted = build.numbers(part)
    return iter(sorted((s for s in found if s.number in wanted), key=lambda s: s.number))


def _run(build: Build, sample: Sample) -> Sample | dict[str, Any]:
    """The sample after all stages, or why it was left out."""
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
    # The scene would keep two photographs alive for every sample of the part.
    return replace(sample, scene=None)


def _write(build: Build, part: int, samples: Sequence[Sample]) -> tuple[list[Path], list[Any]]:
    """The part's files and manifest entries."""
    if build.last != STAGES[-1]:
        path = build.report_path(part).with_suffix(".tar")
        write_samples(path, ((s.id, _members(s)) for s in samples))
        return [path], []
    by_split: dict[str, list[Sample]] = {}
    for sample in samples:
        split = split_of_identity(sample.info["identity"], build.held_out)
        by_split.setdefault(split, []).append(sample)
    files, entries = [], []
    for split, members in sorted(by_split.items()):
        files.append(build.out / shard_name(split, part))
        entries += write_shard(files[-1], (s.triplet() for s in members))
    return files, entries


def _members(sample: Sample) -> dict[str, bytes]:
    return encode_members(
        sample.id, {n: getattr(sample, n) for n in PICTURES}, sample.prompt, sample.info
    )


def read_report(build: Build, part: int) -> Report | None:
    """The report of a finished part, None if it has to be made."""
    path = build.report_path(part)
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    whole = all(
        (build.out / name).is_file() and (build.out / name).stat().st_size == f["bytes"]
        for name, f in report["files"].items()
    )
    return report if whole and report["samples"] == len(build.numbers(part)) else None


def build_part(build: Build, part: int) -> Report:
    """Make one part, or find it made; its report.

    Raises:
        ConnectionError: a server that a stage needs is gone.
        OSError: the disk is full or the folder cannot be written.
    """
    report = read_report(build, part)
    if report is not None:
        return report
    path = build.report_path(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in (*build.out.glob(f".*-{part:05d}.tar.*"), *path.parent.glob(f".{part:05d}.*")):
        left_over.unlink(missing_ok=True)
    samples = _fresh(build, part) if build.first == STAGES[0] else _earlier(build, part)
    done = [_run(build, s) for s in samples]
    kept = [s for s in done if isinstance(s, Sample)]
    try:
        files, entries = _write(build, part, kept)
    except OSError as e:
        raise OSError(
            f"Part {part} cannot be written to {build.out}: {e}. Finished parts are kept: make room "
            "and run the same command again."
        ) from e
    report = {
        "samples": len(build.numbers(part)),
        "kept": len(kept),
        "files": {str(f.relative_to(build.out)): _digest(f) for f in files},
        "entries": entries,
        "rejected": [r for r in done if isinstance(r, dict)],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, sort_keys=True), encoding="utf-8")
    return report


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
