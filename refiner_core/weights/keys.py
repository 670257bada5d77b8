"""The two spellings of a FLUX transformer's weights: Black Forest Labs' and diffusers'.

BFL's files (what ComfyUI users have) fuse query, key, value (and the single blocks' MLP) into one
matrix, row after row; diffusers keeps them apart and stores the last modulation as (scale, shift)
where BFL has (shift, scale). Everything else is a renaming. Sizes come from the tensors, so this
holds for FLUX of any width and depth. Weight files and LoRAs both use these tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
SWAPPED = "norm_out.linear"

_OUTER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": (SWAPPED,),
}
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "modulation.lin": ("norm.linear",),
}
# BFL block name -> (diffusers block name, table)
_BLOCKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE),
    "single_blocks": ("single_transformer_blocks", _SINGLE),
}
_BFL_BLOCK = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(.+)")
_FLAT_BLOCK = re.compile(
    r"(double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)_(\d+)_(.+)"
)


def _inverse(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int, int]]:
    return {d: (b, i, len(ds)) for b, ds in table.items() for i, d in enumerate(ds)}


_FROM_DIFFUSERS = {d: (b, _inverse(table)) for b, (d, table) in _BLOCKS.items()}
_OUTER_INVERSE = _inverse(_OUTER)


def _flat(names: Mapping[str, object]) -> dict[str, str]:
    return {name.replace(".", "_"): name for name in names}


_FLAT_INNER = {b: _flat(table) for b, (_, table) in _BLOCKS.items()} | {
    d: _flat(inverse) for d, (_, inverse) in _FROM_DIFFUSERS.items()
}
_FLAT_OUTER = _flat(_OUTER) | _flat(_OUTER_INVERSE)


def strip_prefix(key: str) -> str:
    """`key` without ComfyUI's `model.diffusion_model.` or `diffusion_model.`."""
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


def is_bfl(keys: Mapping[str, object]) -> bool:
    """Whether these are BFL's names (with or without prefix)."""
    own = ("double_blocks.", "single_blocks.", "img_in.")
    return any(strip_prefix(k).startswith(own) for k in keys)


def diffusers_modules(module: str) -> tuple[str, ...] | None:
    """The diffusers modules whose rows, in this order, make up BFL's `module`; None if unknown."""
    match = _BFL_BLOCK.fullmatch(module)
    if match is None:
        return _OUTER.get(module)
    block, table = _BLOCKS[match[1]]
    found = table.get(match[3])
    return found and tuple(f"{block}.{match[2]}.{name}" for name in found)


def bfl_module(module: str) -> tuple[str, int, int] | None:
    """BFL's module that holds diffusers' `module`, as which part of how many; None if unknown."""
    block, _, rest = module.partition(".")
    if block not in _FROM_DIFFUSERS:
        return _OUTER_INVERSE.get(module)
    index, _, inner = rest.partition(".")
    name, table = _FROM_DIFFUSERS[block]
    found = table.get(inner)
    return found and (f"{name}.{index}.{found[0]}", found[1], found[2])


def unflatten(name: str) -> str | None:
    """Kohya's and OneTrainer's `double_blocks_0_img_mlp_0` with its dots back; None if unknown."""
    match = _FLAT_BLOCK.fullmatch(name)
    if match is None:
        return _FLAT_OUTER.get(name)
    inner = _FLAT_INNER[match[1]].get(match[3])
    return inner and f"{match[1]}.{match[2]}.{inner}"


def swap_halves(tensor: Tensor) -> Tensor:
    """Rows (shift, scale) to (scale, shift) and back."""
    return torch.cat(tensor.chunk(2)[::-1])


def row_counts(rows: int, parts: int, hidden: int, name: str) -> list[int]:
    """How the rows of a fused matrix divide: `hidden` for each of q, k, v, the rest for the MLP.

    Raises:
        ValueError: the rows do not divide like that.
    """
    if parts == 1:
        return [rows]
    rest = rows - 3 * hidden
    if rest < 0 or (rest == 0) != (parts == 3):
        raise ValueError(
            f"{name} has {rows} rows, which is not query, key, value"
            f"{'' if parts == 3 else ' and MLP'} of a FLUX of width {hidden}."
        )
    return [hidden] * 3 + ([rest] if parts == 4 else [])


def split_rows(tensor: Tensor, parts: int, hidden: int, name: str) -> tuple[Tensor, ...]:
    """The parts of a fused matrix or bias, see `row_counts`: views, not copies.

    Raises:
        ValueError: the rows do not divide like that.
    """
    return tensor.split(row_counts(len(tensor), parts, hidden, name))


def bfl_to_diffusers(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BFL's weights of a FLUX transformer, of any size, under diffusers' names.

    Both spellings of the query and key norms (`.scale`, `.weight`) and ComfyUI's prefixes are
    understood. Fused matrices become views of their rows, so no memory is copied. Keys that are
    not FLUX's are kept as they are, for the caller to report.

    Raises:
        ValueError: `img_in.weight` is missing, or a fused matrix has the wrong number of rows.
    """
    sd = {strip_prefix(k): v for k, v in sd.items()}
    if "img_in.weight" not in sd:
        raise ValueError("These are not FLUX weights in BFL's layout: img_in.weight is missing.")
    hidden = len(sd["img_in.weight"])
    out: dict[str, Tensor] = {}
    for key, tensor in sd.items():
        module, _, leaf = key.rpartition(".")
        targets = diffusers_modules(module)
        if targets is None:
            out[key] = tensor
            continue
        leaf = "weight" if leaf == "scale" else leaf
        parts = split_rows(tensor, len(targets), hidden, key)
        for target, rows in zip(targets, parts, strict=True):
            out[f"{target}.{leaf}"] = swap_halves(rows) if target == SWAPPED else rows
    return out


def diffusers_to_bfl(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `bfl_to_diffusers` (norms spelled `.scale`, as Black Forest Labs' files).

    Raises:
        ValueError: a part of a fused matrix is missing (names it).
    """
    out: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    parts: dict[str, int] = {}
    for key, tensor in sd.items():
        module, _, leaf = key.rpartition(".")
        found = bfl_module(module)
        if found is None:
            out[key] = tensor
            continue
        target, part, count = found
        if target.endswith("_norm") and leaf == "weight":
            leaf = "scale"
        name = f"{target}.{leaf}"
        if count == 1:
            out[name] = swap_halves(tensor) if module == SWAPPED else tensor
        else:
            fused.setdefault(name, {})[part] = tensor
            parts[name] = count
    for name, rows in fused.items():
        if len(rows) != parts[name]:
            raise ValueError(
                f"{name} is made of {parts[name]} matrices, but only {len(rows)} of them are there."
            )
        out[name] = torch.cat([rows[i] for i in range(parts[name])])
    return out
