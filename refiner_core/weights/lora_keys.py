"""The names in LoRA files: which kind of adapter a file is, and to which module a name belongs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from .keys import unflatten

FACTOR = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?"
    r"(?:(?P<ab>_[AB])|[._](?P<du>down|up))(?:\.[^.]+)?(?:\.weight)?"
)
# XLabs' processors: 1 acts on the picture's side of a double block and 2 on the text's.
XLABS = re.compile(
    r"(?P<block>(?:diffusion_model\.)?(?:double|single)_blocks\.\d+)\.processor\."
    r"(?P<part>qkv|proj)_lora(?P<side>[12]?)\.(?P<half>down|up)\.weight"
)
_XLABS_MODULES = {
    ("qkv", "1"): "img_attn.qkv",
    ("proj", "1"): "img_attn.proj",
    ("qkv", "2"): "txt_attn.qkv",
    ("proj", "2"): "txt_attn.proj",
    ("qkv", ""): "linear1",
    ("proj", ""): "linear2",
}
TEXT_PREFIXES = ("lora_te", "text_encoder", "te1.", "clip_l.")
_OUTER_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
# Adapters that are more than a low-rank change of weights, by what is in their names.
_OTHER_KINDS = (
    (re.compile(r"_norm\.scale$"), "a control LoRA (FLUX.1 Canny or Depth)"),
    (re.compile(r"[._]hada_"), "a LoHa"),
    (re.compile(r"[._]lokr_"), "a LoKr"),
    (re.compile(r"[._]oft_"), "an OFT"),
    (re.compile(r"^(lora|lycoris).*\.[ab][12]\.weight$"), "a GLoRA"),
    (re.compile(r"[._](dora_scale|lora_magnitude)"), "a DoRA"),
    (re.compile(r"[._]lora_mid"), "a Tucker LoRA"),
    (re.compile(r"lora(_[AB]|_up|_down|\.up|\.down)(\.[^.]+)?\.bias$"), "a LoRA with biases"),
    (re.compile(r"\.diff$"), "a difference of whole weights"),
    (re.compile(r"\.diff_b$"), "a difference of whole biases"),
)


def other_adapter(keys: Iterable[str]) -> tuple[str, str] | None:
    """What a file is that is an adapter but not a plain LoRA, and the name that shows it."""
    names = list(keys)
    adapts = is_lora(names)
    for pattern, kind in _OTHER_KINDS:
        for name in names:
            # Whole models have norms too.
            if pattern.search(name) and (adapts or not kind.startswith("a control")):
                return kind, name
    if not adapts:
        return None
    odd = (n for n in names if not n.startswith(TEXT_PREFIXES) and parse_name(n) is None)
    return next((("a LoRA with other parts than factors and alphas", n) for n in odd), None)


def is_lora(keys: Iterable[str]) -> bool:
    """Whether any of these names is a LoRA's, as `parse_name` reads it."""
    return any(FACTOR.fullmatch(name) or XLABS.fullmatch(name) for name in keys)


def parse_name(name: str) -> tuple[str, str] | None:
    """Module and part ("a", "b" or "alpha") of a LoRA's name, or None if it is not one."""
    if name.endswith(".alpha"):
        return module_path(name.removesuffix(".alpha")), "alpha"
    xlabs = XLABS.fullmatch(name)
    if xlabs is not None:
        inner = _XLABS_MODULES[xlabs["part"], xlabs["side"]]
        block = xlabs["block"].removeprefix("diffusion_model.")
        return f"{block}.{inner}", "a" if xlabs["half"] == "down" else "b"
    match = FACTOR.fullmatch(name)
    if match is None:
        return None
    part = "a" if (match["ab"] or match["du"]) in ("_A", "down") else "b"
    return module_path(match["module"]), part


def module_path(name: str) -> str:
    """A module's path with dots and without the prefixes of tools, in BFL's or diffusers' names."""
    for prefix in _FLAT_PREFIXES:
        if name.startswith(prefix):
            flat = name[len(prefix) :]
            return unflatten(flat) or flat
    for prefix in _OUTER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def metadata_alphas(metadata: Mapping[str, Any]) -> tuple[float | None, dict[str, float], bool]:
    """What diffusers' `lora_adapter_metadata` says: alpha, alpha by module, and rank-stabilized.

    The first is None if the metadata says nothing. Names in it begin with "transformer.".

    Raises:
        ValueError: the metadata cannot be read.
    """
    try:
        entries: Any = json.loads(str(metadata.get("lora_adapter_metadata", "{}")))
        own = {
            k.removeprefix("transformer."): v
            for k, v in entries.items()
            if k.startswith("transformer.") or "." not in k
        }
        alpha = own.get("lora_alpha")
        pattern = cast(dict[str, Any], own.get("alpha_pattern") or {})
        stabilized = bool(own.get("use_rslora"))
        return (
            None if alpha is None else float(alpha),
            {str(k): float(v) for k, v in pattern.items()},
            stabilized,
        )
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise ValueError(f"its lora_adapter_metadata cannot be read ({e})") from e
