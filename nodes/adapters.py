"""ImageCritic's LoRA on ComfyUI's models: as weight patches, or beside the weights in bypass mode.

Plain weights (float32, float16, bfloat16) are patched, which costs nothing while sampling. Weights
in fp8 or GGUF would be rounded again by that, so there the change is added to what the layers
return, which is exact.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from comfy.weight_adapter import BypassInjectionManager
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import functional as F

from ..refiner_core.weights.imagecritic_lora import ImageCriticLoRA
from ..refiner_core.weights.keys import bfl_module

_PLAIN = (torch.float32, torch.float16, torch.bfloat16)
_INJECTION = "omnirefiner_imagecritic"


class FusedRows(WeightAdapterBase):
    """Low-rank changes of the first rows of a fused matrix: query, key and value, one after the
    other. `weights` is (A, B, A, B, A, B).
    """

    name = "omnirefiner_rows"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.weights[::2], self.weights[1::2], strict=True))

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any
    ) -> Tensor:
        row = 0
        for a, b in self._pairs():
            part = b.to(weight) @ a.to(weight)
            weight[row : row + len(part)] += strength * part
            row += len(part)
        return weight

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        parts = [F.linear(F.linear(x, a.to(x)), b.to(x)) for a, b in self._pairs()]
        out = torch.cat(parts, -1) * self.multiplier
        return F.pad(out, (0, base_out.shape[-1] - out.shape[-1]))


class AfterOutput(WeightAdapterBase):
    """`y + s BA y` on what a layer returns: its weight and its bias become `(I + s BA)` times
    themselves. `weights` is (A, B).
    """

    name = "omnirefiner_after"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any
    ) -> Tensor:
        a, b = (w.to(weight) for w in self.weights)
        return weight + strength * (b @ (a @ weight))

    def bypass_forward(self, org_forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = org_forward(x, *args, **kwargs)
        a, b = (w.to(y) for w in self.weights)
        return y + self.multiplier * F.linear(F.linear(y, a), b)


def _adapters(lora: ImageCriticLoRA) -> dict[str, WeightAdapterBase]:
    """Adapters by the module of ComfyUI's FLUX."""
    rows: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    out: dict[str, WeightAdapterBase] = {}
    for name, factor in lora.projections.items():
        found = bfl_module(name)
        assert found is not None, name
        rows.setdefault(found[0], {})[found[1]] = (factor.a, factor.b)
    for name, parts in rows.items():
        if sorted(parts) != [0, 1, 2]:
            raise ValueError(
                f"The LoRA {lora.source} is incomplete: it has no query, key or value for {name}."
            )
        out[f"diffusion_model.{name}"] = FusedRows(
            set(), tuple(t for i in range(3) for t in parts[i])
        )
    for name, factor in lora.after.items():
        found = bfl_module(name)
        assert found is not None, name
        out[f"diffusion_model.{found[0]}"] = AfterOutput(set(), (factor.a, factor.b))
    return out


def _weight(model: Any, module: str, lora: ImageCriticLoRA) -> Tensor:
    try:
        return comfy.utils.get_attr(model.model, f"{module}.weight")
    except AttributeError as e:
        raise ValueError(
            f"The LoRA {lora.source} needs the layer {module}, which this model does not have. Either "
            "it is not FLUX.1 Kontext, or its layers are fused (Nunchaku). Load FLUX.1 Kontext with "
            "ComfyUI's own loader or as GGUF."
        ) from e


def _check_width(
    module: str, weight: Tensor, adapter: WeightAdapterBase, lora: ImageCriticLoRA
) -> None:
    rows = adapter.weights[1].shape[0]
    if isinstance(adapter, AfterOutput) and weight.shape[0] != rows:
        raise ValueError(
            f"The LoRA {lora.source} needs {rows} output features in the layer {module}, but its "
            f"weight in this model is {tuple(weight.shape)} of {weight.dtype}. Either the model is not "
            "FLUX.1 Kontext, or its weights are packed (bitsandbytes). Load FLUX.1 Kontext in bf16, "
            "fp8 or as GGUF."
        )


def apply_imagecritic(model: Any, lora: ImageCriticLoRA, strength: float) -> Any:
    """A clone of a MODEL with the LoRA; exact on every base.

    Raises:
        ValueError: layers that the model lacks, or another width.
    """
    adapters = _adapters(lora)
    plain = True
    for module, adapter in adapters.items():
        weight = _weight(model, module, lora)
        _check_width(module, weight, adapter, lora)
        bare = type(weight) in (Tensor, torch.nn.Parameter)
        plain = plain and bare and weight.dtype in _PLAIN
    patched = model.clone()
    if plain:
        patches: dict[str, WeightAdapterBase] = {f"{m}.weight": a for m, a in adapters.items()}
        patches |= {f"{m}.bias": a for m, a in adapters.items() if isinstance(a, AfterOutput)}
        patched.add_patches(patches, strength)
        return patched
    manager = BypassInjectionManager()
    for module, adapter in adapters.items():
        manager.add_adapter(f"{module}.weight", adapter, strength)
    patched.set_injections(_INJECTION, manager.create_injections(patched.model))
    return patched
