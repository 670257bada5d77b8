"""`omnirefiner refine --jobs`: lists and folders, resuming, broken jobs and exit statuses."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from refiner_core.__main__ import main
from refiner_core.commands import exit_status
from refiner_core.commands.progress import ProgressLine, RepairProgress
from refiner_core.interfaces import Stage
from refiner_core.jobs.job_list import read_jobs
from refiner_core.repair.request import RefineOptions

ROOT = Path(__file__).parents[1]
CASE = ROOT / "refiner_core" / "demo_cases" / "word"
FAST = ["--steps", "1", "--no-align", "--no-drift"]
LINE = {
    "draft": str(CASE / "draft.png"),
    "reference": str(CASE / "reference.png"),
    "mask": str(CASE / "mask.png"),
}


def write_list(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """Three jobs that differ in their noise, and their files beside them."""
    shutil.copytree(CASE, tmp_path, dirs_exist_ok=True)
    files = {name: Path(file).name for name, file in LINE.items()}
    lines = ({**files, "id": f"n{i}", "seed": i} for i in range(3))
    return write_list(tmp_path / "jobs.jsonl", *lines)


def run(jobs: Path, out: Path, *more: str) -> int:
    return main(["refine", "--jobs", str(jobs), "--out", str(out), *FAST, *more])


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in out.glob("n*")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draft": None}, "draft"),
        ({"reference": []}, "reference"),
        ({"reference": ["a", "b", "c", "d"]}, "reference.*3"),
        ({"mask": ["a.png", "b.png"]}, "mask"),
        ({"reference_mask": ["a.png", "b.png"]}, "2 reference masks"),
        ({"sead": 1}, "sead"),
        ({"seed": "1"}, "seed.*'1'"),
        ({"steps": True}, "steps.*True"),
        ({"align": 1}, "align.*1"),
        ({"prompt": 5}, "prompt.*5"),
        ({"steps": 0}, "steps.*0"),
        ({"id": "a/b"}, "a/b"),
    ],
    ids=str,
)
def test_a_broken_line_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write_list(tmp_path / "jobs.jsonl", {**LINE, "id": "good"}, {**LINE, **change}, "{oops")
    listed = read_jobs(path, RefineOptions())
    assert [job.id for job in listed.jobs] == ["good"]
    assert list(listed.broken) == ["line 2", "line 3"]
    assert re.search(said, listed.broken["line 2"])


def test_lines_say_what_is_repaired_and_how(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "jobs.jsonl",
        {"draft": "my draft.png", "reference": ["a.png", "/b.png"], "reference_mask": "c.png",
         "seed": 3, "guidance": 2, "align": False, "steps": None},
        "",
        {"draft": "x/y.png", "reference": "a.png"},
    )  # fmt: skip
    first, second = read_jobs(path, RefineOptions(seed=8, steps=4)).jobs
    assert (first.id, second.id) == ("my_draft", "y")
    assert first.files.references == (tmp_path / "a.png", Path("/b.png"))
    assert first.files.reference_masks == (tmp_path / "c.png",) and first.files.mask is None
    assert first.options == RefineOptions(seed=3, steps=4, guidance=2, align=False)
    assert second.options == RefineOptions(seed=8, steps=4)


@pytest.mark.parametrize(
    ("lines", "said"),
    [((), "empty"), (({**LINE}, {**LINE}), "draft"), (("{", "{"), "")],
    ids=["empty", "same id", "all broken"],
)
def test_lists_that_cannot_be_used(tmp_path: Path, lines: Any, said: str) -> None:
    path = write_list(tmp_path / "jobs.jsonl", *lines)
    assert run(path, tmp_path / "out") == (3 if not said else 2)
    if said:
        with pytest.raises(ValueError, match=said):
            read_jobs(path, RefineOptions())


@pytest.mark.slow
def test_a_run_is_resumed_and_equals_single_repairs(jobs: Path, tmp_path: Path) -> None:
    out, single = tmp_path / "out", tmp_path / "single.png"
    assert run(jobs, out) == 0
    files = [o for name in LINE for o in (f"--{name}", LINE[name])]
    assert main(["refine", *files, "--seed", "1", "--out", str(single), *FAST]) == 0
    assert single.read_bytes() == (out / "n1.png").read_bytes()
    assert json.loads((out / "n1.json").read_text())["seed"] == 1
    before = times(out)
    (out / "n2.png").unlink()
    with jobs.open("a") as stream:
        stream.write("\n" + json.dumps({**LINE, "id": "gone", "draft": "gone.png"}))
    assert run(jobs, out) == exit_status.SOME_FAILED
    after = times(out)
    assert {n for n in before if before[n] != after[n]} == {"n2.json", "n2.png"}
    found = summary(out)
    assert (found["jobs"], found["finished_before"], found["repaired"]) == (4, 2, 1)
    assert list(found["failed"]) == ["gone"] and "gone.png" in found["failed"]["gone"]


@pytest.mark.slow
def test_results_of_other_settings_are_not_taken_for_ones_own(
    jobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(CASE / "draft.png", out / "n1.png")
    assert run(jobs, out) == 2
    assert "n1.png" in capsys.readouterr().err and not (out / "n0.png").exists()
    assert run(jobs, out, "--overwrite") == 0
    before = times(out)
    assert run(jobs, out, "--feather", "3") == 2
    assert re.search(r"feather 6.* 3", capsys.readouterr().err)
    os.utime(tmp_path / "mask.png")
    assert run(jobs, out) == 2
    assert "mask.png" in capsys.readouterr().err
    assert times(out) == before


@pytest.mark.slow
def test_a_killed_run_is_resumed_on_two_devices(jobs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(jobs, whole) == 0
    command = [sys.executable, "-m", "refiner_core", "refine", "--jobs", str(jobs), "--out",
               str(out), *FAST]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT)
    while not (out / "n0.png").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (out / "n0.png").stat().st_mtime_ns
    assert run(jobs, out, "--devices", "cpu,cpu") == 0
    assert (out / "n0.png").stat().st_mtime_ns == before
    for i in range(3):
        assert (out / f"n{i}.png").read_bytes() == (whole / f"n{i}.png").read_bytes()
    left = {p.name for p in out.iterdir()} - {p.name for p in whole.iterdir()}
    assert not left


def test_folders_have_the_ids_of_evaluate(tmp_path: Path) -> None:
    for name in ("a b", "c"):
        shutil.copytree(CASE, tmp_path / "data" / name)
    (tmp_path / "data" / "a b" / "prompt.txt").write_text("the word")
    (tmp_path / "data" / "c" / "reference.png").unlink()
    listed = read_jobs(tmp_path / "data", RefineOptions())
    (job,) = listed.jobs
    assert job.id == "a_b" and job.options.prompt == "the word"
    assert job.files.reference_masks == (tmp_path / "data" / "a b" / "reference_mask.png",)
    assert list(listed.broken) == ["c"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "cpu,gpu"], "gpu"),
        (["--devices", ","], "devices"),
        (["--devices", "cpu", "--ray", "local"], "ray"),
        (["--draft", "a.png"], "draft"),
        (["--report", "a.json"], "report"),
    ],
    ids=lambda x: str(x),
)
def test_options_that_do_not_go_with_a_list(
    jobs: Path, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(jobs, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--draft.*--reference"),
        (["--draft", "a.png"], "--reference"),
        (["--draft", "a.png", "--reference", "b.png", "--devices", "cpu"], "--devices.*--jobs"),
    ],
    ids=["nothing", "no reference", "devices"],
)
def test_a_single_repair_needs_its_files(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refine", "--out", str(tmp_path / "out.png"), *options]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_the_page_lists_the_exit_statuses() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    listed = {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert listed == {v for k, v in vars(exit_status).items() if k.isupper()}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_the_stage_and_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressLine(quiet) as line:
        shown = RepairProgress(line)
        for name in ("plan", "encode"):
            shown(Stage(name, regions=2))
        for step in range(3):
            shown(Stage("sample", step, 2, region=1, regions=2))
        for name in ("decode", "register", "stitch", "plan"):
            shown(Stage(name, regions=2))
    lines = [x.strip() for x in terminal.getvalue().split("\r") if x.strip()]
    if quiet:
        assert not lines
        return
    parts = [int(p) for p in re.findall(r"(\d+)%", terminal.getvalue())]
    assert len(parts) == 9 and parts == sorted(parts) and parts[-1] <= 100
    assert "region 2 of 2, sampling, step 1 of 2" in lines[3]
    assert terminal.getvalue().endswith("\r")
