"""ImageCritic's LoRA: its own key names, and a second factor *after* the attention's output.

`transformer_blocks.I.attn.processor.{q,k,v,proj}_loras.0.{down,up}.weight` and the same without
`proj` for `single_transformer_blocks`. Query, key and value are ordinary low-rank changes. The
fourth acts on what the output projection returns, `y + w BA y`, so that merged into the weights it
changes weight and bias: `W' = (I + w BA) W`, `b' = (I + w BA) b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .imagecritic_keys import KEY
from .lora import Factor, LoRA, apply_lora
from .safetensors_io import read_weights

_PATHS = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}


@dataclass(frozen=True)
class ImageCriticLoRA:
    """`projections` by diffusers module (to_q, to_k, to_v); `after` by the module (to_out.0) whose
    output they act on.
    """

    projections: dict[str, Factor]
    after: dict[str, Factor]
    source: str

    @property
    def rank(self) -> int:
        return max(len(f.a) for f in (*self.projections.values(), *self.after.values()))


def read_imagecritic_lora(path: str | Path) -> ImageCriticLoRA:
    """Read the file; the scale is 1, its alpha being its rank.

    Raises:
        ValueError: other names, half of a pair missing, ranks that differ, or several LoRAs in one.
    """
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in read_weights(path, what="LoRA").items():
        match = KEY.fullmatch(key)
        if match is None or match["number"] != "0":
            raise ValueError(f"{path} is no ImageCritic LoRA: {key} is none of its names.")
        halves.setdefault((match["block"], match["part"]), {})[match["half"]] = tensor
    factors: dict[str, dict[str, Factor]] = {"projections": {}, "after": {}}
    for (block, part), pair in halves.items():
        name = f"{block}.{_PATHS[part]}"
        lost = {"down", "up"} - pair.keys()
        if lost:
            raise ValueError(f"The LoRA {path} lacks {lost.pop()} of {block}.{part}_loras.")
        if len(pair["down"]) != pair["up"].shape[1]:
            raise ValueError(
                f"The LoRA {path}: down of {name} has rank {len(pair['down'])}, up "
                f"{pair['up'].shape[1]}. The file is broken."
            )
        kind = "after" if part == "proj" else "projections"
        factors[kind][name] = Factor(pair["down"], pair["up"])
    if not halves:
        raise ValueError(f"{path} is no ImageCritic LoRA: it is empty.")
    return ImageCriticLoRA(factors["projections"], factors["after"], str(path))


@torch.no_grad()
def merge_imagecritic(model: nn.Module, lora: ImageCriticLoRA, strength: float = 1.0) -> int:
    """Merge it into a diffusers FLUX transformer; returns how many modules it changed.

    Raises:
        ValueError: modules or shapes of another model.
    """
    modules = _check_after(model, lora)
    plain = LoRA({k: (f,) for k, f in lora.projections.items()}, lora.source)
    count = apply_lora(model, plain, strength) if plain.factors else 0
    for name, factor in lora.after.items():
        for p in modules[name].parameters():
            a, b = factor.a.float().to(p.device), factor.b.float().to(p.device)
            p.copy_(p.float() + strength * (b @ (a @ p.float())))
    return count + len(lora.after)


def _check_after(model: nn.Module, lora: ImageCriticLoRA) -> dict[str, nn.Linear]:
    """The model's linear modules by name, the LoRA's among them."""
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, factor in lora.after.items():
        found = linear.get(name)
        if found is None or found.out_features != len(factor.b):
            has = "nothing" if found is None else f"{found.out_features} outputs"
            raise ValueError(
                f"{lora.source} acts on {len(factor.b)} outputs of {name}, where the model has "
                f"{has}. It is a LoRA for another model."
            )
    return linear
