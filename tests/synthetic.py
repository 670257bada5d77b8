"""Weight files of the published projects in miniature: their names and types, tiny shapes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH = 256


def zero_text(model: Any, batch: int = 1, length: int = 1) -> tuple[Tensor, Tensor]:
    """The embeddings of a FLUX that knows no text: zeros `B length D` and `B P`."""
    p = model.context_embedder.weight
    pooled = model.time_text_embed.text_embedder.linear_1.in_features
    return p.new_zeros(batch, length, p.shape[1]), p.new_zeros(batch, pooled)


def _normal(*shape: int, seed: int = 0, std: float = 0.05) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * std


def imagecritic_lora(
    width: int = WIDTH, rank: int = 4, double: int = 19, single: int = 38
) -> dict[str, Tensor]:
    """As ImageCritic's lora.safetensors; its own has width 3072 and rank 128."""
    out: dict[str, Tensor] = {}
    for block, count, parts in (
        ("transformer_blocks", double, ("q", "k", "v", "proj")),
        ("single_transformer_blocks", single, ("q", "k", "v")),
    ):
        for i in range(count):
            for n, part in enumerate(parts):
                name = f"{block}.{i}.attn.processor.{part}_loras.0"
                out[f"{name}.down.weight"] = _normal(rank, width, seed=100 * i + n)
                out[f"{name}.up.weight"] = _normal(width, rank, seed=100 * i + n + 50)
    return out


def detail_encoder(
    width: int = 64, inner: int = 128, depth: int = 24, text: int = 4096, patch: int = 14
) -> dict[str, Tensor]:
    """As ImageCritic's detail_encoder.safetensors; its own has width 1024."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (48, width),
        "visual_projection_2.weight": (80, width),
        "fuse_module.mlp1.fc1.weight": (text, text + 128),
        "fuse_module.mlp1.fc2.weight": (text, text),
        "fuse_module.mlp2.fc1.weight": (text, text),
        "fuse_module.mlp2.fc2.weight": (text, text),
    }
    norms = {
        "vision_model.pre_layrnorm": width,
        "vision_model.post_layernorm": width,
        "fuse_module.mlp1.layernorm": text + 128,
        "fuse_module.mlp2.layernorm": text,
        "fuse_module.layer_norm": text,
    }
    for i in range(depth):
        layer = f"vision_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}.self_attn.{part}.weight"] = (width, width)
        shapes[f"{layer}.mlp.fc1.weight"] = (inner, width)
        shapes[f"{layer}.mlp.fc2.weight"] = (width, inner)
        norms |= {f"{layer}.layer_norm1": width, f"{layer}.layer_norm2": width}
    out = {k: _normal(*s, seed=n) for n, (k, s) in enumerate(shapes.items())}
    for k, s in shapes.items():
        if k.startswith("fuse_module.") or ".layers." in k:
            out[k.removesuffix("weight") + "bias"] = _normal(s[0], seed=7)
    for k, size in norms.items():
        out[f"{k}.weight"] = 1 + _normal(size, seed=8)
        out[f"{k}.bias"] = _normal(size, seed=9)
    return out


def peft_lora(modules: list[str], width: int = WIDTH, rank: int = 2) -> dict[str, Tensor]:
    """A diffusers LoRA of square matrices."""
    out = {}
    for n, module in enumerate(modules):
        out[f"transformer.{module}.lora_A.weight"] = _normal(rank, width, seed=n)
        out[f"transformer.{module}.lora_B.weight"] = _normal(width, rank, seed=n + 1)
    return out


def refiner_lora(width: int = WIDTH) -> dict[str, Tensor]:
    """A refiner LoRA of FLUX.1-Kontext, as this pack trains them: all attention of all blocks."""
    parts = ("to_q", "to_k", "to_v")
    names = [f"transformer_blocks.{i}.attn.{p}" for i in range(19) for p in (*parts, "to_out.0")]
    names += [f"single_transformer_blocks.{i}.attn.{p}" for i in range(38) for p in parts]
    return peft_lora(names, width)


def refineanything_lora(blocks: int = 60, width: int = WIDTH) -> dict[str, Tensor]:
    """As Qwen-Image-Edit-2511-RefineAny.safetensors; its own has width 3072 and rank 256."""
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    return peft_lora(
        [f"transformer_blocks.{i}.attn.{p}" for i in range(blocks) for p in parts], width
    )


def lightning_lora(blocks: int = 60, width: int = WIDTH, rank: int = 2) -> dict[str, Tensor]:
    """As lightx2v's Lightning LoRAs for Qwen-Image-Edit: every matrix of the blocks but the norms'."""
    parts = {
        f"attn.{p}": (width, width)
        for p in (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        )
    }
    for side in ("img", "txt"):
        parts |= {
            f"{side}_mlp.net.0.proj": (4 * width, width),
            f"{side}_mlp.net.2": (width, 4 * width),
        }
    out = {}
    for i in range(blocks):
        for n, (part, (rows, columns)) in enumerate(parts.items()):
            name = f"transformer_blocks.{i}.{part}"
            out[f"{name}.lora_down.weight"] = _normal(rank, columns, seed=20 * i + n)
            out[f"{name}.lora_up.weight"] = _normal(rows, rank, seed=20 * i + n + 1)
            out[f"{name}.alpha"] = torch.tensor(float(rank))
    return out


def flux_accelerator_lora(
    width: int = WIDTH, text: int = 64, pooled: int = 64, rank: int = 2
) -> dict[str, Tensor]:
    """As ByteDance's Hyper-FLUX.1-dev-8steps-lora (float32) and alimama's FLUX.1-Turbo-Alpha
    (bfloat16), which have rank 64 and 1008 weights: every matrix of FLUX.1.
    """
    square, wide, narrow = (width, width), (4 * width, width), (width, 4 * width)
    parts = {
        f"attn.{p}": square
        for p in (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        )
    }
    for side in ("", "_context"):
        parts |= {f"ff{side}.net.0.proj": wide, f"ff{side}.net.2": narrow}
        parts[f"norm1{side}.linear"] = (6 * width, width)
    shapes = {f"transformer_blocks.{i}.{p}": s for i in range(19) for p, s in parts.items()}
    parts = {f"attn.{p}": square for p in ("to_q", "to_k", "to_v")}
    parts |= {"proj_mlp": wide, "proj_out": (width, 5 * width), "norm.linear": (3 * width, width)}
    shapes |= {f"single_transformer_blocks.{i}.{p}": s for i in range(38) for p, s in parts.items()}
    shapes |= {
        "x_embedder": (width, 64),
        "context_embedder": (width, text),
        "proj_out": (64, width),
        "norm_out.linear": (2 * width, width),
    }
    for part, first in (("timestep", 256), ("guidance", 256), ("text", pooled)):
        shapes[f"time_text_embed.{part}_embedder.linear_1"] = (width, first)
        shapes[f"time_text_embed.{part}_embedder.linear_2"] = square
    out = {}
    for n, (name, (rows, columns)) in enumerate(shapes.items()):
        out[f"transformer.{name}.lora_A.weight"] = _normal(rank, columns, seed=n)
        out[f"transformer.{name}.lora_B.weight"] = _normal(rows, rank, seed=n + 1)
    return out


def scaled_fp8(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A FLUX transformer as ComfyUI's `..._fp8_scaled` files are, fp8 and one scale a matrix; and
    the float32 weights that such a file stands for.
    """
    file: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    meant: dict[str, Tensor] = {}
    for key, value in weights.items():
        file[key] = meant[key] = value
        if "_blocks." in key and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / 448
            file[key] = (value / scale).to(torch.float8_e4m3fn)
            file[key.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
            meant[key] = file[key].float() * scale
    return file, meant


def write(
    path: Path, weights: dict[str, Tensor], dtype: torch.dtype | None = torch.bfloat16
) -> Path:
    """Save a file in the published type."""
    cast = {k: (v if dtype is None else v.to(dtype)).contiguous() for k, v in weights.items()}
    save_file(cast, path, {"format": "pt"})
    return path


def write_gguf(
    path: Path, shapes: dict[str, tuple[int, ...]], architecture: str, kind: int = 8
) -> Path:
    """A GGUF file by its specification, whole by its size; its weights are holes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [text("general.architecture") + struct.pack("<I", 8) + text(architecture)]
    values.append(text("some.list") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3))
    tensors = [
        text(k) + struct.pack(f"<I{len(s)}QIQ", len(s), *reversed(s), kind, 0)
        for k, s in shapes.items()
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    path.write_bytes(head + b"".join(values + tensors))
    with path.open(
        "r+b"
    ) as f:  # every tensor begins where the data does; four bytes a number are enough
        f.truncate(path.stat().st_size + 32 + 4 * max(math.prod(s) for s in shapes.values()))
    return path


def header_only(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A safetensors file that is whole by its sizes, at full shapes, without taking the disk's room."""
    table, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(table).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        f.truncate(8 + len(head) + end)
    return path
