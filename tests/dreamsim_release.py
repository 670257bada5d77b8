"""Writes folders in the layout of DreamSim's official releases, with seeded random numbers.

Used by the tests, and by `dreamsim_package.py`, which runs the dreamsim package on the same folder.
The numbers come from numpy's frozen legacy generator, so they are the same on every machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

# variant -> (family, patch) of its towers, its LoRA folder
LAYOUTS: dict[str, tuple[list[tuple[str, int]], str]] = {
    "ensemble": ([("dino", 16), ("clip", 16), ("open_clip", 16)], "ensemble_lora"),
    "dino_vitb16": ([("dino", 16)], "dino_vitb16_single_lora"),
    "clip_vitb32": ([("clip", 32)], "clip_vitb32_single_lora"),
    "open_clip_vitb32": ([("open_clip", 32)], "open_clip_vitb32_single_lora"),
    "dinov2_vitb14": ([("dinov2", 14)], "dinov2_vitb14_single_lora"),
    "synclr_vitb16": ([("synclr", 16)], "synclr_vitb16_single_lora"),
    "dino_vitb16_patch": ([("dino", 16)], "dino_vitb16_patch_lora"),
    "dinov2_vitb14_patch": ([("dinov2", 14)], "dinov2_vitb14_patch_lora"),
}


@dataclass(frozen=True)
class Sizes:
    """Width, patches on a side, patches on a side DINOv2 was trained with, CLIP's projection."""

    width: int
    grid: int | None  # None: as many as fit in 224 px
    dinov2_grid: int
    projection: int
    rank: int


FULL = Sizes(768, None, 37, 512, 16)
TINY = Sizes(128, 2, 3, 48, 4)
DEPTH = 12  # the package takes its features after the twelfth block


class Numbers:
    """Seeded normal numbers in the shapes asked for."""

    def __init__(self, seed: int) -> None:
        self.source = np.random.RandomState(seed)

    def __call__(self, *shape: int, spread: float, middle: float = 0.0) -> Tensor:
        values = self.source.standard_normal(shape).astype(np.float32)
        return torch.from_numpy(values * np.float32(spread) + np.float32(middle))


def tower(numbers: Numbers, family: str, patch: int, sizes: Sizes) -> dict[str, Tensor]:
    """A vision transformer's weights under the package's names."""
    d, grid = sizes.width, sizes.grid or 224 // patch
    spread = 0.03 * (768 / d) ** 0.5
    trained = sizes.dinov2_grid if family == "dinov2" else grid
    out = {
        "cls_token": numbers(1, 1, d, spread=0.5),
        "pos_embed": numbers(1, trained**2 + 1, d, spread=0.5),
        "patch_embed.proj.weight": numbers(d, 3, patch, patch, spread=0.03),
        "patch_embed.proj.bias": numbers(d, spread=0.03),
    }
    norms = ["norm"] + (["pos_drop"] if family in ("clip", "open_clip") else [])
    linears = []
    for i in range(DEPTH):
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
        for name, o, n in (("attn.qkv", 3 * d, d), ("attn.proj", d, d),
                           ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d)):  # fmt: skip
            linears.append((f"blocks.{i}.{name}", o, n))
        if family == "dinov2":
            out[f"blocks.{i}.ls1.gamma"] = numbers(d, spread=0.3, middle=0.7)
            out[f"blocks.{i}.ls2.gamma"] = numbers(d, spread=0.3, middle=0.7)
    for name in norms:
        out[f"{name}.weight"] = numbers(d, spread=0.1, middle=1.0)
        out[f"{name}.bias"] = numbers(d, spread=0.03)
    for name, o, n in linears:
        out[f"{name}.weight"] = numbers(o, n, spread=spread)
        out[f"{name}.bias"] = numbers(o, spread=0.03)
    if family == "dinov2":
        out["mask_token"] = torch.zeros(1, d)
    if family in ("clip", "open_clip"):
        out["proj"] = numbers(d, sizes.projection, spread=0.03)
    return out


def _dino_checkpoint(numbers: Numbers, backbone: dict[str, Tensor], sizes: Sizes) -> dict[str, Any]:
    d = sizes.width
    head = {}
    for layer, (o, n) in {"mlp.0": (64, d), "mlp.2": (64, 64), "mlp.4": (32, 64)}.items():
        head[f"module.head.{layer}.weight"] = numbers(o, n, spread=0.03)
        head[f"module.head.{layer}.bias"] = numbers(o, spread=0.03)
    head["module.head.last_layer.weight"] = numbers(64, 32, spread=1.0)
    return {"student": head, "teacher": {f"backbone.{k}": v for k, v in backbone.items()}}


def _save_tower(
    folder: Path, family: str, patch: int, weights: dict[str, Tensor], head: Any
) -> None:
    if family in ("clip", "open_clip"):
        torch.save({"state_dict": weights}, folder / f"{family}_vitb{patch}_pretrain.pth.tar")
    elif family == "synclr":
        whole = {f"module.visual.{k}": v for k, v in weights.items()}
        torch.save({"model": whole}, folder / "synclr_vit_b_16.pth")
    elif family == "dino":
        torch.save(weights, folder / "checkpoints" / "dino_vitbase16_pretrain.pth")
        torch.save(head, folder / "dino_vitb16_pretrain.pth")
    else:
        torch.save(weights, folder / "checkpoints" / "dinov2_vitb14_pretrain.pth")
        (folder / "dinov2_vitb14_pretrain.pth").write_bytes(b"its presence is all that is checked")


def write_release(folder: Path, variant: str, sizes: Sizes, seed: int = 0) -> Path:
    """A release of one variant, with the backbone where torch.hub would keep it."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    numbers, (towers, adapter) = Numbers(seed), LAYOUTS[variant]
    for family, patch in towers:
        weights = tower(numbers, family, patch, sizes)
        head = _dino_checkpoint(numbers, weights, sizes) if family == "dino" else None
        _save_tower(folder, family, patch, weights, head)
    d, r = sizes.width, sizes.rank
    lora = {}
    for i in range(len(towers)):
        for b in range(DEPTH):
            name = f"base_model.model.extractor_list.{i}.model.blocks.{b}.attn.qkv"
            lora[f"{name}.lora_A.weight"] = numbers(r, d, spread=0.05)
            lora[f"{name}.lora_B.weight"] = numbers(3 * d, r, spread=0.05)
    (folder / adapter).mkdir(exist_ok=True)
    save_file(lora, folder / adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "r": r,
        "lora_alpha": r / 2, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"],
        "inference_mode": True, "fan_in_fan_out": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sample_pictures(seed: int = 0) -> list[np.ndarray]:
    """Four uint8 pictures H W 3 of several sizes: smooth, a darker copy, noise, one colour."""
    source = np.random.RandomState(seed)
    coarse = source.randint(0, 256, (8, 12, 3))
    smooth = coarse.repeat(25, 0).repeat(25, 1).astype(np.uint8)
    return [
        smooth,
        (smooth * 0.7).astype(np.uint8),
        source.randint(0, 256, (61, 47, 3)).astype(np.uint8),
        np.full((30, 40, 3), (200, 30, 90), np.uint8),
    ]
