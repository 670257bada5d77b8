"""Each published refiner from Load Refiner to a saved picture, over HTTP, with files in miniature.

Everything is ComfyUI's own but the weights, which are random, and the sizes of text encoders and of
Qwen-Image, which ComfyUI holds as constants: see tiny_sizes.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .graphs import CASES, LOAD, node, pixels, repair

FLUX = {
    "diffusion_model": "tiny_flux.safetensors", "clip_l": "tiny_clip_l.safetensors",
    "t5xxl": "tiny_t5xxl.safetensors", "vae": "tiny_ae.safetensors",
}  # fmt: skip
QWEN = {
    "recipe": "refineanything", "diffusion_model": "tiny_qwen_edit_2511.safetensors",
    "text_encoder": "tiny_qwen_2.5_vl.safetensors", "vae": "tiny_qwen_vae.safetensors",
    "refiner_lora": "tiny_refineany.safetensors",
}  # fmt: skip
CRITIC = FLUX | {
    "recipe": "imagecritic", "refiner_lora": "tiny_imagecritic.safetensors",
    "detail_encoder": "tiny_detail_encoder.safetensors",
}  # fmt: skip
KLEIN = {
    "recipe": "flux2-klein", "diffusion_model": "tiny_klein.safetensors",
    "text_encoder": "tiny_qwen_3_4b.safetensors", "vae": "tiny_flux2_vae.safetensors",
}  # fmt: skip
DEV = KLEIN | {
    "recipe": "flux2-dev", "diffusion_model": "tiny_flux2_dev.safetensors",
    "text_encoder": "tiny_mistral_3.safetensors",
}  # fmt: skip
LIGHTNING = {"accelerator_lora": "tiny-Lightning-2steps.safetensors"}


def published_repair(files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    graph = repair("word", **({"steps": 2, "megapixels": 0.03, "seed": 7} | changes))
    graph["load"] = node("OmniRefiner_LoadRefiner", **(LOAD | files))
    return graph


def ran(server: Any, graph: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The saved picture and the report; the log tells of no weight that was left out."""
    before = len(server.log.read_text())
    entry = server.run(graph)
    log = server.log.read_text()[before:]
    for sign in ("ERROR", "lora key not loaded", "unet missing", "clip missing", "Missing VAE"):
        assert sign not in log, log[-3000:]
    out = pixels(server.saved(entry, "save")[0])
    return out, json.loads(entry["outputs"]["report"]["text"][0])


def outside_and_inside(out: np.ndarray) -> tuple[int, int]:
    """How many pixels changed outside the mask, and inside."""
    draft = pixels(CASES / "word" / "draft.png")
    mask = np.asarray(Image.open(CASES / "word" / "mask.png")) > 0
    changed = (out != draft).any(-1)
    return int(changed[~mask].sum()), int(changed[mask].sum())


@pytest.mark.parametrize(
    ("files", "steps", "run"),
    [
        (CRITIC, 2, (2, 3.5, 1.0)),
        (FLUX | {"recipe": "kontext"}, 2, (2, 2.5, 1.0)),
        (KLEIN, 2, (2, None, 1.0)),
        (DEV, 2, (2, 4.0, 1.0)),
        (QWEN, 2, (2, None, 4.0)),
        (QWEN | LIGHTNING, 0, (2, None, 1.0)),  # as the Lightning file's name says
    ],
    ids=["imagecritic", "kontext", "flux2-klein", "flux2-dev", "refineanything", "lightning"],
)
def test_from_loader_to_picture(
    published: Any, files: dict[str, Any], steps: int, run: tuple[int, float | None, float]
) -> None:
    folder = published.base / "output"
    before = set(folder.rglob("*"))
    out, report = ran(published, published_repair(files, steps=steps))
    assert len(set(folder.rglob("*")) - before) == 1, "no file but Save Image's"
    outside, inside = outside_and_inside(out)
    assert outside == 0 and inside > 500
    assert report["recipe"] == files["recipe"]
    assert (report["steps"], report["guidance"], report["cfg"]) == run


def test_a_second_loader_does_not_stack_its_lora(published: Any) -> None:
    """It shares the model that the first one loaded, but not what the first one added to it."""
    first, second, again = (
        ran(published, published_repair(CRITIC | {"lora_strength": s}, seed=8))[0]
        for s in (4.0, 0.0, 4.0)
    )
    plain, _ = ran(published, published_repair(CRITIC | {"lora_strength": 0.0}, seed=8))
    assert (first == again).all() and (second == plain).all() and (first != second).any()


def test_refineanything_without_a_reference(published: Any) -> None:
    graph = published_repair(QWEN)
    for name in ("reference", "reference_mask"):
        del graph["refine"]["inputs"][name]
    out, report = ran(published, graph)
    outside, inside = outside_and_inside(out)
    assert outside == 0 and inside > 500
    with_reference, _ = ran(published, published_repair(QWEN))
    assert (out != with_reference).any()


def test_a_file_that_a_workflow_names_and_is_not_there(published: Any) -> None:
    name = "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors"
    graph = published_repair(QWEN | {"accelerator_lora": name})
    said = published.error(published.wait(published.queue(graph)))
    for word in ("accelerator_lora", name, "models/loras", "Qwen-Image-Edit-2511"):
        assert word in said
    unused = published_repair(FLUX | {"recipe": "kontext", "text_encoder": "gone.safetensors"})
    ran(published, unused)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (QWEN | {"text_encoder": "none"}, ["refineanything", "text_encoder", "Qwen2.5-VL"]),
        (FLUX | {"recipe": "kontext", "t5xxl": "none"}, ["kontext", "t5xxl", "FLUX.1"]),
        (CRITIC | {"detail_encoder": "none"}, ["imagecritic", "detail_encoder", "ImageCritic"]),
        (CRITIC | {"refiner_lora": "half.safetensors"}, ["refiner_lora", "half.safetensors"]),
        (QWEN | {"accelerator_lora": "half.safetensors"}, ["accelerator_lora", "half.safetensors"]),
        (QWEN | {"text_encoder": "half_t5.safetensors"}, ["text_encoder", "half_t5.safetensors"]),
        (
            FLUX | {"recipe": "kontext", "refiner_lora": QWEN["refiner_lora"]},
            ["refiner_lora", "tiny_refineany.safetensors", "Qwen-Image", "FLUX.1"],
        ),
        (
            CRITIC | {"detail_encoder": "swapped.safetensors"},
            ["detail_encoder", "swapped.safetensors", "ImageCritic's LoRA", "refiner_lora"],
        ),
        (
            QWEN | {"diffusion_model": "tiny_flux.safetensors"},
            ["diffusion_model", "tiny_flux.safetensors", "FLUX.1"],
        ),
        (
            KLEIN | {"diffusion_model": DEV["diffusion_model"]},
            ["diffusion_model", "tiny_flux2_dev.safetensors", "flux2-dev", "flux2-klein"],
        ),
        (
            DEV | {"text_encoder": KLEIN["text_encoder"]},
            ["text_encoder", "tiny_qwen_3_4b.safetensors", "Qwen3", "flux2-klein"],
        ),
        (
            CRITIC | {"accelerator_lora": CRITIC["refiner_lora"]},
            ["accelerator_lora", CRITIC["refiner_lora"], "refiner_lora", "imagecritic"],
        ),
        (
            CRITIC | {"refiner_lora": "tiny_omnirefiner.safetensors"},
            ["refiner_lora", "tiny_omnirefiner.safetensors", "imagecritic", "Refiner from Model"],
        ),
        (
            KLEIN | {"accelerator_lora": "tiny_omnirefiner.safetensors"},
            ["flux2-klein", "accelerator LoRA"],
        ),
    ],
)
def test_bad_files_are_named(published: Any, files: dict[str, Any], named: list[str]) -> None:
    models = published.base / "models"
    for source, copy in (
        ("loras/tiny_imagecritic", "loras/half"), ("text_encoders/tiny_t5xxl", "text_encoders/half_t5"),
    ):  # fmt: skip
        whole = (models / f"{source}.safetensors").read_bytes()
        (models / f"{copy}.safetensors").write_bytes(whole[: len(whole) // 2])
    lora = (models / "loras/tiny_imagecritic.safetensors").read_bytes()
    (models / "clip_vision/swapped.safetensors").write_bytes(lora)
    said = published.error(published.wait(published.queue(published_repair(files))))
    assert said and [word for word in named if word not in said] == [], said
