"""Bases, accelerators and other LoRAs together with the refiners, as README's table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .. import synthetic
from .graphs import CASES, LOAD, node, pixels, repair
from .test_published import (
    CRITIC,
    FLUX,
    KLEIN,
    LIGHTNING,
    QWEN,
    outside_and_inside,
    published_repair,
    ran,
)

STRONG = 4.0  # so that random LoRAs are seen in the picture


def from_model(model: dict[str, Any], lora: float, recipe: str = "imagecritic") -> dict[str, Any]:
    """The repair with what ComfyUI's own loaders give, `model` the node that gives MODEL."""
    graph = repair("word", steps=2, megapixels=0.03, seed=7)
    del graph["load"]
    graph |= {
        "unet": model,
        "vae": node("VAELoader", vae_name=FLUX["vae"]),
        "clip": node("DualCLIPLoader", clip_name1=FLUX["clip_l"], clip_name2=FLUX["t5xxl"],
                     type="flux"),
        "made": node("OmniRefiner_RefinerFromModel", model=["unet", 0], vae=["vae", 0],
                     clip=["clip", 0], recipe=recipe),
    }  # fmt: skip
    if recipe == "imagecritic":
        graph["made"]["inputs"] |= {
            "refiner_lora": "tiny_strong_imagecritic.safetensors", "lora_strength": lora,
            "detail_encoder": CRITIC["detail_encoder"],
        }  # fmt: skip
    graph["refine"]["inputs"]["refiner"] = ["made", 0]
    return graph


def unet(name: str) -> dict[str, Any]:
    return node("UNETLoader", unet_name=name, weight_dtype="default")


def picture(server: Any, graph: dict[str, Any]) -> np.ndarray:
    out, _ = ran(server, graph)
    assert outside_and_inside(out)[0] == 0
    return out


def off_the_truth(server: Any, model: dict[str, Any], meant: str) -> tuple[float, float, float]:
    """How far the LoRA's picture on a quantised base is from that on `meant`, the float32 file of what
    the quantised weights stand for; the same without the LoRA; how much it changes the picture.

    Mean absolute differences inside the mask, in 8-bit values.
    """
    base, ours = (picture(server, from_model(model, s)) for s in (0, STRONG))
    plain, truth = (picture(server, from_model(unet(meant), s)) for s in (0, STRONG))
    mask = np.asarray(Image.open(CASES / "word" / "mask.png")) > 0

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b)[mask].mean())

    return apart(ours, truth), apart(base, plain), apart(truth, plain)


@pytest.fixture(scope="module", autouse=True)
def strong_lora(published: Any) -> None:
    weights = {k: 5 * v for k, v in synthetic.imagecritic_lora(128).items()}
    synthetic.write(published.base / "models/loras/tiny_strong_imagecritic.safetensors", weights)


def write_scaled_fp8(published: Any, name: str) -> tuple[str, str]:
    """A tiny model as ComfyUI's `..._fp8_scaled` files are, and the float32 file that it means."""
    folder = published.base / "models" / "diffusion_models"
    file, meant = synthetic.scaled_fp8(load_file(folder / f"{name}.safetensors"))
    names = f"{name}_fp8_scaled.safetensors", f"{name}_fp8_meant.safetensors"
    for path, weights in zip(names, (file, meant), strict=True):
        save_file(weights, folder / path)
    return names


@pytest.fixture(scope="module")
def scaled_fp8(published: Any) -> tuple[str, str]:
    return write_scaled_fp8(published, "tiny_flux")


@pytest.mark.parametrize("files", [QWEN | LIGHTNING, KLEIN], ids=lambda f: f["recipe"])
def test_other_models_on_scaled_fp8(published: Any, files: dict[str, Any]) -> None:
    name, _ = write_scaled_fp8(published, files["diffusion_model"].removesuffix(".safetensors"))
    outside, inside = outside_and_inside(
        ran(published, published_repair(files | {"diffusion_model": name}))[0]
    )
    assert outside == 0 and inside > 500


def test_imagecritic_on_scaled_fp8(published: Any, scaled_fp8: tuple[str, str]) -> None:
    file, meant = scaled_fp8
    off, alone, change = off_the_truth(published, unet(file), meant)
    print(f"combinations: scaled fp8: off by {off:.4f} of {change:.2f}, without LoRA {alone:.4f}")
    assert off < 1e-3 * change and change > 1
    out = picture(published, repair("word", steps=2, megapixels=0.03) | {
        "load": node("OmniRefiner_LoadRefiner", **(LOAD | CRITIC | {"diffusion_model": file}))
    })  # fmt: skip
    assert outside_and_inside(out)[1] > 500, "by Load Refiner as well"


def write_gguf(published: Any, name: str, architecture: str) -> tuple[str, str]:
    """A tiny model as Q8_0, written by the gguf package, and the float32 file that it means."""
    if "UnetLoaderGGUF" not in published.get("/object_info"):
        pytest.skip("no GGUF: COMFYUI_GGUF names no checkout of city96/ComfyUI-GGUF")
    gguf = pytest.importorskip("gguf", reason="no GGUF: the package gguf is missing")
    folder = published.base / "models" / "diffusion_models"
    names = f"{name}_q8.gguf", f"{name}_q8_meant.safetensors"
    writer = gguf.GGUFWriter(folder / names[0], architecture)
    small = gguf.GGMLQuantizationType.Q8_0
    meant = {}
    for key, value in load_file(folder / f"{name}.safetensors").items():
        if not value.numel():  # the mark of Qwen-Image-Edit-2511, which GGUF cannot hold
            continue
        meant[key] = value
        if "_blocks." in key and value.ndim == 2:
            packed = gguf.quants.quantize(value.numpy(), small)
            writer.add_tensor(key, packed, raw_dtype=small)
            meant[key] = torch.from_numpy(gguf.quants.dequantize(packed, small))
        else:
            writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(meant, folder / names[1])
    return names


@pytest.fixture(scope="module")
def gguf_file(published: Any) -> tuple[str, str]:
    return write_gguf(published, "tiny_flux", "flux")


def test_refineanything_on_gguf(published: Any) -> None:
    name, _ = write_gguf(published, "tiny_qwen_edit_2511", "qwen_image")
    graph = published_repair(QWEN, guidance=1.0)
    del graph["load"]
    graph |= {
        "unet": node("UnetLoaderGGUF", unet_name=name),
        "vae": node("VAELoader", vae_name=QWEN["vae"]),
        "clip": node("CLIPLoader", clip_name=QWEN["text_encoder"], type="qwen_image"),
        "fast": node("LoraLoaderModelOnly", model=["unet", 0], strength_model=1.0,
                     lora_name=LIGHTNING["accelerator_lora"]),
        "made": node("OmniRefiner_RefinerFromModel", model=["fast", 0], vae=["vae", 0],
                     clip=["clip", 0], recipe="refineanything", refiner_lora=QWEN["refiner_lora"]),
    }  # fmt: skip
    graph["refine"]["inputs"]["refiner"] = ["made", 0]
    out, report = ran(published, graph)
    outside, inside = outside_and_inside(out)
    assert outside == 0 and inside > 500 and report["cfg"] == 1.0


def test_imagecritic_on_gguf(published: Any, gguf_file: tuple[str, str]) -> None:
    file, meant = gguf_file
    off, alone, change = off_the_truth(published, node("UnetLoaderGGUF", unet_name=file), meant)
    print(f"combinations: GGUF Q8_0: off by {off:.4f} of {change:.2f}, without LoRA {alone:.4f}")
    # Its loader multiplies the weights out in 16 bit, which shows without a LoRA as well.
    assert off < 3e-3 * change and change > 1


def test_a_refiner_lora_on_gguf(published: Any, gguf_file: tuple[str, str]) -> None:
    """An ordinary LoRA through ComfyUI's own LoRA node."""
    graph = from_model(node("UnetLoaderGGUF", unet_name=gguf_file[0]), 0, "omnirefiner")
    plain = picture(published, graph)
    graph["lora"] = node("LoraLoaderModelOnly", model=["unet", 0],
                         lora_name="tiny_omnirefiner.safetensors", strength_model=10 * STRONG)  # fmt: skip
    graph["made"]["inputs"]["model"] = ["lora", 0]
    assert (picture(published, graph) != plain).any()


def test_a_style_lora_beside_imagecritics(published: Any) -> None:
    graph = from_model(unet("tiny_flux.safetensors"), STRONG)
    alone = picture(published, graph)
    graph["style"] = node("LoraLoaderModelOnly", model=["unet", 0],
                          lora_name="tiny_omnirefiner.safetensors", strength_model=10 * STRONG)  # fmt: skip
    graph["made"]["inputs"]["model"] = ["style", 0]
    both = picture(published, graph)
    graph["made"]["inputs"]["lora_strength"] = 0.0
    style = picture(published, graph)
    assert (both != alone).any() and (both != style).any()


TURBO, HYPER = "FLUX.1-Turbo-Alpha.safetensors", "Hyper-FLUX.1-dev-8steps-lora.safetensors"


@pytest.fixture(scope="module")
def accelerators(published: Any) -> None:
    """FLUX.1's 8-step LoRAs by their names and types."""
    folder = published.base / "models" / "loras"
    weights = {k: 3 * v for k, v in synthetic.flux_accelerator_lora(width=128).items()}
    synthetic.write(folder / TURBO, weights, torch.bfloat16)
    synthetic.write(folder / HYPER, weights, torch.float32)


@pytest.mark.parametrize(
    ("files", "name", "strength", "guidance"),
    [(CRITIC, TURBO, 1.0, 3.5), (FLUX | {"recipe": "kontext"}, HYPER, 0.125, 2.5)],
    ids=["imagecritic-turbo", "kontext-hyper"],
)
def test_accelerators_by_load_refiner(
    published: Any, accelerators: None, files: dict[str, Any], name: str, strength: float,
    guidance: float,
) -> None:  # fmt: skip
    fast = {"accelerator_lora": name, "accelerator_strength": strength}
    out, report = ran(published, published_repair(files | fast, steps=0))
    assert outside_and_inside(out)[0] == 0
    assert (report["steps"], report["guidance"], report["cfg"]) == (8, guidance, 1.0)
    assert (out != ran(published, published_repair(files, steps=8))[0]).any()


def with_turbo(model: dict[str, Any]) -> dict[str, Any]:
    """ImageCritic by Refiner from Model with Turbo through ComfyUI's LoRA node."""
    graph = from_model(model, 1.0)
    graph["turbo"] = node("LoraLoaderModelOnly", model=["unet", 0], lora_name=TURBO,
                          strength_model=1.0)  # fmt: skip
    graph["made"]["inputs"] |= {"model": ["turbo", 0], "refiner_lora": CRITIC["refiner_lora"]}
    graph["refine"]["inputs"]["steps"] = 8
    return graph


def test_turbo_through_the_lora_node_is_the_same(published: Any, accelerators: None) -> None:
    out = picture(published, with_turbo(unet("tiny_flux.safetensors")))
    loaded = published_repair(CRITIC | {"accelerator_lora": TURBO}, steps=0)
    assert (out == picture(published, loaded)).all()


def test_turbo_and_imagecritic_on_scaled_fp8(
    published: Any, accelerators: None, scaled_fp8: tuple[str, str]
) -> None:
    graph = with_turbo(unet(scaled_fp8[0]))
    both = picture(published, graph)
    graph["made"]["inputs"]["model"] = ["unet", 0]
    assert (both != picture(published, graph)).any()


def test_turbo_and_imagecritic_on_gguf(
    published: Any, accelerators: None, gguf_file: tuple[str, str]
) -> None:
    graph = with_turbo(node("UnetLoaderGGUF", unet_name=gguf_file[0]))
    both = picture(published, graph)
    graph["made"]["inputs"]["model"] = ["unet", 0]
    assert (both != picture(published, graph)).any()


def test_a_lora_of_the_same_layers_as_one_before_it(published: Any) -> None:
    """Load Refiner's own check that a LoRA fits is not fooled by layers that are patched already."""
    name = "tiny_omnirefiner.safetensors"
    fast = {"accelerator_lora": name, "refiner_lora": name, "recipe": "omnirefiner"}
    out, report = ran(published, published_repair(FLUX | fast))
    assert outside_and_inside(out)[1] > 500 and report["engine"]["weights"].count(name) == 2


def test_torch_compile(published: Any) -> None:
    """ComfyUI's compiler wrapper gives the same picture; traced only, see conftest."""
    graph = from_model(unet("tiny_kontext.safetensors"), 0, "omnirefiner")
    graph["load"] = node("OmniRefiner_LoadRefiner", **LOAD)
    graph["parts"] = node("OmniRefiner_RefinerParts", refiner=["load", 0], prompt="")
    inputs = graph["made"]["inputs"]
    del graph["clip"], inputs["clip"]
    inputs["conditioning"] = ["parts", 2]  # of nano, whose text width this model has
    plain = picture(published, graph)
    graph["compile"] = node("Traced", model=["unet", 0])
    inputs["model"] = ["compile", 0]
    compiled = pixels(published.saved(published.run(graph, seconds=500), "save")[0])
    assert np.abs(compiled - plain).max() <= 3
