"""LoRA files: read in every spelling ComfyUI takes, merged into a diffusers FLUX transformer.

Written as `transformer.<diffusers path>.lora_A/B.weight` with alpha folded into B, the one form
that diffusers and ComfyUI both load at the right strength.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .keys import SWAPPED, diffusers_modules, split_rows, swap_halves, unflatten
from .safetensors_io import check_weights_path, read_header, read_weights, save_weights

_FACTOR = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?"
    r"(?:(?P<ab>_[AB])|[._](?P<du>down|up))(?:\.[^.]+)?(?:\.weight)?"
)
_OUTER_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_PREFIXES = ("lora_te", "text_encoder", "te1.", "clip_l.")
# What follows a module's name in the keys of other adapters.
_OTHER = re.compile(r"\.(hada_|lokr_|oft_|dora_scale|lora_magnitude|lora_mid|diff$|diff_b$)")
_OTHER_KINDS = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
    "dora_scale": "a DoRA",
    "lora_magnitude": "a DoRA",
    "lora_mid": "a Tucker LoRA",
    "diff": "a difference of whole weights",
    "diff_b": "a difference of whole biases",
}


@dataclass(frozen=True)
class Factor:
    """One low-rank change `scale * B @ A`: `a` r x in, `b` out x r."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """The change of the weight, out x in, float32."""
        return self.scale * (self.b.float() @ self.a.float())


@dataclass(frozen=True)
class LoRA:
    """A LoRA of a FLUX transformer.

    `factors` the changes by diffusers module path (paths nobody knows are kept as written);
    `skipped` keys that belong to the text encoders; `metadata` of the file, for the report only:
    its alpha is never applied on top of the tensors'.
    """

    factors: dict[str, tuple[Factor, ...]]
    source: str = "LoRA"
    skipped: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def rank(self) -> int:
        """The largest rank in the file."""
        return max(len(f.a) for fs in self.factors.values() for f in fs)


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA in any of the spellings that ComfyUI takes, and PEFT's own.

    `transformer.<diffusers>`, bare diffusers paths, `diffusion_model.<BFL>`, `base_model.model.`,
    kohya's `lora_unet_...` and OneTrainer's `lora_transformer_...`, with `lora_A/lora_B`,
    `lora_A.default`, `lora.down/lora.up` or `lora_down/lora_up`. Alpha tensors give the scale
    `alpha / rank`; without them it is 1. Factors of BFL's fused matrices are cut into those of
    query, key, value and MLP by the rows of B.

    Raises:
        ValueError: unreadable file, no LoRA, another kind of adapter, or half of a pair missing.
    """
    path = check_weights_path(path, "LoRA")
    sd = read_weights(path, what="LoRA")
    halves: dict[str, dict[str, Tensor]] = {}
    skipped: list[str] = []
    for key, tensor in sd.items():
        if key.startswith(_TEXT_PREFIXES):
            skipped.append(key)
            continue
        module, kind = _parse(key, path)
        halves.setdefault(module, {})[kind] = tensor
    if not halves:
        hint = f" (only {len(skipped)} for text encoders)" if skipped else ""
        raise ValueError(f"The LoRA {path} has no weights for a diffusion model{hint}.")
    factors: dict[str, list[Factor]] = {}
    for module, parts in halves.items():
        for target, factor in _factors(path, module, parts):
            factors.setdefault(target, []).append(factor)
    return LoRA(
        {k: tuple(v) for k, v in factors.items()},
        str(path),
        tuple(skipped),
        read_header(path, "LoRA")[1],
    )


def _parse(key: str, path: Path) -> tuple[str, str]:
    other = _OTHER.search(key)
    if other is not None:
        raise ValueError(
            f"The LoRA {path} is {_OTHER_KINDS[other[1]]} ({key}), which the core engine cannot "
            "merge. Merge it into the model in ComfyUI and save that, or take a plain LoRA."
        )
    if key.endswith(".alpha"):
        return _module(key.removesuffix(".alpha")), "alpha"
    match = _FACTOR.fullmatch(key)
    if match is None:
        raise ValueError(f"The LoRA {path} is no LoRA: {key} is neither a factor nor an alpha.")
    kind = "a" if (match["ab"] or match["du"]) in ("_A", "down") else "b"
    return _module(match["module"]), kind


def _module(name: str) -> str:
    """A module path without the tools' prefixes and with dots; BFL's or diffusers' names."""
    for prefix in _FLAT_PREFIXES:
        if name.startswith(prefix):
            flat = name[len(prefix) :]
            return unflatten(flat) or flat
    for prefix in _OUTER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _factors(path: Path, module: str, parts: Mapping[str, Tensor]) -> list[tuple[str, Factor]]:
    missing = [name for name in ("a", "b") if name not in parts]
    if missing:
        names = {"a": "lora_A (down)", "b": "lora_B (up)"}
        raise ValueError(f"The LoRA {path} lacks {names[missing[0]]} of {module}.")
    a, b = parts["a"].flatten(1), parts["b"].flatten(1)
    if b.shape[1] != len(a):
        raise ValueError(
            f"The LoRA {path}: A of {module} has rank {len(a)}, B {b.shape[1]}. The file is broken."
        )
    scale = float(parts["alpha"]) / len(a) if "alpha" in parts else 1.0
    # proj_out is also the name of single blocks' parts; only BFL's outer names are translated.
    targets = diffusers_modules(module)
    if targets is None:
        return [(module, Factor(a, b, scale))]
    rows = split_rows(b, len(targets), a.shape[1], f"{path}: B of {module}")
    return [
        (target, Factor(a, swap_halves(part) if target == SWAPPED else part, scale))
        for target, part in zip(targets, rows, strict=True)
    ]


def split_pairs(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by BFL's module paths as (A, B) by diffusers': fused matrices are cut by B's rows.

    Raises:
        ValueError: a path or shape that is not FLUX's.
    """
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for module, (a, b) in pairs.items():
        for target, factor in _factors(Path(module), module, {"a": a, "b": b}):
            out[target] = (factor.a, factor.b)
    return out


@torch.no_grad()
def apply_lora(model: nn.Module, lora: LoRA, strength: float = 1.0) -> int:
    """Merge a LoRA, `W += strength * scale * B @ A`, and return how many weights it changed.

    The sum is taken in float32 and rounded once to the model's type. Nothing is changed unless
    all of the LoRA fits.

    Raises:
        ValueError: modules that the model lacks (first few, number), shapes of another model, or a
            strength that is not a finite number.
    """
    if not math.isfinite(strength):
        raise ValueError(f"The strength of a LoRA must be a finite number, got {strength}.")
    weights = {
        name.removesuffix(".weight"): weight
        for name, weight in model.named_parameters()
        if name.endswith(".weight")
    }
    unknown = [k for k in lora.factors if k not in weights]
    if unknown:
        few = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        raise ValueError(
            f"{len(unknown)} of {len(lora.factors)} modules of {lora.source} are not in the model: "
            f"{few}. It is a LoRA for another model."
        )
    for name, factors in lora.factors.items():
        for f in factors:
            shape = (len(f.b), f.a.shape[1])
            if shape != tuple(weights[name].shape):
                raise ValueError(
                    f"{lora.source} changes {name} with {shape[0]}x{shape[1]}, but the model's "
                    f"weight is {'x'.join(map(str, weights[name].shape))}. It is a LoRA for "
                    "another model."
                )
    for name, factors in lora.factors.items():
        weight = weights[name]
        total = weight.float()
        for f in factors:
            total = (
                total
                + strength * Factor(f.a.to(weight.device), f.b.to(weight.device), f.scale).delta()
            )
        weight.copy_(total)
    return len(lora.factors)


def parse_lora_argument(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE:STRENGTH` of the command line; the strength is 1 when not given.

    A colon that is part of the path (a Windows drive) is left alone.

    Raises:
        ValueError: no file, or the strength is not a finite number.
    """
    head, colon, tail = text.rpartition(":")
    drive = len(head) == 1 and head.isalpha()
    if not colon or drive or "/" in tail or "\\" in tail:
        head, tail = text, "1"
    if not head.strip():
        raise ValueError(f"{text!r} names no LoRA file; write FILE or FILE:STRENGTH.")
    try:
        strength = float(tail)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ValueError(f"The LoRA strength {tail!r} in {text!r} is not a number; write FILE:0.8.")
    return Path(head), strength


def save_lora(
    path: str | Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA as `transformer.<path>.lora_A.weight` and `.lora_B.weight`.

    Args:
        path: a `.safetensors` file; replaced as a whole.
        pairs: (A r x in, B out x r) by diffusers module path.
        alpha: the training's alpha; `alpha / r` is folded into B, since ComfyUI knows no metadata.
        metadata: what to note in the file's header beside the format.

    Raises:
        ValueError: nothing to write, another suffix, or a pair whose ranks differ.
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"A LoRA is written as .safetensors, not {path.name}.")
    if not pairs:
        raise ValueError(f"There is no LoRA weight to write to {path}.")
    out: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        if len(a) != b.shape[1]:
            raise ValueError(f"{name}: A has rank {len(a)} and B {b.shape[1]}.")
        scale = 1.0 if alpha is None else alpha / len(a)
        out[f"transformer.{name}.lora_A.weight"] = a.detach().cpu().clone().contiguous()
        out[f"transformer.{name}.lora_B.weight"] = (b.detach().cpu() * scale).contiguous()
    save_weights(path, out, {"format": "pt", **(metadata or {})})
