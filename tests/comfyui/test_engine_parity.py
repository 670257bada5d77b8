"""Both engines run the same weights to the same result: the core's, and ComfyUI's native FLUX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_core.images.geometry import Extent
from refiner_core.models.kontext import Conditioning, Denoiser, velocity
from refiner_core.nano.nano_engine import load_nano, load_transformer_state
from refiner_core.recipes.recipe import KONTEXT, NANO, Recipe
from refiner_core.sampling import draw_noise, sample
from refiner_core.weights.keys import diffusers_to_bfl
from tests.synthetic import zero_text

SCRIPT = Path(__file__).with_name("native_flux.py")
TIMES = (1.0, 0.7, 0.25, 0.02)


def tiny_kontext() -> FluxTransformer2DModel:
    """Hidden 256 (2 heads of 128), as ComfyUI's loader recognises it, with guidance."""
    model = FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=20, guidance_embeds=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    return model.eval().requires_grad_(False)


def compare(
    run: Any,
    folder: Path,
    model: FluxTransformer2DModel,
    weights: dict[str, Tensor],
    recipe: Recipe,
) -> tuple[float, float]:
    """The largest differences of the velocity and of the sampled latent."""
    noise = draw_noise((1, 16, 12, 16), 0)
    references = (draw_noise((1, 16, 12, 16), 1), draw_noise((1, 16, 8, 20), 2))
    g = torch.Generator().manual_seed(3)
    text, pooled = zero_text(model)
    if recipe.guidance is not None:
        text = torch.randn(1, 9, text.shape[-1], generator=g)
        pooled = torch.randn(pooled.shape, generator=g)
    factor = recipe.latent_factor
    sigmas = recipe.sigmas(Extent(16 * factor, 12 * factor), 6)
    file = {
        "noise": noise, "sigmas": sigmas, "times": torch.tensor(TIMES), "text": text,
        "pooled": pooled, "references.0": references[0], "references.1": references[1],
        **{f"model.{k}": v.clone().contiguous() for k, v in weights.items()},
    }  # fmt: skip
    if recipe.guidance is not None:
        file["guidance"] = torch.tensor([recipe.guidance])
    save_file(file, folder / "in.safetensors")
    run(SCRIPT, folder / "in.safetensors", folder / "out.safetensors")
    theirs = load_file(folder / "out.safetensors")
    conditioning = Conditioning(references, recipe.indices, text, pooled, recipe.guidance)
    with torch.no_grad():
        velocities = [velocity(model, noise, t, conditioning) for t in TIMES]
        ours = sample(Denoiser(model), noise, sigmas, {"conditioning": conditioning})
    assert all(float(v.std()) > 0.01 for v in velocities), "the network does something"
    worst = max(float((v - theirs[f"velocity.{i}"]).abs().max()) for i, v in enumerate(velocities))
    return worst, float((ours - theirs["sampled"]).abs().max())


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_tiny_kontext(run_in_comfyui: Any, tmp_path: Path, layout: str) -> None:
    model = tiny_kontext()
    sd = model.state_dict()
    weights = diffusers_to_bfl(sd) if layout == "bfl" else sd
    v, x = compare(run_in_comfyui, tmp_path, model, weights, KONTEXT)
    print(f"velocity {v:.2e}, sampled {x:.2e}")  # noqa: T201
    assert v <= 1e-4
    assert x <= 1e-3


def test_nano(run_in_comfyui: Any, tmp_path: Path) -> None:
    model = load_nano().model
    v, x = compare(run_in_comfyui, tmp_path, model, load_transformer_state(), NANO)
    print(f"velocity {v:.2e}, sampled {x:.2e}")  # noqa: T201
    assert v <= 1e-4
    assert x <= 1e-3
