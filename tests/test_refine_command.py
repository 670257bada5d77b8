"""`omnirefiner refine`: its options and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.commands import exit_status
from refiner_core.evaluation.held_out_scenes import make_scene


def write_case(folder: Path) -> dict[str, str]:
    """A scene's files, and `nothing`, a reference that shows stripes."""
    scene = make_scene(3, (200, 150), (0.3, 0.5))
    stripes = np.zeros((150, 200, 3), np.uint8)
    stripes[::4] = 255
    pictures = {n: getattr(scene, n) for n in ("draft", "reference", "mask", "reference_mask")}
    for name, pixels in (pictures | {"nothing": stripes}).items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {n: str(folder / f"{n}.png") for n in (*pictures, "nothing")}


def test_strict_says_by_the_exit_status_that_the_reference_does_not_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_case(tmp_path)
    common = ["refine", "--draft", files["draft"], "--mask", files["mask"], "--steps", "1"]
    wrong = [*common, "--reference", files["nothing"]]
    report = tmp_path / "report.json"
    out = [f"{tmp_path}/out{i}.png" for i in range(3)]
    assert main([*wrong, "--out", out[0], "--report", str(report)]) == exit_status.DONE
    (mismatch,) = json.loads(report.read_text())["mismatches"]
    said = capsys.readouterr()
    assert mismatch in said.err and "1 of them" in said.out
    assert main([*wrong, "--out", out[1], "--strict"]) == exit_status.POOR_MATCH
    right = ["--reference", files["reference"], "--reference-mask", files["reference_mask"]]
    assert main([*common, *right, "--out", out[2], "--strict"]) == exit_status.DONE
    assert all(Path(path).is_file() for path in out)


def test_what_is_pasted(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    report = tmp_path / "report.json"
    common = ["refine", "--draft", files["draft"], "--mask", files["mask"], "--steps", "1"]
    common += ["--reference", files["reference"], "--report", str(report), "--overwrite"]
    common += ["--reference-mask", files["reference_mask"], "--out", f"{tmp_path}/out.png"]
    assert main([*common, "--paste", "crop"]) == exit_status.DONE
    (region,) = json.loads(report.read_text())["regions"]
    assert region["pasted"] == region["crop"]
    assert main([*common, "--paste-mask", files["mask"]]) == exit_status.DONE
    (region,) = json.loads(report.read_text())["regions"]
    assert region["pasted"] == region["region"]
    both = ["--paste", "crop", "--paste-mask", files["mask"]]
    assert main([*common, *both]) == exit_status.UNUSABLE_INPUT
