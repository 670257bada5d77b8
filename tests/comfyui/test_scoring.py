"""DreamSim Score and Load Scorer in a running ComfyUI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refiner_core.images.image_io import load_picture
from refiner_core.images.mask_io import load_mask
from refiner_core.images.tensors import to_float
from refiner_core.scoring.dreamsim_files import load_dreamsim
from refiner_core.scoring.dreamsim_release import convert_release
from refiner_core.scoring.dreamsim_scorer import DreamSimScorer
from refiner_core.scoring.structural import StructuralScorer
from tests.comfyui.graphs import CASES, node
from tests.dreamsim_release import TINY, write_release

STRUCTURAL = StructuralScorer.name
FILE = "tiny_ensemble.safetensors"


def graph(metric: str, **changes: Any) -> dict[str, Any]:
    """Example Case -> DreamSim Score of draft and target."""
    inputs = {"precision": "float32", "sizes": "refuse", "heat_scale": 0.0} | changes
    return {
        "case": node("OmniRefiner_ExampleCase", case="logo"),
        "score": node(
            "OmniRefiner_DreamSimScore",
            **{"image_a": ["case", 0], "image_b": ["case", 4], "metric": metric} | inputs,
        ),
        "distance": node("PreviewAny", source=["score", 0]),
        "heat": node("SaveImage", images=["score", 2], filename_prefix="heat"),
    }


def text(entry: dict[str, Any]) -> str:
    return entry["outputs"]["score"]["text"][0]


def distance(entry: dict[str, Any]) -> float:
    return float(entry["outputs"]["distance"]["text"][0])


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draft, target = (
        to_float(load_picture(CASES / "logo" / f"{n}.png").pixels) for n in ("draft", "target")
    )
    return draft, target, load_mask(CASES / "logo" / "mask.png")


@pytest.fixture(scope="module")
def dreamsim_file(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DreamSim in the server's models/dreamsim, as a user puts it there while it runs."""
    release = write_release(tmp_path_factory.mktemp("release") / "r", "ensemble", TINY)
    folder = server.base / "models" / "dreamsim"
    folder.mkdir(exist_ok=True)
    convert_release(release, folder / FILE, side=96)
    return folder / FILE


def test_without_a_file_it_says_what_to_do(server: Any) -> None:
    if (server.base / "models" / "dreamsim" / FILE).exists():
        pytest.fail("this test has to run before the file is there")
    info = server.get("/object_info/OmniRefiner_DreamSimScore")["OmniRefiner_DreamSimScore"]
    choices = info["input"]["required"]["metric"][1]["options"]
    assert choices == [STRUCTURAL, "DreamSim (no file in models/dreamsim yet)"]
    for chosen in (choices[1], FILE):
        status, answer = server.post("/prompt", {"prompt": graph(chosen)})
        assert status == 400
        said = str(answer)
        assert "models/dreamsim" in said and "dreamsim_ensemble_checkpoint.zip" in said
        assert "omnirefiner convert dreamsim" in said and STRUCTURAL in said


def test_score_without_weights(server: Any) -> None:
    entry = server.run(graph(STRUCTURAL, mask=["case", 2]))
    draft, target, mask = pictures()
    expected = float(StructuralScorer().distance(draft, target, mask))
    assert distance(entry) == pytest.approx(expected, abs=1e-4)
    assert re.fullmatch(
        r"MS-SSIM \+ edges \(no weights\): distance 0\.\d{4}, similarity 0\.\d{4}", text(entry)
    )
    heat = np.asarray(Image.open(server.saved(entry, "heat")[0]).convert("RGB")).astype(int)
    changed = np.abs(heat - (draft[0].movedim(0, -1).numpy() * 255).round()).sum(-1)
    inside = mask[0, 0].numpy() > 0
    assert changed[inside].mean() > 5 * changed[~inside].mean()


@pytest.mark.parametrize("masked", [False, True])
def test_the_files_numbers(server: Any, dreamsim_file: Path, masked: bool) -> None:
    entry = server.run(graph(FILE, **({"mask": ["case", 2]} if masked else {})))
    draft, target, mask = pictures()
    scorer = DreamSimScorer(load_dreamsim(dreamsim_file))
    expected = float(scorer.distance(draft, target, mask if masked else None))
    assert distance(entry) == pytest.approx(expected, abs=1e-5)
    assert text(entry).startswith("DreamSim ensemble: distance 0.")


def test_a_hundred_pictures(server: Any, dreamsim_file: Path) -> None:
    many = graph(FILE, image_b=["many", 0])
    many["many"] = node("RepeatImageBatch", image=["case", 4], amount=100)
    entry = server.run(many)
    single = server.run(graph(FILE))
    assert distance(entry) == pytest.approx(distance(single), abs=1e-5)
    assert "of 100 pairs" in text(entry)
    assert len(server.saved(entry, "heat")) == 100


def test_a_loaded_scorer_stays_loaded(server: Any, dreamsim_file: Path) -> None:
    def with_loader(case: str) -> dict[str, Any]:
        g = graph(STRUCTURAL, scorer=["load", 0])
        g["load"] = node("OmniRefiner_LoadScorer", metric=FILE, precision="float32")
        g["case"]["inputs"]["case"] = case
        return g

    first = server.run(with_loader("word"))
    assert text(first).startswith("DreamSim ensemble")  # the socket goes before the widget
    before = server.log.read_text().count("Requested to load DreamSim")
    server.run(with_loader("pattern"))
    assert server.log.read_text().count("Requested to load DreamSim") == before


def test_sizes_and_broken_input(server: Any, dreamsim_file: Path) -> None:
    small = graph(FILE, image_b=["small", 0])
    small["small"] = node(
        "ImageScale",
        image=["case", 4],
        upscale_method="bicubic",
        width=200,
        height=120,
        crop="disabled",
    )
    entry = server.wait(server.queue(small))
    assert "different sizes" in server.error(entry) and "200x120" in server.error(entry)
    for policy in ("stretch", "crop"):
        small["score"]["inputs"]["sizes"] = policy
        assert 0 < distance(server.run(small)) < 2
    empty = graph(FILE, mask=["empty", 0])
    height, width = pictures()[0].shape[-2:]
    empty["empty"] = node("SolidMask", value=0.0, width=width, height=height)
    entry = server.wait(server.queue(empty))
    assert "mask of item 0 is empty" in server.error(entry)


def test_a_folder_is_scored_by_name(server: Any) -> None:
    folder = server.base / "input" / "to score"
    folder.mkdir()
    shown = graph(
        STRUCTURAL, image_a=["case", 4], image_b=["load", 0], name=["load", 1], sizes="stretch"
    )
    shown["load"] = node("OmniRefiner_LoadFolder", folder="to score", most=0)
    assert str(folder) in server.error(server.wait(server.queue(shown)))
    draft, target = (Image.open(CASES / "logo" / f"{n}.png") for n in ("draft", "target"))
    draft.save(folder / "10 draft.png")
    target.resize((320, 214)).save(folder / "9 small.png")
    target.save(folder / "2 true.png")
    (folder / "notes.txt").write_text("no picture")

    def scored() -> list[tuple[str, float]]:
        lines = server.run(shown)["outputs"]["score"]["text"]
        found = [re.match(r"(.+) · .*distance ([\d.]+)", line) for line in lines]
        return [(m[1], float(m[2])) for m in found if m]

    names, distances = zip(*scored(), strict=True)
    assert names == ("2 true.png", "9 small.png", "10 draft.png")
    assert distances[0] == 0 and min(distances[1:]) > 0
    shown["load"]["inputs"]["most"] = 1
    assert scored() == [("2 true.png", 0)]
    draft.save(folder / "1 new.png")  # another first picture: the folder is read again
    assert scored()[0][0] == "1 new.png"
    shown["load"]["inputs"]["folder"] = "gone"
    assert str(folder.parent / "gone") in server.error(server.wait(server.queue(shown)))


def test_the_folder_is_listed(server: Any, dreamsim_file: Path) -> None:
    (dreamsim_file.parent / "pickle.pth").write_bytes(b"")
    assert server.get("/models/dreamsim") == [FILE]
    info = server.get("/object_info/OmniRefiner_LoadScorer")["OmniRefiner_LoadScorer"]
    assert info["input"]["required"]["metric"][1]["options"] == [STRUCTURAL, FILE]


def test_extra_model_paths_and_other_models(run_in_comfyui: Any, tmp_path: Path) -> None:
    """A folder of extra_model_paths.yaml is searched too; scoring leaves a loaded model loaded."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    release = write_release(tmp_path / "release", "clip_vitb32", TINY)
    convert_release(release, folder / "extra.safetensors", side=64)
    script = Path(__file__).with_name("score_beside_nano.py")
    assert "extra.safetensors scored, nano still loaded" in run_in_comfyui(script, folder)
