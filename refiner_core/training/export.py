"""Writes the trained refiner: a LoRA that diffusers and ComfyUI load alike, or all weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..models.core_engine import CoreEngine
from ..recipes.recipe import Recipe
from ..weights.lora import save_lora
from ..weights.safetensors_io import save_weights
from .trainable import Trainable

_BLOCKS, _BLOCK = 64, 1 << 16


def fingerprint(path: Path) -> str:
    """16 hex digits that identify weights without reading all of 24 GB: a hash of the size and of 64
    evenly spaced blocks of 64 KiB of each file.
    """
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size}".encode())
        with file.open("rb") as stream:
            for i in range(_BLOCKS):
                stream.seek(max(0, (size - _BLOCK) * i // (_BLOCKS - 1)))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


def describe(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of an exported file; safetensors allows only strings."""
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    return {
        "format": "pt",
        "recipe": recipe.name,
        "attention": recipe.attention,
        "version": __version__,
        **plain,
    }


def export(
    path: Path, engine: CoreEngine, trainable: Trainable, role: str | None, facts: Mapping[str, Any]
) -> Path:
    """Write a LoRA with alpha folded in, or after full training all weights in bf16.

    Args:
        path: a `.safetensors` file, replaced atomically.
        role: the copy to write ("ema"), or None for the current values.
        facts: metadata about base, data and training.
    """
    metadata = describe(engine.recipe, facts)
    if trainable.rank is not None:
        save_lora(path, trainable.lora_pairs(role), trainable.alpha, metadata)
        return path
    values = trainable.copies[role] if role else trainable.parameters
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in values.items()}
    tensors |= _codec(engine)
    save_weights(path, tensors, metadata)
    return path


def _codec(engine: CoreEngine) -> dict[str, Tensor]:
    """The codec that a nano model carries in its own file; a FLUX autoencoder is not copied."""
    if not isinstance(engine.codec, nn.Module):
        return {}
    return {f"codec.{k}": v.cpu().contiguous() for k, v in engine.codec.named_buffers()}
