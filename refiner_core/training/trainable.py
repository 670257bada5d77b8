"""The trainable weights, and named copies of them that can temporarily take their place.

A refiner is trained as a LoRA on a frozen base or, if it is small, with all its weights. Stage 2
needs the same weights three times: the current ones, those that drew the samples ("old") and those
that stage 1 produced ("ref"). What is saved is their exponential moving average ("ema"). Copies share
one base, so that each costs as much memory as the LoRA.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..weights.lora import read_lora

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer

# Attention and feed-forward of both kinds of block, as the paper's figure 2 says; the single
# blocks' proj_out is their attention output and feed-forward in one. The final layer is left out.
LORA_TARGETS = (
    r"(transformer_blocks\.\d+\."
    r"(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out))"
)
_ADAPTER = "default"


class Trainable:
    """Trainable parameters by name, and copies of their values by role.

    `rank` and `alpha` describe the LoRA they form; `rank` is None when they are the model's weights.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rank: int | None = None, alpha: float = 0.0
    ) -> None:
        self.parameters = dict(parameters)
        self.rank, self.alpha = rank, alpha
        self.copies: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def snapshot(self, role: str) -> None:
        """Copy the current values under `role`, replacing an earlier copy."""
        self.copies[role] = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def ema(self, role: str, decay: float) -> None:
        """Update a moving average: `copy = decay * copy + (1 - decay) * current`."""
        for name, p in self.parameters.items():
            self.copies[role][name].lerp_(p.detach(), 1 - decay)

    @contextlib.contextmanager
    def swapped(self, role: str) -> Generator[None, None, None]:
        """Run the block with a copy in place of the current values; no gradients inside."""
        self._swap(role)
        try:
            yield
        finally:
            self._swap(role)

    def _swap(self, role: str) -> None:
        copy = self.copies[role]
        for name, p in self.parameters.items():
            p.data, copy[name] = copy[name], p.data

    def lora_pairs(self, role: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) by diffusers module path, of a copy or of the current values.

        Raises:
            ValueError: the parameters are not a LoRA.
        """
        if self.rank is None:
            raise ValueError("All weights were trained, so there is no LoRA to export.")
        values = self.copies[role] if role else self.parameters
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, value in values.items():
            module, _, half = name.rpartition(".")
            pairs.setdefault(module, {})[half] = value
        return {m: (p["lora_A"], p["lora_B"]) for m, p in pairs.items()}


def all_weights(model: Transformer) -> Trainable:
    """Make every weight of the model trainable."""
    model.requires_grad_(True)
    return Trainable(dict(model.named_parameters()))


def _require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ModuleNotFoundError("Training a LoRA needs peft: pip install peft.")


def add_lora(model: Transformer, rank: int, alpha: float, seed: int = 0) -> Trainable:
    """Freeze the model and add a new LoRA to its attention and feed-forward layers (B = 0).

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    _require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (any number works)
        init_lora_weights="gaussian",
        target_modules=LORA_TARGETS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, _ADAPTER)
    parameters: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        if f".{_ADAPTER}.weight" in name:
            p.data = p.data.float()
            parameters[name.removesuffix(f".{_ADAPTER}.weight")] = p
    return Trainable(parameters, rank, alpha)


def continue_lora(model: Transformer, path: str | Path) -> Trainable:
    """Freeze the model and continue to train the LoRA of a file, at its rank.

    Raises:
        ValueError: not a LoRA of this model's attention and feed-forward layers, or of mixed ranks.
    """
    lora = read_lora(path)
    trainable = add_lora(model, lora.rank, lora.rank)
    pairs = trainable.lora_pairs()
    missing, extra = pairs.keys() - lora.factors.keys(), lora.factors.keys() - pairs.keys()
    if missing or extra:
        odd = sorted(missing or extra)
        raise ValueError(
            f"{path} changes {len(lora.factors)} modules, but training changes {len(pairs)}; "
            f"{'missing' if missing else 'unexpected'}: {', '.join(odd[:3])}. Merge it into the base "
            "(omnirefiner merge) and train a new LoRA on the result."
        )
    for name, (a, b) in pairs.items():
        factors = lora.factors[name]
        if len(factors) != 1 or factors[0].a.shape != a.shape or factors[0].b.shape != b.shape:
            raise ValueError(
                f"{path}: the matrices of {name} do not fit a LoRA of rank {lora.rank}."
            )
        a.data.copy_(factors[0].a)
        b.data.copy_(factors[0].b.float() * factors[0].scale)
    return trainable
