"""Files as people have them: cut-outs, other formats, what operating systems leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.data.pair_files import count_system_files, find_pairs, find_references
from refiner_core.data.shards import TripletSet
from refiner_core.evaluation.cases import open_cases

SIZE = (96, 64)


def picture(seed: int, hidden: int | None = None) -> Image.Image:
    """Grain; with `hidden`, everything but a box in the middle is transparent and of that value."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    if hidden is None:
        return Image.fromarray(pixels)
    alpha = np.zeros(pixels.shape[:2], np.uint8)
    alpha[16:48, 24:72] = 255
    pixels[alpha == 0] = hidden
    return Image.fromarray(np.dstack([pixels, alpha]))


def mask() -> Image.Image:
    image = Image.new("L", SIZE)
    image.paste(255, (24, 16, 72, 48))
    return image


def write_pair(folder: Path, ending: str = ".png", hidden: int | None = None) -> None:
    folder.mkdir(parents=True)
    roles = (("draft", 1, None), ("target", 2, hidden), ("reference", 3, hidden))
    for role, seed, value in roles:
        picture(seed, value).save(folder / f"{role}{ending}")
    mask().save(folder / "mask.png")


def test_two_files_that_look_alike_are_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for hidden in (0, 255):
        paths.append(str(tmp_path / f"{hidden}.png"))
        picture(1, hidden).save(paths[-1])
    assert main(["score", "--json", *paths]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["distance"] == 0
    assert [note[0] for note in report["notes"]] == ["A", "B"]
    assert all("white" in note for note in report["notes"])
    opaque = str(tmp_path / "opaque.png")
    picture(1).save(opaque)
    assert main(["score", "--json", opaque, paths[0]]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["distance"] > 0.1 and [note[0] for note in report["notes"]] == ["B"]


def test_cut_outs_become_white_in_a_data_set_and_it_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path / "pairs" / "cut", hidden=0)
    write_pair(tmp_path / "pairs" / "plain")
    arguments = ["--pairs", str(tmp_path / "pairs"), "--min-distance", "0", "--held-out", "0"]
    build = ["data", "build", "--out", str(tmp_path / "set"), "--count", "2", "--identity", "0"]
    assert main([*build, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "composited over white" in printed and "1 samples" in printed
    cut, plain = TripletSet(tmp_path / "set")
    assert cut.info["composited_over_white"] == ["reference", "target"]
    assert "composited_over_white" not in plain.info
    for name in ("reference", "target"):
        pixels = getattr(cut, name)
        assert (pixels[:16] == 255).all(), "what was transparent is white, not black"
        expected = np.asarray(picture({"reference": 3, "target": 2}[name]))[16:48, 24:72]
        np.testing.assert_array_equal(pixels[16:48, 24:72], expected)


@pytest.mark.slow
def test_evaluation_reads_what_the_data_build_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_pair(data / "jpeg", ".jpg")
    write_pair(data / "tiff", ".tif")
    write_pair(data / "webp", ".webp", hidden=0)
    for junk in (data / "__MACOSX", data / "tiff" / "._draft.tif", data / ".DS_Store"):
        junk.mkdir() if junk.name == "__MACOSX" else junk.write_bytes(b"junk")
    assert [p.name for p in find_pairs(data)] == ["jpeg", "tiff", "webp"]
    cases = open_cases(data)
    assert list(cases.ids) == ["jpeg", "tiff", "webp"]
    assert cases.load(2).info["composited_over_white"] == ["reference", "target"]
    np.testing.assert_array_equal(cases.load(1).draft, np.asarray(picture(1)))
    out = tmp_path / "out"
    assert main(["evaluate", "--data", str(data), "--out", str(out), "--metrics", "pixels"]) == 0
    printed = capsys.readouterr().out
    assert "measured 3 cases" in printed
    report = (out / "report.html").read_text(encoding="utf-8")
    for note in ("of 1 cases were composited over white", "3 files of macOS or Windows"):
        assert note in printed and note in report


def test_system_files_are_no_references(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"junk")
    (tmp_path / "Thumbs.db").write_bytes(b"junk")
    assert [p.name for p in find_references(tmp_path)] == ["a"]
    assert count_system_files(tmp_path) == 2
    assert count_system_files(tmp_path / "none") == 0


@pytest.mark.parametrize("command", ["data", "evaluate"])
def test_ai_toolkits_folders_are_explained(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("control", "target"):
        (tmp_path / "in" / name).mkdir(parents=True)
        picture(1).save(tmp_path / "in" / name / "0001.png")
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    arguments = {
        "data": ["data", "build", "--pairs", source, "--out", out, "--count", "1"],
        "evaluate": ["evaluate", "--data", source, "--out", out],
    }[command]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for word in ("control", "target", "0001/reference.png", "0001/target.png", "prompt.txt"):
        assert word in error
