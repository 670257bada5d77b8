"""Files of people's own in a running ComfyUI: LoRAs, folders, masks and transparent images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from tests.comfyui.graphs import CASES, LOAD, node, pixels, repair

MODULES = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k")
WIDTH = 256  # of nano


def factors(scale: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    draw = lambda *shape: 0.3 * torch.randn(*shape, generator=g)  # noqa: E731
    return {m: (draw(4, WIDTH), scale * draw(WIDTH, 4)) for m in MODULES}


def named(
    rename: Callable[[str], str], a: str = "lora_A.weight", b: str = "lora_B.weight"
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for module, (down, up) in factors().items():
        out[f"{rename(module)}.{a}"], out[f"{rename(module)}.{b}"] = down, up
    return out


PLAIN = named(lambda m: f"transformer.{m}")
SAME = {
    "bare": named(lambda m: m),
    "peft": named(lambda m: f"base_model.model.{m}"),
    "peft_adapter": named(
        lambda m: f"base_model.model.{m}", "lora_A.default.weight", "lora_B.default.weight"
    ),
    "onetrainer": named(
        lambda m: f"lora_transformer_{m.replace('.', '_')}", "lora_down.weight", "lora_up.weight"
    ),
}
REFUSED = {
    "bias": (PLAIN | {f"transformer.{MODULES[0]}.lora_B.bias": torch.ones(WIDTH)}, "biases"),
    "dora": (PLAIN | {f"transformer.{MODULES[0]}.lora_magnitude_vector": torch.ones(1)}, "DoRA"),
    "lokr": ({"lycoris_transformer_blocks_0_attn_to_k.lokr_w1": torch.ones(16, 16)}, "LoKr"),
    "half": (PLAIN | named(lambda m: "transformer." + m.replace(".0.", ".7.")), "7.attn.to_q"),
    "rank": (PLAIN | {f"transformer.{MODULES[0]}.lora_A.weight": torch.ones(2, WIDTH)}, "rank 2"),
}


def with_lora(server: Any, name: str, sd: dict[str, Tensor], **metadata: str) -> dict[str, Any]:
    save_file(sd, server.base / "models" / "loras" / f"{name}.safetensors", metadata or None)
    graph = repair(steps=2)
    graph["load"]["inputs"] |= {"refiner_lora": f"{name}.safetensors"}
    return graph


def test_a_lora_means_the_same_in_every_layout(server: Any) -> None:
    plain = pixels(server.saved(server.run(repair(steps=2)), "save")[0])
    wanted = pixels(server.saved(server.run(with_lora(server, "plain", PLAIN)), "save")[0])
    assert (wanted != plain).any(), "the LoRA does something"
    for name, sd in SAME.items():
        found = pixels(server.saved(server.run(with_lora(server, name, sd)), "save")[0])
        assert np.abs(found - wanted).max() <= 1, name
    stronger = {k: v * 4 if "lora_B" in k else v for k, v in PLAIN.items()}
    four = pixels(server.saved(server.run(with_lora(server, "four", stronger)), "save")[0])
    note = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 16})
    graph = with_lora(server, "noted", PLAIN, lora_adapter_metadata=note)
    assert np.abs(pixels(server.saved(server.run(graph), "save")[0]) - four).max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(server: Any, name: str) -> None:
    sd, says = REFUSED[name]
    entry = server.wait(server.queue(with_lora(server, name, sd)))
    assert says in server.error(entry)


def test_load_folder_reads_what_viewers_read(server: Any) -> None:
    folder: Path = server.base / "input" / "mixed"
    folder.mkdir()
    red = Image.new("RGB", (16, 12), "red")
    for name in ("a.PNG", "b.jfif", "c.gif", "d.tga"):
        red.save(folder / name, "JPEG" if name.endswith("jfif") else None)
    with (folder / "e.png").open("wb") as stream:
        rows = np.full((12, 48), 40000, np.uint16).tolist()
        png.Writer(16, 12, bitdepth=16, greyscale=False).write(stream, rows)
    (folder / "._a.png").write_bytes(b"\0\5\26\7")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "f.png").write_bytes(b"<html>")
    graph = {
        "folder": node("OmniRefiner_LoadFolder", folder="mixed", most=0),
        "save": node("SaveImage", images=["folder", 0], filename_prefix="mixed"),
    }
    entry = server.run(graph)
    saved = server.saved(entry, "save")
    assert len(saved) == 5
    assert pixels(saved[-1])[0, 0].tolist() == pytest.approx([40000 / 257] * 3, abs=1)
    assert "f.png" in server.log.read_text()


def test_an_unpainted_mask_is_no_mask(server: Any) -> None:
    """Load Image gives 64x64 zeros for a picture without alpha."""
    Image.open(CASES / "logo" / "reference.png").convert("RGB").save(
        server.base / "input" / "plain_reference.png"
    )
    graph = repair(steps=2)
    graph["image"] = node("LoadImage", image="plain_reference.png")
    inputs = graph["refine"]["inputs"]
    inputs["reference"] = ["image", 0]
    del inputs["reference_mask"]
    without = pixels(server.saved(server.run(graph), "save")[0])
    inputs["reference_mask"] = ["image", 1]
    entry = server.run(graph)
    assert (pixels(server.saved(entry, "save")[0]) == without).all()
    (note,) = json.loads(entry["outputs"]["report"]["text"][0])["notes"]
    assert "64x64" in note


@pytest.mark.parametrize("wired", [False, True], ids=["image", "image and mask"])
def test_load_image_reads_a_transparent_reference_as_it_is_seen(server: Any, wired: bool) -> None:
    """Its IMAGE shows the hidden color of transparent pixels, and its MASK marks those."""
    folder = server.base / "input"
    letters = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    ImageDraw.Draw(letters).rectangle((64, 96, 192, 160), fill=(20, 20, 40, 255))
    letters.save(folder / "wordmark.png")
    graph = repair(steps=2)
    graph["image"] = node("LoadImage", image="wordmark.png")
    graph["crop"] = node("OmniRefiner_CropForRefine", draft=["case", 0], reference=["image", 0],
        mask=["case", 2], recipe="omnirefiner", context=1.5, megapixels=0.0, grow=0)  # fmt: skip
    graph["shown"] = node("SaveImage", images=["crop", 1], filename_prefix="reference")
    for name in ("refine", "crop"):
        graph[name]["inputs"] |= {"reference": ["image", 0], "reference_mask": ["image", 1]}
        if not wired:
            del graph[name]["inputs"]["reference_mask"]
    entry = server.run(graph)
    notes = json.loads(entry["outputs"]["report"]["text"][0])["notes"]
    assert [n for n in notes if "over white" in n]
    assert any("reference_mask" in n for n in notes) == wired
    shown = pixels(server.saved(entry, "shown")[0])
    assert shown.max() > 250 and shown.min() < 30
    region = json.loads(entry["outputs"]["report"]["text"][0])["regions"][0]
    x0, y0, x1, y1 = region["references"][0]["crop"]
    assert (x1 - x0) * (y1 - y0) < 256 * 256  # framed by the letters
    score = {
        "letters": node("LoadImage", image="wordmark.png"),
        "white": node("LoadImage", image="on_white.png"),
        "score": node("OmniRefiner_DreamSimScore", image_a=["letters", 0], image_b=["white", 0],
            metric="MS-SSIM + edges (no weights)", precision="float32", sizes="refuse", heat_scale=0.0),
        "distance": node("PreviewAny", source=["score", 0]),
    }  # fmt: skip
    white = Image.new("RGBA", letters.size, "white")
    Image.alpha_composite(white, letters).convert("RGB").save(folder / "on_white.png")
    entry = server.run(score)
    assert float(entry["outputs"]["distance"]["text"][0]) == pytest.approx(0, abs=1e-6)


def test_transparent_images(server: Any) -> None:
    """A reference is seen over white with its alpha as mask; a draft keeps its alpha, also in Stitch."""
    graph = repair(steps=2)
    graph["alpha"] = node("InvertMask", mask=["case", 3])
    graph["reference"] = node("JoinImageWithAlpha", image=["case", 1], alpha=["alpha", 0])
    inputs = graph["refine"]["inputs"]
    inputs["reference"] = ["reference", 0]
    del inputs["reference_mask"]
    report = json.loads(server.run(graph)["outputs"]["report"]["text"][0])
    assert report["notes"] and "alpha" in report["notes"][0]
    graph["hole"] = node("SolidMask", value=0.25, width=256, height=256)
    graph["size"] = node("GetImageSize", image=["case", 0])
    graph["hole"]["inputs"] |= {"width": ["size", 0], "height": ["size", 1]}
    graph["draft"] = node("JoinImageWithAlpha", image=["case", 0], alpha=["hole", 0])
    graph["crop"] = node(
        "OmniRefiner_CropForRefine", draft=["draft", 0], reference=["case", 1], mask=["case", 2],
        reference_mask=["case", 3], recipe="nano", context=1.5, megapixels=0.0, grow=0,
    )  # fmt: skip
    graph["stitch"] = node(
        "OmniRefiner_Stitch", refine_crop=["crop", 3], image=["crop", 0], feather=6,
        blend="feather", fix_drift=True, color_match=1.0,
    )  # fmt: skip
    graph["save"]["inputs"]["images"] = ["stitch", 0]
    image = Image.open(server.saved(server.run(graph), "save")[0])
    assert image.mode == "RGBA" and image.getchannel("A").getextrema() == (191, 191)


def test_recipe_folders_of_extra_model_paths(launcher: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    launcher.furnish(base)
    (base / "models/omnirefiner_recipes/own.json").write_text(
        json.dumps({"name": "own", "based_on": "nano"})
    )
    shared = tmp_path / "shared" / "recipes"
    shared.mkdir(parents=True)
    (shared / "shared.json").write_text(json.dumps({"name": "shared", "based_on": "nano"}))
    (shared / "readme.txt").write_text("Not a recipe.")
    config = tmp_path / "paths.yaml"
    config.write_text(f"disk:\n  base_path: {tmp_path}/shared\n  omnirefiner_recipes: recipes\n")
    with launcher.running(base, options=["--extra-model-paths-config", str(config)]) as server:
        info = server.get("/object_info/OmniRefiner_LoadRefiner")["OmniRefiner_LoadRefiner"]
    spec = info["input"]["required"]["recipe"]
    choices = spec[1].get("options", spec[0])
    assert {"own.json", "shared.json"} <= set(choices) and "readme.txt" not in choices
    assert LOAD["recipe"] in choices
