"""The benchmarks run and print their tables; no measured time is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.scoring.dreamsim_release import convert_release
from tests.benchmarks.__main__ import BENCHMARKS, main
from tests.benchmarks.blending import PLANTED
from tests.benchmarks.measuring import Figure, markdown
from tests.dreamsim_release import TINY, write_release

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dreamsim_and_a_python_without_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release", "dino_vitb16", TINY)
    weights = tmp_path / "d.safetensors"
    convert_release(release, weights, side=224)
    arguments = ["dreamsim", str(weights), "--batch", "1", "--rounds", "1"]
    assert main(arguments) == 0
    assert "this program" in capsys.readouterr().out
    assert main([*arguments, "--package", sys.executable, "--release", str(release)]) == 2
    assert "No module named 'dreamsim'" in capsys.readouterr().err
    assert main([*arguments, "--package", sys.executable]) == 2
    assert "--release" in capsys.readouterr().err


@pytest.mark.slow
def test_training_steps_of_both_stages_in_miniature(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--batch", "2", "--rounds", "1", "--device", "cpu"]
    assert main(["train", *arguments]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert "tiny" in title and "CPU" in title
    rows = [line for line in lines if line.startswith("64 ")]  # among notes about what is learnt
    assert [row.split()[1] for row in rows] == ["SFT", "GRPO"]
    for row in rows:
        seconds, samples = (float(v) for v in row.split()[3:5])
        assert seconds > 0 and samples == pytest.approx(2 / seconds, rel=0.6)
    assert main(["train", "--batch", "1"]) == 2
    assert "--batch" in capsys.readouterr().err


def test_data_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--sizes", "64", "--count", "4"]) == 0
    printed = capsys.readouterr().out
    assert "64 px" in printed and printed.count("triplets/s on one core") == 2


def test_comfyui_names_the_folder_it_cannot_import_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["comfyui", "--comfyui", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_figures_name_a_python_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", "--comfyui", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_figures_are_a_table_with_ratios() -> None:
    figure = Figure("a", 1.0, 4.0, "b")
    assert str(figure).split() == ["a", "1.000", "4.000", "s", "0.25", "b"]
    assert markdown([figure]).splitlines()[-1] == "| a | 1.000 s | b | 4.000 s | 0.25 |"
    assert (
        markdown([Figure("a", 1, 4, "b", "MB")]).splitlines()[-1]
        == "| a | 1 MB | b | 4 MB | 0.25 |"
    )


def test_figures_can_be_measured_in_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.md"
    assert (
        main(["figures", "--only", "steps", "--largest", "128", "--rounds", "1", "--out", str(out)])
        == 0
    )
    rows = [line.split("|")[1:-1] for line in out.read_text().splitlines() if "128 px" in line]
    assert [row[2].strip() for row in rows] == 3 * ["not cached"] + 3 * ["both ways"]
    for _, value, _, other, ratio in rows:
        seconds = [float(cell.split()[0]) for cell in (value, other)]
        assert float(ratio) == pytest.approx(seconds[0] / seconds[1], rel=0.1)
    assert main(["figures", "--only", "steps,nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_cases_are_those_that_ship(tmp_path: Path) -> None:
    assert main(["demo-cases", str(tmp_path)]) == 0
    shipped = ROOT / "refiner_core" / "demo_cases"
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    assert written == sorted(p.relative_to(shipped) for p in shipped.rglob("*.png"))
    for path in written:
        a, b = (np.asarray(Image.open(folder / path)) for folder in (tmp_path, shipped))
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def test_no_benchmark_is_part_of_the_product() -> None:
    """Neither the installed package nor the registry's archive holds this folder."""
    names = {module.__name__ for module in BENCHMARKS}
    assert all(name.startswith("tests.benchmarks.") for name in names)
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert {"tests/", ".ci/", ".github/"} <= set(ignored)


@pytest.mark.slow
def test_blending_prints_every_planted_error_and_the_membrane_takes_out_uneven_light(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["blending", "--scenes", "1"]) == 0
    rows = {
        name.strip(): [float(cell.split(",")[0]) for cell in cells]
        for _, name, *cells, _ in (
            line.split("|") for line in capsys.readouterr().out.splitlines()[3:]
        )
    }
    assert set(rows) == set(PLANTED)
    feather, _, membrane = rows["light changes across the crop"]
    assert membrane > feather
    assert rows["nothing"][0] > max(rows["soft"])
