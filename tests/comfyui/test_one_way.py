"""One-way attention in a real ComfyUI: equal to the core's, in all types of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_core.models.kontext import Conditioning, Denoiser
from refiner_core.models.tiles import TiledDenoiser
from refiner_core.recipes.recipe import Attention
from refiner_core.sampling import draw_noise, sample

SCRIPT = Path(__file__).with_name("one_way_native.py")
SIGMAS = torch.tensor([1.0, 0.85, 0.6, 0.3, 0.0])
SAMPLES, NOISY, CLEAN = 3, 6 * 8, 6 * 8 + 4 * 10


def tiny_kontext() -> FluxTransformer2DModel:
    """Two heads of 128, as ComfyUI's loader recognises it, with guidance."""
    model = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
    )
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "noise": torch.cat([draw_noise((1, 16, 12, 16), i) for i in range(SAMPLES)]),
        "sigmas": SIGMAS,
        "references.0": draw_noise((1, 16, 12, 16), 11),
        "references.1": draw_noise((1, 16, 8, 20), 12),
        "text": torch.randn(1, 9, 24, generator=g),
        "pooled": torch.randn(1, 20, generator=g),
        "guidance": torch.tensor([2.5]),
    }


@pytest.fixture(scope="module")
def native(
    run_in_comfyui: Any, tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What ComfyUI gave."""
    folder = tmp_path_factory.mktemp("one_way")
    weights = {f"model.{k}": v.contiguous() for k, v in tiny_kontext().state_dict().items()}
    save_file(inputs | weights, folder / "in.safetensors")
    run_in_comfyui(SCRIPT, folder / "in.safetensors", folder / "out.safetensors")
    return load_file(folder / "out.safetensors")


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def core(inputs: dict[str, Tensor], attention: Attention, kind: str = "float32") -> Tensor:
    """The core's samples, computed in float32, of weights rounded to a type."""
    references = (inputs["references.0"], inputs["references.1"])
    c = Conditioning(references, (1, 2), inputs["text"], inputs["pooled"], 2.5)
    model = tiny_kontext()
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, kind)).float()
    with torch.no_grad():
        denoiser = Denoiser(model, attention)
        return sample(denoiser, inputs["noise"], SIGMAS, {"conditioning": c})


def test_both_engines_agree(native: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    wanted = core(inputs, "one way")
    assert apart(native["batch"], wanted) < 1e-4
    assert apart(native["rounds"], wanted) < 1e-4
    assert apart(native["alone"], wanted[:1]) < 1e-4
    assert apart(native["both ways.float32"], wanted[:1]) > 1e-2


def test_both_engines_agree_on_tiles(native: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    first = inputs["references.0"]
    c = Conditioning((first, first.flip(-1)), (1, 2), inputs["text"], inputs["pooled"], 2.5)
    denoiser = TiledDenoiser(Denoiser(tiny_kontext(), "one way"), 8)
    with torch.no_grad():
        wanted = sample(denoiser, inputs["noise"], SIGMAS, {"conditioning": c})
    assert apart(native["tiles"], wanted) < 1e-4


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float8_e4m3fn"])
def test_one_way_rounds_no_more_than_both_ways(
    native: dict[str, Tensor], inputs: dict[str, Tensor], kind: str
) -> None:
    one, both = (
        apart(native[f"{attention}.{kind}"], core(inputs, attention, kind)[:1])
        for attention in ("one way", "both ways")
    )
    print(f"one way {one:.1e}, both ways {both:.1e}")
    assert one < 2 * both + 1e-5
    assert both < 0.1


def test_clean_tokens_are_computed_once_for_all_samples(native: dict[str, Tensor]) -> None:
    """One noisy token goes along, as ComfyUI's FLUX wants one."""
    steps = len(SIGMAS) - 1
    assert native["passes"].tolist() == [1 + CLEAN, *steps * [SAMPLES * NOISY]]


def test_the_estimate_counts_the_cache(native: dict[str, Tensor]) -> None:
    estimated, counted = native["bytes"].tolist()
    assert estimated == counted > 0
