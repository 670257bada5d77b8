"""Runs the stages over many samples and writes the data set, shard by shard.

Every sample follows from a hash of the build's seed and its number, so an interrupted and resumed
build gives the same bytes as one that ran through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from functools import partial

from ..workers.pool import Progress, worker_pool
from .build_settings import Build, check_build, write_config
from .sample import STAGES
from .shard_build import build_shard, earlier_files, read_report
from .shards import MANIFEST, split_of, write_lines

REJECTED = "rejected.jsonl"


def _check_source(build: Build) -> None:
    if build.first == STAGES[0]:
        return
    if not any(earlier_files(build, shard) for shard in build.shards):
        before = STAGES[STAGES.index(build.first) - 1]
        raise ValueError(
            f"{build.source or build.out} holds no results that stage {build.first} could "
            f"start from: run stage {before} first, or name a build with --from."
        )
    if build.source is None and (build.out / MANIFEST).is_file() and read_report(build, 0) is None:
        raise ValueError(
            f"{build.out} is a finished data set: use --from {build.out} and another --out."
        )


def run_locally(build: Build, shards: Sequence[int], workers: int, progress: Progress) -> None:
    """Make shards in this process (1 worker) or in a pool of processes."""
    work = partial(build_shard, build)
    if workers <= 1 or len(shards) <= 1:
        for done, shard in enumerate(shards, 1):
            progress(done, len(shards), work(shard))
        return
    with worker_pool(min(workers, len(shards))) as pool:
        try:
            running = [pool.submit(work, shard) for shard in shards]
            for done, future in enumerate(as_completed(running), 1):
                progress(done, len(shards), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_build(
    build: Build,
    workers: int = 1,
    progress: Progress = lambda done, total, report: None,
    run: Callable[[Build, Sequence[int], int, Progress], None] = run_locally,
) -> dict[str, int]:
    """Make a data set, or complete it.

    Args:
        build: its settings.
        workers: number of processes.
        progress: called after every shard with the number done, the total, and its report.
        run: makes the shards: `run_locally`, or a `cluster.ray_runner`.

    Returns:
        Counts: "kept", "rejected", "broken" (those of the rejected that could not be used at all),
        "composited" (samples with transparent pictures) and one per split.

    Raises:
        ValueError: the settings are not valid, or differ from those the folder was built with.
        ConnectionError: a server cannot be reached; finished shards are kept.
    """
    check_build(build)
    _check_source(build)
    build.out.mkdir(parents=True, exist_ok=True)
    write_config(build)
    missing = [s for s in build.shards if read_report(build, s) is None]
    run(build, missing, workers, progress)
    return _finish(build)


def _finish(build: Build) -> dict[str, int]:
    reports = [read_report(build, s) for s in build.shards]
    assert all(r is not None for r in reports), "every shard is made"
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
        "composited": sum("composited_over_white" in e for e in entries),
    }
    for entry in entries:
        split = split_of(entry["shard"])
        counts[split] = counts.get(split, 0) + 1
    return counts
