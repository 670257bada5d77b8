"""LoRA files: read in every spelling ComfyUI takes, merged into a diffusers FLUX transformer.

Written as `transformer.<diffusers path>.lora_A/B.weight` with alpha folded into B, the one form
that diffusers and ComfyUI both load at the right strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .keys import SWAPPED, swap_halves
from .lora_fit import lora_targets, misfit
from .lora_keys import TEXT_PREFIXES, metadata_alphas, other_adapter, parse_name
from .safetensors_io import check_weights_path, read_header, read_weights, save_weights


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
    """A LoRA of a FLUX transformer."""

    factors: dict[str, tuple[Factor, ...]]  # by diffusers' module path; unknown paths as written
    source: str = "LoRA"
    skipped: tuple[str, ...] = ()  # names of weights for text encoders
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def rank(self) -> int:
        """The largest rank in the file."""
        return max(len(f.a) for fs in self.factors.values() for f in fs)


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA in any of the layouts that ComfyUI reads, and in PEFT's and XLabs' own.

    Modules are `transformer.<diffusers>`, bare diffusers paths, `diffusion_model.<BFL>`,
    `base_model.model.` before any of these, kohya's `lora_unet_...`, OneTrainer's
    `lora_transformer_...` or XLabs' processors; factors are `lora_A/lora_B`, `lora_A.default`,
    `lora.down/lora.up` or `lora_down/lora_up`. The scale is alpha / rank, with the alpha of the
    file's tensors or else of diffusers' metadata; without any it is 1. Factors of BFL's fused
    matrices are cut into those of query, key, value and MLP by the rows of B.

    Raises:
        ValueError: the file is unreadable, not a LoRA or another kind of adapter, half of a pair is
            missing, or the ranks of a pair differ.
    """
    path = check_weights_path(path, "LoRA")
    names, metadata = read_header(path, "LoRA")
    other = other_adapter(names)
    if other is not None:
        raise ValueError(
            f"The LoRA {path} is {other[0]} ({other[1]}), which is not supported. Use a plain LoRA, "
            "or merge this one into the model in ComfyUI and save that."
        )
    halves, skipped = _halves(path)
    scales = _metadata_scales(path, metadata)
    factors: dict[str, list[Factor]] = {}
    for module, parts in halves.items():
        for target, factor in _factors(path, module, parts, scales):
            factors.setdefault(target, []).append(factor)
    return LoRA({k: tuple(v) for k, v in factors.items()}, str(path), tuple(skipped), metadata)


def _halves(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """A, B and alpha by module, and the names of weights for text encoders."""
    halves: dict[str, dict[str, Tensor]] = {}
    skipped: list[str] = []
    for name, tensor in read_weights(path, what="LoRA").items():
        if name.startswith(TEXT_PREFIXES):
            skipped.append(name)
            continue
        parsed = parse_name(name)
        if parsed is None:
            raise ValueError(
                f"{path} is not a valid LoRA: {name} is neither a factor nor an alpha."
            )
        halves.setdefault(parsed[0], {})[parsed[1]] = tensor
    if not halves:
        hint = f" (only {len(skipped)} for text encoders)" if skipped else ""
        raise ValueError(f"The LoRA {path} has no weights for a diffusion model{hint}.")
    return halves, skipped


Scales = Callable[[str, int], float]  # from module and rank


def _metadata_scales(path: Path, metadata: Mapping[str, str]) -> Scales:
    """The scale of a module by the file's metadata; 1 if that says nothing."""
    try:
        alpha, by_module, stabilized = metadata_alphas(metadata)
    except ValueError as e:
        raise ValueError(f"The LoRA {path}: {e}.") from e

    def scale(module: str, rank: int) -> float:
        own = next((v for k, v in by_module.items() if module.endswith(k)), alpha)
        return 1.0 if own is None else own / (math.sqrt(rank) if stabilized else rank)

    return scale


def _factors(
    path: Path, module: str, parts: Mapping[str, Tensor], scales: Scales
) -> list[tuple[str, Factor]]:
    missing = [name for name in ("a", "b") if name not in parts]
    if missing:
        names = {"a": "lora_A (down)", "b": "lora_B (up)"}
        raise ValueError(f"The LoRA {path} lacks {names[missing[0]]} of {module}.")
    _check_factors(path, module, parts)
    a, b = parts["a"].flatten(1), parts["b"].flatten(1)
    if b.shape[1] != len(a):
        raise ValueError(
            f"The LoRA {path} is broken: of {module}, A has rank {len(a)} and B has rank {b.shape[1]}."
        )
    scale = float(parts["alpha"]) / len(a) if "alpha" in parts else scales(module, len(a))
    targets = lora_targets(module, len(b), a.shape[1], f"{path}: B of {module}")
    parts_of_b = b.split([rows for _, rows in targets])
    own = module == targets[0][0]  # in diffusers' names already
    return [
        (target, Factor(a, swap_halves(part) if target == SWAPPED and not own else part, scale))
        for (target, _), part in zip(targets, parts_of_b, strict=True)
    ]


def _check_factors(path: Path, module: str, parts: Mapping[str, Tensor]) -> None:
    """Refuse factors that are no matrices, an alpha that is no number, and NaN or infinity."""
    for name, tensor in parts.items():
        shape = "x".join(map(str, tensor.shape)) or "a single number"
        fits = tensor.numel() == 1 if name == "alpha" else tensor.ndim >= 2 and tensor.numel() > 0
        if not fits:
            kind = "alpha" if name == "alpha" else f"{name.upper()}"
            raise ValueError(
                f"The LoRA {path} is broken: of {module}, {kind} has the shape {shape}."
            )
        if not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"The LoRA {path} is broken: {module} has values that are not finite.")


def split_pairs(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by BFL's module paths as (A, B) by diffusers': fused matrices are cut by B's rows.

    Raises:
        ValueError: a path or shape that is not FLUX's.
    """
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for module, (a, b) in pairs.items():
        for target, factor in _factors(Path(module), module, {"a": a, "b": b}, lambda *_: 1.0):
            out[target] = (factor.a, factor.b)
    return out


def check_fits(lora: LoRA, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a LoRA that changes anything a model does not have.

    Args:
        lora: the LoRA.
        shapes: of the model's weights, by diffusers' module path.

    Raises:
        ValueError: modules that the model lacks (the first few and their number), or other shapes.
    """
    most = max(map(len, lora.factors.values()))
    for i in range(most):  # a module may be changed more than once
        parts = {name: fs[min(i, len(fs) - 1)] for name, fs in lora.factors.items()}
        reason = misfit({k: (len(f.b), f.a.shape[1]) for k, f in parts.items()}, shapes)
        if reason is not None:
            raise ValueError(f"{lora.source} is a LoRA for another model: {reason}.")


def comfyui_weights(lora: LoRA) -> dict[str, Tensor]:
    """The LoRA in the layout of diffusers, which ComfyUI reads for every FLUX.

    Several changes of one module become one of the sum of their ranks, and scales become alphas.
    """
    out: dict[str, Tensor] = {}
    for name, factors in lora.factors.items():
        a, b, scale = factors[0].a, factors[0].b, factors[0].scale
        if len(factors) > 1:
            a = torch.cat([f.a.float() for f in factors])
            b = torch.cat([f.b.float() * f.scale for f in factors], 1)
            scale = 1.0
        out[f"transformer.{name}.lora_A.weight"] = a
        out[f"transformer.{name}.lora_B.weight"] = b
        out[f"transformer.{name}.alpha"] = torch.tensor(scale * len(a), dtype=torch.float64)
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
    check_fits(lora, {name: tuple(weight.shape) for name, weight in weights.items()})
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
