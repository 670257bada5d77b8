"""The published refiners in a real ComfyUI, with weights in miniature."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_core.models.detail_encoder import fill_triggers, load_detail_encoder
from refiner_core.models.text import FluxText
from refiner_core.recipes.recipe import IMAGECRITIC, KONTEXT, OMNIREFINER
from refiner_core.sampling import draw_noise
from refiner_core.weights.imagecritic_lora import merge_imagecritic, read_imagecritic_lora
from refiner_core.weights.keys import bfl_to_diffusers, diffusers_to_bfl
from refiner_core.weights.lora import apply_lora, read_lora

from .. import synthetic

SCRIPT = Path(__file__).with_name("imagecritic_native.py")


def merged(model: FluxTransformer2DModel, lora: Path) -> dict[str, Tensor]:
    """The weights with the LoRA merged into a copy of them."""
    model = copy.deepcopy(model)
    merge_imagecritic(model, read_imagecritic_lora(lora), 0.8)
    return model.state_dict()


def holding(model: FluxTransformer2DModel, weights: dict[str, Tensor]) -> FluxTransformer2DModel:
    """The same model with other weights."""
    model = copy.deepcopy(model)
    model.load_state_dict(weights)
    return model


def test_imagecritic_lora_is_exact_in_both_ways(run_in_comfyui: Any, tmp_path: Path) -> None:
    """As patches, beside the weights, and beside fp8: against the LoRA merged into what they mean."""
    model = FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=20, guidance_embeds=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    weights = {k: 10 * v for k, v in synthetic.imagecritic_lora(double=2, single=2).items()}
    lora = synthetic.write(tmp_path / "lora.safetensors", weights, None)
    scaled, meant = synthetic.scaled_fp8(diffusers_to_bfl(model.state_dict()))
    cast = {k: v.to(torch.float8_e4m3fn).float() for k, v in model.state_dict().items()}
    other = {k: 10 * v for k, v in synthetic.peft_lora(
        [f"transformer_blocks.{i}.attn.{p}" for i in (0, 1) for p in ("to_q", "to_out.0")]
    ).items()}  # fmt: skip
    other_file = synthetic.write(tmp_path / "other.safetensors", other, None)
    both = copy.deepcopy(model)
    apply_lora(both, read_lora(other_file), 0.7)
    data = {
        "noise": draw_noise((1, 16, 8, 12), 0), "text": draw_noise((1, 9, 24), 1),
        "pooled": draw_noise((1, 20), 2), "references.0": draw_noise((1, 16, 8, 12), 3),
        "references.1": draw_noise((1, 16, 8, 12), 4),
    }  # fmt: skip
    for name, held in (
        ("model", model.state_dict()), ("merged", merged(model, lora)), ("scaled", scaled),
        ("scaled_merged", merged(holding(model, bfl_to_diffusers(meant)), lora)),
        ("cast_merged", merged(holding(model, cast), lora)), ("stacked_merged", merged(both, lora)),
    ):  # fmt: skip
        held = held if name == "scaled" else diffusers_to_bfl(held)  # as ComfyUI's users have them
        data |= {f"{name}.{k}": v.clone() for k, v in held.items()}
    save_file(data, tmp_path / "in.safetensors")
    said = run_in_comfyui(SCRIPT, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    packed, fused = (line for line in said.splitlines() if "lora.safetensors" in line)
    assert "(32768, 1) of torch.uint8" in packed and "bitsandbytes" in packed
    assert "Nunchaku" in fused
    out = load_file(tmp_path / "out.safetensors")

    def apart(a: str, b: str) -> float:
        return float((out[a] - out[b]).abs().max())

    assert apart("after", "plain") == 0, "the base is as it was"
    for way, truth, plain in (
        ("patched", "merged", "plain"), ("bypassed", "merged", "plain"),
        ("scaled", "scaled_merged", "scaled_plain"), ("cast", "cast_merged", "cast_plain"),
        ("stacked", "stacked_merged", "stacked_plain"),
    ):  # fmt: skip
        change = apart(truth, plain)
        print(
            f"ImageCritic's LoRA, {way}: off by {apart(way, truth):.1e} of a change of {change:.2f}"
        )
        assert change > 0.1, "the LoRA does something"
        assert apart(way, truth) < 1e-3 * change


def test_both_engines_read_a_prompt_alike(
    run_in_comfyui: Any, comfyui_path: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """512 T5 tokens, as FLUX.1's code and diffusers pad; ComfyUI alone would pad to 256."""
    generator = torch.Generator().manual_seed(0)
    pictures = {r: torch.rand(1, 3, 80, 64, generator=generator) for r in ("reference", "draft")}
    save_file(pictures, tmp_path / "pictures.safetensors")
    script = Path(__file__).with_name("text_native.py")
    run_in_comfyui(script, tiny_models, tmp_path / "pictures.safetensors", tmp_path / "out")
    native = load_file(tmp_path / "out")
    files = [tiny_models / "text_encoders" / f"tiny_{n}.safetensors" for n in ("clip_l", "t5xxl")]
    text = FluxText(*files, [comfyui_path], torch.device("cpu"))
    encoder = load_detail_encoder(tiny_models / "clip_vision/tiny_detail_encoder.safetensors")[0]
    for recipe in (OMNIREFINER, KONTEXT, IMAGECRITIC):
        words = [word for _, word in recipe.triggers]
        if words:
            own, pooled, at = text.with_triggers(recipe.text(None), words, recipe.text_tokens)
            views = [pictures[role] for role, _ in recipe.triggers]
            own = fill_triggers(encoder, own, at, views)
        else:
            own, pooled = text(recipe.text(None), recipe.text_tokens)
        theirs = native[f"{recipe.name}.text"]
        assert theirs.shape == own.shape == (1, 512, 64)
        assert float((theirs - own).abs().max()) < 1e-4 * float(own.abs().max())
        torch.testing.assert_close(native[f"{recipe.name}.pooled"], pooled, atol=1e-4, rtol=1e-4)
