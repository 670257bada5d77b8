"""Runs the stages over many samples and writes the data set, part by part.

A part is a fixed range of samples. Its shards are written first and its report
(`stages/<stage>/<number>.json`) last, each whole or not at all; a build that was interrupted finds
the reports and makes the rest. As every sample follows from hash(seed, number), the bytes are those
of a build that ran through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..digests import sha256
from ..pictures.images import atomic_path
from ..processes import worker_pool
from .shards import (
    MANIFEST,
    read_samples,
    shard_name,
    split_of,
    write_lines,
    write_samples,
    write_shard,
)
from .stages.interface import (
    STAGES,
    RejectedError,
    Sample,
    Stage,
    sample_seed,
    split_of_identity,
)
from .triplets import PICTURES, decode_members, encode_members

FORMAT = 1
CONFIG = "build.json"
REJECTED = "rejected.jsonl"
# What each stage adds to a sample: all of it goes when the stage runs again.
_MAKES = {
    "pair": ("reference", "target"),
    "select": (),
    "mask": ("mask", "reference_mask"),
    "degrade": ("draft",),
}
_NOTES = {"pair": (), "select": ("scores",), "mask": ("boxes",), "degrade": ("degradation",)}

Report = dict[str, Any]
Progress = Callable[[int, int, Report], None]


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


# --- configuration -------------------------------------------------------------------------------


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


def _settle_config(build: Build) -> None:
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


# --- one part ------------------------------------------------------------------------------------


def _fresh(build: Build, part: int) -> Iterator[Sample]:
    for number in build.numbers(part):
        seed = sample_seed(build.seed, number)
        yield Sample(f"{number:08d}", seed, number, info={"seed": seed, "number": number})


def _earlier_files(build: Build, part: int) -> list[Path]:
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
    for path in _earlier_files(build, part):
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


# --- the whole build -----------------------------------------------------------------------------


def _check_source(build: Build) -> None:
    if build.first == STAGES[0]:
        return
    if not any(_earlier_files(build, part) for part in build.parts):
        before = STAGES[STAGES.index(build.first) - 1]
        raise ValueError(
            f"{build.source or build.out} holds nothing that stage {build.first} could go on "
            f"from: run stage {before} first, or name a build with --from."
        )
    if build.source is None and (build.out / MANIFEST).is_file() and read_report(build, 0) is None:
        raise ValueError(
            f"{build.out} is a finished data set: give --from {build.out} and another --out."
        )


def run_locally(build: Build, parts: Sequence[int], workers: int, progress: Progress) -> None:
    """Make parts in this process (1 worker) or in a pool of them."""
    work = partial(build_part, build)
    if workers <= 1 or len(parts) <= 1:
        for done, part in enumerate(parts, 1):
            progress(done, len(parts), work(part))
        return
    with worker_pool(min(workers, len(parts))) as pool:
        try:
            running = [pool.submit(work, part) for part in parts]
            for done, future in enumerate(as_completed(running), 1):
                progress(done, len(parts), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_build(
    build: Build,
    workers: int = 1,
    progress: Progress = lambda done, total, report: None,
    run: Callable[[Build, Sequence[int], int, Progress], None] = run_locally,
) -> dict[str, int]:
    """Make a data set, or what is missing of it.

    Args:
        build: what to make.
        workers: processes.
        progress: called after every part with the number done, of how many, and its report.
        run: makes parts: here (`run_locally`) or on a cluster (`cluster.run_on_ray`).

    Returns:
        counts: "kept", "rejected", "broken" (of the rejected, those that could not be used at all)
        and one for each split.

    Raises:
        ValueError: settings that cannot work, or differ from those the folder was built with.
        ConnectionError: a server is gone; what is done is kept.
    """
    check_build(build)
    _check_source(build)
    build.out.mkdir(parents=True, exist_ok=True)
    _settle_config(build)
    missing = [p for p in build.parts if read_report(build, p) is None]
    run(build, missing, workers, progress)
    return _finish(build)


def _finish(build: Build) -> dict[str, int]:
    reports = [read_report(build, p) for p in build.parts]
    assert all(r is not None for r in reports), "every part is made"
    entries = [e for r in reports if r for e in r["entries"]]
    rejected = [e for r in reports if r for e in r["rejected"]]
    for stage in STAGES[: STAGES.index(build.first)]:
        earlier = sorted((build.out / "stages" / stage).glob("[0-9]*.json"))
        rejected += [e for p in earlier for e in json.loads(p.read_text())["rejected"]]
    write_lines(build.out / REJECTED, sorted(rejected, key=lambda e: e["id"]))
    if build.last == STAGES[-1]:
        write_lines(build.out / MANIFEST, entries)
    counts = {
        "kept": sum(r["kept"] for r in reports if r),
        "rejected": len(rejected),
        "broken": sum(e["broken"] for e in rejected),
    }
    for entry in entries:
        split = split_of(entry["shard"])
        counts[split] = counts.get(split, 0) + 1
    return counts
