"""Runs the stages over many samples and writes the data set, part by part.

As every sample follows from hash(seed, number), the bytes of a build that was interrupted are those
of one that ran through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from functools import partial

from .plan import Build, check_build, settle_config
from .shard_build import Report, build_part, earlier_files, read_report
from .shards import (
    MANIFEST,
    split_of,
    write_lines,
)
from .stages.interface import (
    STAGES,
)
from .worker_pool import worker_pool

REJECTED = "rejected.jsonl"

Progress = Callable[[int, int, Report], None]


def _check_source(build: Build) -> None:
    if build.first == STAGES[0]:
        return
    if not any(earlier_files(build, part) for part in build.parts):
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
    settle_config(build)
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
