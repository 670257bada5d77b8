"""Divides the frozen base over the processes, where accelerate's configuration asks for it.

A LoRA's base is by far the largest thing in memory and never changes: every process keeps a share of
each block and the whole of one block at a time is put together, forwards and backwards. The LoRA
itself, its optimiser and its copies stay whole on every process, so that all else is as without.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .config import ModelSettings

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer


@dataclass(frozen=True)
class Fsdp:
    """PyTorch's `fully_shard`, as accelerate's `fsdp_*` settings configure it.

    `reshard` gives a block back after its forward pass; `offload` keeps the shares in the CPU's
    memory.
    """

    reshard: bool = True
    offload: bool = False

    def divide(self, model: Transformer, device: torch.device) -> None:
        """Leave this process its share of every weight, on `device` (or the CPU, with `offload`)."""
        # Nothing adds to a block's output in place, which is what this warning is about.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        policy = CPUOffloadPolicy(device.type != "cpu") if self.offload else OffloadPolicy()
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)

    def part(self, model: Transformer) -> float:
        """How much of the base this process keeps, 0 to 1."""
        base: list[Any] = [p for p in model.parameters() if not p.requires_grad]
        return sum(p.to_local().numel() for p in base) / sum(p.numel() for p in base)

    def __str__(self) -> str:
        return "FSDP"


@dataclass(frozen=True)
class Zero3:
    """DeepSpeed's ZeRO stage 3 with the `zero_optimization` group of its configuration."""

    settings: Mapping[str, Any]
    _engines: list[Any] = field(default_factory=list[Any])

    def divide(self, model: Transformer, device: torch.device) -> None:
        """Leave this process its share of every weight."""
        import deepspeed  # pyright: ignore[reportMissingImports]

        config = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants one; it sees no batch here
            "zero_optimization": dict(self.settings),
            "bf16": {"enabled": model.dtype == torch.bfloat16},
        }
        # Weight by weight, so that no card ever has to hold all of them.
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
        engine = deepspeed.initialize(model=model, config=config)[0]
        self._engines.append(engine)  # it takes its hooks away when it is collected

    def part(self, model: Transformer) -> float:
        """How much of the base this process keeps, 0 to 1."""
        base: list[Any] = [p for p in model.parameters() if not p.requires_grad]
        return sum(p.ds_tensor.numel() for p in base) / sum(p.ds_numel for p in base)

    def __str__(self) -> str:
        return "DeepSpeed"


Sharding = Fsdp | Zero3


def check_divisible(model: ModelSettings) -> None:
    """Raise ValueError for a base that cannot be divided: one that learns, or is quantised."""
    for name, value, fix in (("train", model.train, "lora"), ("quantize", model.quantize, "none")):
        if value != fix:
            raise ValueError(
                f"model.{name} = {value!r} cannot go with FSDP or DeepSpeed, which divide a plain "
                f"frozen base here. Set model.{name} = {fix!r}, or launch with --multi_gpu."
            )


def _asked(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def requested_sharding() -> Sharding | None:
    """What `accelerate launch` was configured for: a way of sharding, or None for none.

    It is read from the launcher's environment: accelerate itself knows sharding on GPUs only.

    Raises:
        ValueError: a configuration that the base cannot be divided by; says what to set instead.
    """
    if _asked("PARALLELISM_CONFIG") or _asked("MEGATRON_LM"):
        raise ValueError(
            "The launch asks for accelerate's parallelism_config or Megatron-LM. The base can be "
            "shared out by FSDP version 2 or DeepSpeed's ZeRO stage 3; take those settings out."
        )
    if _asked("FSDP"):
        return _fsdp()
    return _zero3() if _asked("DEEPSPEED") else None


def _fsdp() -> Fsdp:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin: Any = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"The launch asks for FSDP version {plugin.fsdp_version}, which renames the modules that a "
            "LoRA's file names. Launch with --fsdp_version 2 (in the configuration fsdp_version: 2)."
        )
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    return Fsdp(bool(plugin.reshard_after_forward), offload)


def _zero3() -> Zero3:
    from accelerate import DeepSpeedPlugin

    config: dict[str, Any] = DeepSpeedPlugin().deepspeed_config
    zero = {k: v for k, v in config.get("zero_optimization", {}).items() if v != "auto"}
    if zero.get("stage") != 3:
        raise ValueError(
            f"The launch asks for DeepSpeed's ZeRO stage {zero.get('stage', 0)}, which divides only "
            "what learns; a LoRA is small and its base would stay whole. Launch with --zero_stage 3, "
            "or without DeepSpeed."
        )
    odd = sorted({"optimizer", "scheduler"} & config.keys())
    if odd:
        raise ValueError(
            f"DeepSpeed's configuration sets {' and '.join(odd)}; this training sets them by its own "
            "optimizer.* settings. Take them out of the configuration."
        )
    return Zero3(zero)
