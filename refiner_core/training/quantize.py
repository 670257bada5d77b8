"""Quantizes the frozen base under a LoRA, which itself stays float32."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .config import Quantize

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer


def _missing(package: str, setting: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"model.quantize = {setting!r} needs {package}: pip install {package}. Or set it to 'none'."
    )


def quantize(model: Transformer, kind: Quantize, device: torch.device) -> None:
    """Quantize the linear layers of the blocks: int8 and fp8 with torchao, nf4 with bitsandbytes.

    This happens layer by layer on `device`, which never holds the whole unquantized model.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.
    """
    if kind == "none":
        return
    if kind == "nf4":
        _nf4(model, device)
        return
    try:
        from torchao import quantization as ao  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise _missing("torchao", kind) from e
    chosen = ao.Int8WeightOnlyConfig() if kind == "int8" else ao.Float8WeightOnlyConfig()
    ao.quantize_(model, chosen, filter_fn=in_a_block, device=device)
    # PEFT warns that it cannot merge the LoRA into such a base, which nothing here does.
    warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")


def in_a_block(module: nn.Module, name: str) -> bool:
    """Whether a layer of the base is to be quantized."""
    return isinstance(module, nn.Linear) and "transformer_blocks." in name


def _nf4(model: Transformer, device: torch.device) -> None:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise _missing("bitsandbytes", "nf4") from e
    linear: Any = bitsandbytes.nn.Linear4bit
    layers = [(n, m) for n, m in model.named_modules() if in_a_block(m, n)]
    for name, module in layers:
        assert isinstance(module, nn.Linear)
        packed = linear(
            module.in_features,
            module.out_features,
            module.bias is not None,
            compute_dtype=module.weight.dtype,
            quant_type="nf4",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4"
        ).to(device)
        packed.bias = module.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed)
