"""`omnirefiner evaluate` on real files: every layout, resuming after a kill, and bad cases."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.commands import exit_status
from refiner_core.data.pair_files import PairFiles
from refiner_core.data.shards import shard_name, write_shard
from refiner_core.data.triplets import Triplet
from refiner_core.evaluation.cases import FileCases, open_cases
from refiner_core.evaluation.evaluation_settings import EvaluationSettings, Outcome
from refiner_core.evaluation.held_out_scenes import HeldOutScene, make_scene
from refiner_core.evaluation.metric import Column
from refiner_core.evaluation.plots import bars, scatter
from refiner_core.evaluation.runner import case_seed
from refiner_core.evaluation.tables import summarise, worst_first
from refiner_core.storage.output_files import unique_ids

ROOT = Path(__file__).parents[1]
FAST = ["--steps", "1"]


def scene_of(seed: int) -> HeldOutScene:
    return make_scene(seed, (128, 96), (0.3, 0.5), rough_masks=False, degradation="blur")


def save(folder: Path, **pictures: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, array in pictures.items():
        Image.fromarray(array).save(folder / f"{name}.png")


def plain_case(folder: Path, seed: int, **changes: Any) -> None:
    s = scene_of(seed)
    given = {
        "draft": s.draft, "reference": s.reference, "mask": s.mask, "target": s.target,
        "reference_mask": s.reference_mask,
    } | changes  # fmt: skip
    save(folder, **{k: v for k, v in given.items() if v is not None})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good cases."""
    folder = tmp_path_factory.mktemp("data")
    plain_case(folder / "a", 1)
    plain_case(folder / "b", 2)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their evaluation, run in one go."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(["evaluate", "--data", str(data), "--out", str(out), *FAST]) == 0
    return out


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as stream:
        return list(csv.DictReader(stream))


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


# --- a run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_json_and_report(finished: Path) -> None:
    rows = table(finished)
    assert [(r["id"], r["system"]) for r in rows] == [
        (i, s) for i in "ab"
        for s in ("draft", "pasted reference", "aligned reference", "refined")
    ]  # fmt: skip
    assert all(r["outside"] == "0" for r in rows)
    assert [int(r["seed"]) for r in rows[::4]] == [case_seed(0, "a"), case_seed(0, "b")]
    found = results(finished)
    assert found["settings"]["weights"].keys() == {"nano.safetensors"}
    mean = np.mean([float(r["psnr"]) for r in rows if r["system"] == "refined"])
    assert found["summary"]["refined"]["psnr"] == {"mean": pytest.approx(mean), "cases": 2}
    html = (finished / "report.html").read_text()
    assert html.count('class="case"') == 2 and html.count('class="slider"') == 2
    assert "http" not in html.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_table(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "refiner_core", "evaluate", "--data", str(data), "--out",
               str(out), *FAST]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not (out / "cases" / "a" / "repair.json").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (out / "cases" / "a" / "repair.json").stat().st_mtime_ns
    assert main(["evaluate", "--data", str(data), "--out", str(out), *FAST]) == 0
    assert (out / "cases" / "a" / "repair.json").stat().st_mtime_ns == before
    assert (out / "table.csv").read_bytes() == (finished / "table.csv").read_bytes()
    for name in ("a", "b"):
        pair = [(o / "cases" / name / "refined.png").read_bytes() for o in (out, finished)]
        assert pair[0] == pair[1]


def test_other_settings_in_the_same_folder_are_refused(
    data: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(data), "--out", str(finished), "--steps", "2"]) == 2
    assert "options" in capsys.readouterr().err
    assert main(["evaluate", "--data", str(data), "--out", str(data), *FAST]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_metric_is_added_and_the_missing_stay_empty(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    run = json.loads((out / "run.json").read_text())
    assert main(["evaluate", "--data", str(data), "--out", str(out), *FAST, "--metrics",
                 "pixels,dreamsim,dinov2,arcface,vlm,lpips"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    for name in ("DreamSim", "DINOv2", "ArcFace", "VLM", "LPIPS"):
        assert sum(line.startswith(f"{name}: ") for line in said.splitlines()) == 1
    assert "| 0.0918 |" in said and "| 81.91 |" in said
    assert {r["dreamsim"] for r in table(out)} == {""} and table(out)[0]["psnr"]
    assert json.loads((out / "run.json").read_text()) == run


def test_results_of_others_are_rows_and_wrong_sizes_are_named(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    save(theirs, a=scene_of(1).target)
    save(theirs / "b", refined=np.zeros((8, 8, 3), np.uint8))
    out = tmp_path / "out"
    arguments = ["--results", str(theirs), "--other", f"rival={theirs}"]
    command = ["evaluate", "--data", str(data), "--out", str(out), *arguments]
    assert main(command) == exit_status.SOME_FAILED
    by_system = {r["system"]: r for r in table(out) if r["id"] == "a"}
    assert by_system["rival"]["psnr"] == by_system["refined"]["psnr"] == "60.0"
    assert "8x8 but the draft is 128x96" in results(out)["failed"]["b"]


# --- bad cases -----------------------------------------------------------------------------------


def test_broken_cases_are_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    s = scene_of(3)
    plain_case(data / "good", 3, target=None, reference_mask=None)
    plain_case(data / "no mask", 3, mask=None)
    plain_case(data / "empty", 3, mask=s.mask * 0)
    plain_case(data / "size", 3, mask=s.mask[:50])
    plain_case(data / "cut", 3)
    whole = (data / "cut" / "draft.png").read_bytes()
    (data / "cut" / "draft.png").write_bytes(whole[: len(whole) // 2])
    command = ["evaluate", "--data", str(data), "--out", str(out), *FAST]
    assert main(command) == exit_status.SOME_FAILED
    failed = results(out)["failed"]
    assert set(failed) == {"no_mask", "empty", "size", "cut"}
    assert "no mask picture" in failed["no_mask"] and "empty" in failed["empty"]
    assert "128x50" in failed["size"] and "128x96" in failed["size"]
    assert "cut off" in failed["cut"]
    assert {r["psnr"] for r in table(out)} == {""} and {r["outside"] for r in table(out)} == {"0"}
    html = (out / "report.html").read_text()
    assert "changed against the draft" in html and "no_mask" in html


def test_a_run_of_nothing_but_broken_cases_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name in "ab":
        plain_case(data / name, 3, mask=None)
    command = ["evaluate", "--data", str(data), "--out", str(out), *FAST]
    assert main(command) == exit_status.SOME_FAILED
    assert "2 of 2" in capsys.readouterr().err
    assert set(results(out)["failed"]) == {"a", "b"} and (out / "report.html").is_file()


def test_one_colour_pictures_are_measured(tmp_path: Path) -> None:
    flat = np.full((96, 128, 3), 90, np.uint8)
    mask = np.zeros((96, 128), np.uint8)
    mask[30:60, 40:90] = 255
    data, out = tmp_path / "data", tmp_path / "out"
    save(data / "flat", draft=flat, reference=flat, target=flat, mask=mask)
    assert main(["evaluate", "--data", str(data), "--out", str(out), *FAST]) == 0
    rows = table(out)
    assert len(rows) == 4 and rows[0]["psnr"] == "60.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--metrics", "psnr,beauty"], "beauty, psnr"),
        (["--other", "rival"], "NAME=DIR"),
        (["--other", "draft=."], "'draft'"),
        (["--results", "nowhere"], "nowhere"),
        (["--workers", "0"], "workers"),
        (["--split", "train"], "no shards"),
        (["--vlm", "file:///x", "--metrics", "vlm"], "http"),
    ],
)
def test_bad_arguments(
    data: Path, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert main(["evaluate", "--data", str(data), "--out", str(out), *FAST, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "cases").exists()


# --- layouts -------------------------------------------------------------------------------------


def test_shards_critic_folders_and_lines_hold_the_same(tmp_path: Path) -> None:
    s = scene_of(4)
    triplet = Triplet("x", s.draft, s.reference, s.target, s.mask, None, "Fix it.")
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / shard_name("test", 0), [triplet])
    critic = tmp_path / "critic"
    half = Image.fromarray(s.draft).resize((64, 48))
    save(critic / "x", product=s.reference, generated=s.target,
         generated_with_degradation=np.asarray(half), mask=s.mask)  # fmt: skip
    (critic / "x" / "prompt.txt").write_text("Fix it.\n")
    lines = critic / "all.jsonl"
    keys = {"A_image": "product", "B_image": "generated_with_degradation", "target": "generated",
            "mask": "mask"}  # fmt: skip
    entry = {k: f"x/{v}.png" for k, v in keys.items()} | {"caption": "Fix it."}
    lines.write_text(json.dumps(entry) + "\n\n")
    for place, exact in ((shards, True), (critic, False), (lines, False)):
        cases = open_cases(place)
        assert list(cases.ids) == ["x"]
        found = cases.load(0)
        assert found.target is not None and (found.target == s.target).all()
        assert (found.reference == s.reference).all() and found.prompt == "Fix it."
        assert found.draft.shape == s.draft.shape and (found.draft == s.draft).all() == exact
        if not exact:
            assert found.info["draft_resized_from"] == [64, 48]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"A_image": "a.png"}\n')
    with pytest.raises(ValueError, match=r"line 1.*B_image"):
        open_cases(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="draft.png"):
        open_cases(tmp_path / "empty")


def test_a_faint_mask_stays_over_zero(tmp_path: Path) -> None:
    grey = np.zeros((8, 8, 3), np.uint8)
    grey[2, 2] = (1, 0, 0)
    path = tmp_path / "mask.png"
    Image.fromarray(grey).save(path)
    save(tmp_path / "c", draft=grey, reference=grey)
    files = {k: tmp_path / "c" / f"{k}.png" for k in ("draft", "reference")} | {"mask": path}
    assert FileCases(["c"], [PairFiles("c", files)]).load(0).mask[2, 2] > 0


def test_ids_are_clean_and_unique() -> None:
    assert unique_ids(["a b", "a_b", "a b", "ü", ""]) == ["a_b", "a_b-2", "a_b-3", "_", "case"]


# --- tables and plots ----------------------------------------------------------------------------


def outcome_of(values: dict[str, float | None]) -> Outcome:
    measured = [
        {"id": k, "seed": 0, "info": {}, "scores": {"refined": {"m": v}}} for k, v in values.items()
    ]
    return Outcome(EvaluationSettings(Path("d"), Path("o")), measured, {})


@pytest.mark.parametrize(("higher", "order"), [(True, "bca"), (False, "cba")])
def test_worst_first_and_means_skip_what_has_no_value(higher: bool, order: str) -> None:
    column = Column("m", "M", higher, 2)
    outcome = outcome_of({"a": None, "b": 1.0, "c": 3.0})
    assert "".join(c["id"] for c in worst_first(outcome, column)) == order
    cell = summarise(outcome, [column])["refined"]["m"]
    assert (cell.mean, cell.count) == (2.0, 2)


def test_plots_hold_every_point_and_survive_edge_values() -> None:
    drawn = scatter([(0.1, 0.2, "a<b"), (0.1, 0.2, "c")], "t", "x", "y")
    assert drawn.count("<circle") == 2 and "a&lt;b" in drawn and "nan" not in drawn
    assert scatter([(0.0, 0.0, "o")], "t", "x", "y").count("<circle") == 1
    assert bars({"a": 0.0, "b": -1.0}, "t", 2).count("<rect") == 2 and bars({}, "t", 2) == ""
