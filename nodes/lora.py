"""LoRA files on ComfyUI's models, read like on the command line; what does not fit is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from torch import Tensor

from ..refiner_core.weights.lora import LoRA, check_fits, comfyui_weights, read_lora
from ..refiner_core.weights.lora_fit import lost_modules
from ..refiner_core.weights.lora_keys import TEXT_PREFIXES, parse_name

_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def apply_lora(model: Any, path: str, strength: float, family: str) -> Any:
    """A clone of a MODEL with a LoRA file.

    Args:
        model: a ModelPatcher.
        path: the file.
        strength: 1 is as trained.
        family: of the recipe; FLUX's LoRAs are read by the core in every layout it knows.

    Raises:
        ValueError: the file is not a plain LoRA, or changes modules that the model does not have.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    if family == "flux":
        lora = read_lora(path)
        check_fits(lora, _shapes(model, keys, lora))
        weights, skipped = comfyui_weights(lora), lora.skipped
    else:
        weights = comfy.utils.load_torch_file(path, safe_load=True)
        skipped = tuple(k for k in weights if k.startswith(TEXT_PREFIXES))
        weights = comfy.lora_convert.convert_lora(weights)
        _check_modules(path, weights, keys)
    if skipped:
        logging.warning("%s: %d weights for text encoders are not applied", path, len(skipped))
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(weights, keys, log_missing=False), strength)
    return patched


def _shapes(model: Any, keys: Mapping[str, Any], lora: LoRA) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's weights by diffusers' module path, of those that the LoRA changes.

    Quantized weights do not tell their shape, so there the LoRA's own is taken.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for module, factors in lora.factors.items():
        target = keys.get(f"transformer.{module}")
        if target is None:
            continue
        name, part = (target, None) if isinstance(target, str) else target[:2]
        weight = comfy.utils.get_attr(model.model, name)
        rows, columns = len(factors[0].b), factors[0].a.shape[1]
        if type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype in _PLAIN:
            rows, columns = weight.shape[0] if part is None else part[2], weight.shape[1]
        shapes[module] = (rows, columns)
    return shapes


def _check_modules(path: str, weights: Mapping[str, Tensor], keys: Mapping[str, Any]) -> None:
    """Refuse names that ComfyUI would leave out."""
    modules = {
        name: parsed[0]
        for name in weights
        if not name.startswith(TEXT_PREFIXES) and (parsed := parse_name(name)) is not None
    }
    known = tuple(f"{key}." for key in keys)
    lost = sorted({m for name, m in modules.items() if not name.startswith(known)})
    if lost or not modules:
        reason = lost_modules(lost, len(set(modules.values())), "this model")
        raise ValueError(f"{path} is a LoRA for another model: {reason}.")
