"""Which of the known models a LoRA fits, told by names and shapes alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from .headers import read_any_header
from .inspection import NEVER, WeightFile
from .lora_fit import Shapes, lora_targets, misfit
from .lora_keys import TEXT_PREFIXES, parse_name

_WIDTH, _TEXT, _POOLED = 3072, 4096, 768
_DOUBLE, _SINGLE = 19, 38
_SQUARE = (_WIDTH, _WIDTH)
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_DOUBLE_ATTENTION = (
    *_ATTENTION,
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_out.0",
    "attn.to_add_out",
)


def flux1_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of all matrices of FLUX.1 [dev] and Kontext."""
    wide, narrow = (4 * _WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH)
    double: dict[str, tuple[int, ...]] = dict.fromkeys(_DOUBLE_ATTENTION, _SQUARE)
    for side in ("", "_context"):
        double |= {f"ff{side}.net.0.proj": wide, f"ff{side}.net.2": narrow}
        double[f"norm1{side}.linear"] = (6 * _WIDTH, _WIDTH)
    single: dict[str, tuple[int, ...]] = dict.fromkeys(_ATTENTION, _SQUARE)
    single |= {
        "proj_mlp": wide,
        "proj_out": (_WIDTH, 5 * _WIDTH),
        "norm.linear": (3 * _WIDTH, _WIDTH),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder": (_WIDTH, 64),
        "context_embedder": (_WIDTH, _TEXT),
        "proj_out": (64, _WIDTH),
        "norm_out.linear": (2 * _WIDTH, _WIDTH),
    }
    for part, columns in (("timestep", 256), ("guidance", 256), ("text", _POOLED)):
        shapes[f"time_text_embed.{part}_embedder.linear_1"] = (_WIDTH, columns)
        shapes[f"time_text_embed.{part}_embedder.linear_2"] = _SQUARE
    for block, count, inner in (
        ("transformer_blocks", _DOUBLE, double),
        ("single_transformer_blocks", _SINGLE, single),
    ):
        shapes |= {f"{block}.{i}.{name}": s for i in range(count) for name, s in inner.items()}
    return shapes


def changed_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Rows and columns that a LoRA changes, by diffusers' module path.

    Args:
        shapes: of the file's tensors by their names, both factors of every module.

    Raises:
        ValueError: the rows of a fused matrix do not divide.
    """
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    for name, shape in shapes.items():
        module, part = parse_name(name) or ("", "")
        if part == "alpha" or not module or name.startswith(TEXT_PREFIXES):
            continue
        if part == "a":
            columns[module] = math.prod(shape[1:])
        else:
            rows[module] = shape[0]
    return {
        target: (count, columns[module])
        for module in rows
        for target, count in lora_targets(module, rows[module], columns[module], module)
    }


def with_fit(file: WeightFile, nano: Path) -> WeightFile:
    """A LoRA for FLUX.1 with the recipes whose models it fits as a whole; other files as they are.

    Args:
        file: what names alone tell of it.
        nano: the weights of the refiner that ships with the pack, FLUX.1 in miniature.

    Raises:
        ValueError: one of the files is not valid, or the rows of a fused matrix do not divide.
    """
    if (file.kind, file.family) != ("lora", "flux") or "kontext" not in file.recipes:
        return file
    changed = changed_shapes(read_any_header(file.path).shapes)
    if misfit(changed, flux1_shapes()) is None:
        return file
    small = _matrices(nano)
    if misfit(changed, small) is None:
        return replace(file, what="a LoRA for nano (embedded)", recipes=("nano",))
    models = (("FLUX.1", flux1_shapes()), ("nano", small))
    name, nearest = max(models, key=lambda m: _common(changed, m[1]))
    what = f"a LoRA for another model: {misfit(changed, nearest, name)}"
    return replace(file, what=what, recipes=(), slot=NEVER, folder=NEVER)


def _matrices(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices of a model in diffusers' names."""
    shapes = read_any_header(path).shapes
    return {k.removesuffix(".weight"): shape for k, shape in shapes.items() if len(shape) == 2}


def _common(changed: Shapes, model: Shapes) -> int:
    """How many of the modules a model has in the shape that the LoRA changes."""
    return sum(tuple(model.get(module, ())) == tuple(s) for module, s in changed.items())
