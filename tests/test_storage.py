"""Files of the pack's own: how many stay, what a killed program leaves, names of every length."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from refiner_core.storage import output_files
from refiner_core.storage.output_files import (
    atomic_path,
    check_ids,
    check_name,
    check_output,
    name_problem,
    unique_ids,
)
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


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "con",
        "CON",
        "nul.png",
        "Aux.tar.gz",
        "com1",
        "LPT9.txt",
        "lpt¹",
        "con .x",
        "a/b",
        "a\\b",
        "a:b",
        "a*",
        "a?",
        'a"',
        "<a",
        "a>",
        "a|",
        "a\n",
        "a\0",
        "a.",
        "a ",
        "x" * 201,
        "ü" * 101,
        "../a",
        "/a",
        "C:\\a",
    ],
)
def test_names_that_some_system_does_not_take(name: str) -> None:
    assert name_problem(name)
    with pytest.raises(ValueError, match="lora_name"):
        check_name(name, "lora_name")


@pytest.mark.parametrize(
    "name",
    ["a", "my refiner", "com", "com10", "console", "nul1", "ümläut", "漢字", "a.b", "x" * 200],
)
def test_names_that_every_system_takes(name: str) -> None:
    assert name_problem(name) is None
    assert check_name(name, "lora_name") == name


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["Logo", "logo", "LOGO"], ["Logo", "logo-2", "LOGO-3"]),
        (["con", "NUL", "aux.png"], ["con_", "NUL_", "aux_png"]),
        (["a b", "a/b", "a-2"], ["a_b", "a_b-2", "a-2"]),
        (["x" * 300, "x" * 299], ["x" * 90, "x" * 90 + "-2"]),
        (["../..", "", "漢"], ["_____", "case", "_"]),
    ],
)
def test_ids_are_different_files_on_every_system(names: list[str], ids: list[str]) -> None:
    assert unique_ids(names) == ids
    check_ids(ids, "cases")


def test_ids_that_are_one_file_on_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'aB'.*'Ab'"):
        check_ids(["aB", "x", "Ab"], "cases")
    check_ids(["aB", "x", "Ab"], "cases", ignoring_case=False)
    with pytest.raises(ValueError, match="'nul'"):
        check_ids(["nul"], "cases", ignoring_case=False)


def test_windows_would_write_to_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "nul.png", overwrite=False)
    monkeypatch.setattr(output_files, "_ON_WINDOWS", True)
    for name in ("nul.png", "a:b.png", "a .png "):
        with pytest.raises(ValueError, match=name):
            check_output(tmp_path / name, overwrite=False)


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 125 + ".png", "漢" * 83 + ".png"])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    with atomic_path(check_output(tmp_path / name, overwrite=False)) as temporary:
        temporary.write_bytes(b"1")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="bytes"):
        check_output(tmp_path / f"xxxx{name}", overwrite=False)


KILLED = """
import os, signal, sys
from refiner_core.storage.output_files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_what_a_killed_program_left_is_deleted_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (p for p in tmp_path.iterdir() if p != target)
    assert target.read_bytes() == b"whole" and left.read_bytes() == b"half"
    output_files._CLEANED.discard(tmp_path)
    with atomic_path(tmp_path / "other.png") as mine:
        mine.write_bytes(b"1")
        output_files._CLEANED.discard(tmp_path)
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"2")
        assert mine.is_file(), "another file of a running program"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.png", "out.png"]
