"""Shards the frozen base over the processes if accelerate's configuration asks for it.

The base under a LoRA is by far the largest thing in memory and never changes: each process keeps a
share of every block, and one block at a time is gathered for its forward and backward pass. The LoRA,
its optimizer and its copies stay whole on every process, so that nothing else changes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer


@dataclass(frozen=True)
class Fsdp:
    """PyTorch's `fully_shard`, configured by accelerate's `fsdp_*` settings.

    `reshard` frees a gathered block after its forward pass; `offload` keeps the shares in CPU memory.
    """

    reshard: bool = True
    offload: bool = False

    def shard(self, model: Transformer, device: torch.device) -> None:
        """Keep only this process's share of every weight, on `device` (or the CPU, with `offload`)."""
        # The warning is about in-place changes of a block's output, which do not happen here.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        policy = CPUOffloadPolicy(device.type != "cpu") if self.offload else OffloadPolicy()
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)

    def base_share(self, model: Transformer) -> float:
        """The share of the base that this process keeps, 0 to 1."""
        base: list[Any] = [p for p in model.parameters() if not p.requires_grad]
        return sum(p.to_local().numel() for p in base) / sum(p.numel() for p in base)

    def __str__(self) -> str:
        return "FSDP"


@dataclass(frozen=True)
class Zero3:
    """DeepSpeed's ZeRO stage 3 with the `zero_optimization` group of its configuration."""

    settings: Mapping[str, Any]
    _engines: list[Any] = field(default_factory=list[Any])

    def shard(self, model: Transformer, device: torch.device) -> None:
        """Keep only this process's share of every weight."""
        import deepspeed  # pyright: ignore[reportMissingImports]

        config = {
            "train_micro_batch_size_per_gpu": 1,  # required, but DeepSpeed sees no batches here
            "zero_optimization": dict(self.settings),
            "bf16": {"enabled": model.dtype == torch.bfloat16},
        }
        # Weight by weight, so that no card ever holds all of them.
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
        engine = deepspeed.initialize(model=model, config=config)[0]
        self._engines.append(engine)  # its hooks disappear when it is garbage collected

    def base_share(self, model: Transformer) -> float:
        """The share of the base that this process keeps, 0 to 1."""
        base: list[Any] = [p for p in model.parameters() if not p.requires_grad]
        return sum(p.ds_tensor.numel() for p in base) / sum(p.ds_numel for p in base)

    def __str__(self) -> str:
        return "DeepSpeed"


Sharding = Fsdp | Zero3


def _requested(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def requested_sharding() -> Sharding | None:
    """The sharding that `accelerate launch` is configured for, or None.

    It is read from the launcher's environment, because accelerate itself supports sharding on GPUs
    only.

    Raises:
        ValueError: a configuration that is not supported; the message says what to set instead.
    """
    if _requested("PARALLELISM_CONFIG") or _requested("MEGATRON_LM"):
        raise ValueError(
            "The launch asks for accelerate's parallelism_config or Megatron-LM, but the base can be "
            "sharded only by FSDP version 2 or DeepSpeed's ZeRO stage 3. Remove those settings."
        )
    if _requested("FSDP"):
        return _fsdp()
    return _zero3() if _requested("DEEPSPEED") else None


def _fsdp() -> Fsdp:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin: Any = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"The launch asks for FSDP version {plugin.fsdp_version}, which renames the modules that a "
            "LoRA file refers to. Launch with --fsdp_version 2 (in the configuration fsdp_version: 2)."
        )
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    return Fsdp(bool(plugin.reshard_after_forward), offload)


def _zero3() -> Zero3:
    from accelerate import DeepSpeedPlugin

    config: dict[str, Any] = DeepSpeedPlugin().deepspeed_config
    zero = {k: v for k, v in config.get("zero_optimization", {}).items() if v != "auto"}
    if zero.get("stage") != 3:
        raise ValueError(
            f"The launch asks for DeepSpeed's ZeRO stage {zero.get('stage', 0)}, which shards only "
            "the trainable weights: the base under the LoRA would stay whole. Launch with --zero_stage "
            "3, or without DeepSpeed."
        )
    odd = sorted({"optimizer", "scheduler"} & config.keys())
    if odd:
        raise ValueError(
            f"DeepSpeed's configuration sets {' and '.join(odd)}; which this training configures by "
            "its own optimizer.* settings. Remove them from the configuration."
        )
    return Zero3(zero)
