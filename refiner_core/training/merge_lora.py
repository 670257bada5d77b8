"""Merges LoRAs into a base: one file that runs without them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..nano import nano_file, resolve_weights
from ..nano.nano_engine import load_codec, load_nano
from ..weights.keys import diffusers_to_bfl
from ..weights.lora import apply_lora, parse_lora_argument, read_lora
from ..weights.nano_keys import CODEC
from ..weights.safetensors_io import check_weights_path, save_weights
from ..weights.transformer import load_transformer

Layout = Literal["bfl", "diffusers"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def merge(
    base: str | Path, loras: Sequence[str], out: Path, layout: Layout = "bfl", dtype: str = "bf16"
) -> int:
    """Write `base + loras` as one safetensors file, whole or not at all.

    Returns the number of weights that the LoRAs change.

    A nano keeps its codec beside the weights, in diffusers' layout, which its loader expects.

    Args:
        base: "nano", a FLUX file or a diffusers folder.
        loras: `FILE` or `FILE:STRENGTH`, merged in this order in float32.
        out: the file.
        layout: how a FLUX's keys are spelled.

    Raises:
        ValueError: a file is missing, broken or of another model; not a .safetensors name.
    """
    if out.suffix.lower() != ".safetensors":
        raise ValueError(f"A model is written as .safetensors, not {out.name}.")
    pairs = [parse_lora_argument(text) for text in loras]
    for file, _ in pairs:
        check_weights_path(file, "LoRA")
    nano = nano_file(base)
    codec: dict[str, Tensor] = {}
    if nano is not None:
        model = load_nano(path=nano).model
        codec = {f"{CODEC}{k}": v for k, v in load_codec(nano).named_buffers()}
    else:
        model = load_transformer(resolve_weights(base), DTYPES[dtype])
    changed = sum(apply_lora(model, read_lora(file), strength) for file, strength in pairs)
    sd = {k: v.to(DTYPES[dtype]).contiguous() for k, v in model.state_dict().items()}
    if layout == "bfl" and nano is None:
        sd = {k: v.contiguous() for k, v in diffusers_to_bfl(sd).items()}
    metadata = {"format": "pt", "merged": json.dumps([f"{f.name}:{s:g}" for f, s in pairs])}
    if nano is not None:
        metadata["recipe"] = "nano"
    save_weights(out, sd | codec, metadata)
    return changed
