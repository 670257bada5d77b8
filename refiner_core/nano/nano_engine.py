"""Loads the embedded nano, or one that the user trained, for the core engine."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..models.core_engine import CoreEngine
from ..models.flux_transformer import FluxTransformer
from ..recipes.recipe import Recipe
from ..weights.nano_keys import CODEC
from . import NANO_WEIGHTS, nano_recipe
from .codec import BLOCK, BlockCodec
from .initialisation import nano_config


def load_codec(path: Path = NANO_WEIGHTS) -> BlockCodec:
    """The codec stored beside the nano's weights."""
    codec = BlockCodec()
    with safe_open(path, "pt") as f:
        for name, buffer in codec.named_buffers():
            buffer.copy_(f.get_tensor(f"{CODEC}{name}"))
    return codec


def load_transformer_state(path: Path = NANO_WEIGHTS) -> dict[str, Tensor]:
    """The transformer's tensors in diffusers' key layout, as stored."""
    with safe_open(path, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys() if not k.startswith(CODEC)}  # noqa: SIM118


def load_nano(
    device: torch.device | str = "cpu", path: Path = NANO_WEIGHTS, recipe: Recipe | None = None
) -> CoreEngine:
    """The embedded refiner, or another nano, float32, on `device`.

    Args:
        recipe: None = the one that the file was trained for.

    Raises:
        ValueError: the recipe needs what a nano does not have.
    """
    recipe = recipe or nano_recipe(path)
    _check_recipe(recipe)
    state = load_transformer_state(path)
    model = FluxTransformer(**nano_config())
    model.load_state_dict({k: v.float() for k, v in state.items()})
    device = torch.device(device)
    model.to(device)
    model.eval().requires_grad_(False)

    codec = load_codec(path)
    # The same for all files of one training: what one of them encoded serves the next.
    source = {"weights": "nano", "codec": codec.fingerprint()}
    codec.to(device)
    return CoreEngine(recipe, model, codec, model.empty_text, device, source, encoders=(codec,))


def _check_recipe(recipe: Recipe) -> None:
    if recipe.latent_factor != BLOCK:
        raise ValueError(
            f"The recipe {recipe.name} works on latents of {recipe.latent_factor} px, but a nano's "
            f"are {BLOCK} px. Leave the recipe out, or base your own on nano."
        )
    needed = {"family": recipe.family, "conditioning": recipe.conditioning}
    if needed != {"family": "flux", "conditioning": "text"} or recipe.guidance is not None:
        raise ValueError(
            f"The recipe {recipe.name} (family {recipe.family}, conditioning {recipe.conditioning}, "
            f"guidance {recipe.guidance}) does not fit a nano, which is a flux without guidance "
            "embedding and text encoder. Leave the recipe out, or base your own on nano."
        )
