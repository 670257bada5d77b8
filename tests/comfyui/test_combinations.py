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
from .test_published import CRITIC, FLUX, outside_and_inside, ran

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


def same_change(server: Any, model: dict[str, Any]) -> tuple[float, float]:
    """How far the LoRA's change on this base is from its change on float32, and its size there.

    Mean absolute differences inside the mask; the base's own rounding is in both its pictures.
    """
    plain, changed = (
        picture(server, from_model(unet("tiny_flux.safetensors"), s)) for s in (0, STRONG)
    )
    base, ours = (picture(server, from_model(model, s)) for s in (0, STRONG))
    mask = np.asarray(Image.open(CASES / "word" / "mask.png")) > 0
    size = np.abs(changed - plain)[mask].mean()
    return float(np.abs((ours - base) - (changed - plain))[mask].mean()), float(size)


@pytest.fixture(scope="module", autouse=True)
def strong_lora(published: Any) -> None:
    weights = {k: 5 * v for k, v in synthetic.imagecritic_lora(128).items()}
    synthetic.write(published.base / "models/loras/tiny_strong_imagecritic.safetensors", weights)


@pytest.fixture(scope="module")
def scaled_fp8(published: Any) -> str:
    """The tiny FLUX as ComfyUI's `..._fp8_scaled` files are: fp8, one scale a matrix."""
    folder = published.base / "models" / "diffusion_models"
    out: dict[str, torch.Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, value in load_file(folder / "tiny_flux.safetensors").items():
        if "_blocks." in key and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / 448
            out[key] = (value / scale).to(torch.float8_e4m3fn)
            out[key.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            out[key] = value
    save_file(out, folder / "tiny_flux_fp8_scaled.safetensors")
    return "tiny_flux_fp8_scaled.safetensors"


def test_imagecritic_on_scaled_fp8(published: Any, scaled_fp8: str) -> None:
    apart, size = same_change(published, unet(scaled_fp8))
    print(f"combinations: scaled fp8: {apart:.2f} of {size:.2f} (8-bit values)")
    assert apart < 0.5 * size and size > 1
    out = picture(published, repair("word", steps=2, megapixels=0.03) | {
        "load": node("OmniRefiner_LoadRefiner", **(LOAD | CRITIC | {"diffusion_model": scaled_fp8}))
    })  # fmt: skip
    assert outside_and_inside(out)[1] > 500, "by Load Refiner as well"


@pytest.fixture(scope="module")
def gguf_file(published: Any) -> str:
    """The tiny FLUX as Q8_0, written by the gguf package."""
    if "UnetLoaderGGUF" not in published.get("/object_info"):
        pytest.skip("no GGUF: COMFYUI_GGUF names no checkout of city96/ComfyUI-GGUF")
    gguf = pytest.importorskip("gguf", reason="no GGUF: the package gguf is missing")
    folder = published.base / "models" / "diffusion_models"
    writer = gguf.GGUFWriter(folder / "tiny_flux_q8.gguf", "flux")
    small = gguf.GGMLQuantizationType.Q8_0
    for key, value in load_file(folder / "tiny_flux.safetensors").items():
        if "_blocks." in key and value.ndim == 2:
            writer.add_tensor(key, gguf.quants.quantize(value.numpy(), small), raw_dtype=small)
        else:
            writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return "tiny_flux_q8.gguf"


def test_imagecritic_on_gguf(published: Any, gguf_file: str) -> None:
    apart, size = same_change(published, node("UnetLoaderGGUF", unet_name=gguf_file))
    print(f"combinations: GGUF Q8_0: {apart:.2f} of {size:.2f} (8-bit values)")
    assert apart < 0.5 * size and size > 1


def test_a_refiner_lora_on_gguf(published: Any, gguf_file: str) -> None:
    """An ordinary LoRA through ComfyUI's own LoRA node."""
    graph = from_model(node("UnetLoaderGGUF", unet_name=gguf_file), 0, "omnirefiner")
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
