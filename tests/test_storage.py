"""Files of the pack's own: how many stay, what a killed program leaves, names of every length."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_core.storage.recent_files import NodeRun, RecentFiles


def write(folder: Path, name: str, size: int = 1) -> Path:
    path = folder / name
    path.write_bytes(bytes(size))
    return path


@pytest.mark.parametrize(("most_files", "most_bytes"), [(4, 1000), (1000, 40)])
def test_the_oldest_runs_files_are_deleted(
    tmp_path: Path, most_files: int, most_bytes: int
) -> None:
    recent = RecentFiles(most_files, most_bytes)
    for run in range(5):
        for name in ("before", "after"):
            recent.add(NodeRun(f"prompt {run}", "7"), write(tmp_path, f"{run}-{name}", 10))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "3-after",
        "3-before",
        "4-after",
        "4-before",
    ]


def test_a_nodes_latest_run_is_kept_however_old_it_is(tmp_path: Path) -> None:
    recent = RecentFiles(most_files=3, most_bytes=1000)
    cached = write(tmp_path, "cached")
    recent.add(NodeRun("first", "3"), cached)
    for run in range(6):
        recent.add(NodeRun(f"prompt {run}", "7"), write(tmp_path, str(run)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5", "cached"]
    batch = [write(tmp_path, f"batch-{i}") for i in range(8)]
    for path in batch:
        recent.add(NodeRun("last", "7"), path)
    assert all(p.is_file() for p in (cached, *batch))


def test_files_that_are_already_gone_are_no_error(tmp_path: Path) -> None:
    recent = RecentFiles(most_files=1, most_bytes=1000)
    for run in range(3):
        path = write(tmp_path, str(run))
        recent.add(NodeRun(str(run), "7"), path)
        path.unlink()
    assert list(tmp_path.iterdir()) == []
