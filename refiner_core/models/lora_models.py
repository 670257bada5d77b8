"""Which of the known models a LoRA fits, told by names and shapes alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ..weights.headers import read_any_header
from ..weights.inspection import NEVER, WeightFile
from ..weights.lora_fit import Shapes, lora_targets, misfit
from ..weights.lora_keys import TEXT_PREFIXES, parse_name
from .flux_transformer import FluxTransformer


def flux1_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of all matrices of FLUX.1 [dev] and Kontext."""
    with torch.device("meta"):  # names and shapes only
        weights = FluxTransformer(guidance_embeds=True).state_dict()
    return _matrices({name: tuple(w.shape) for name, w in weights.items()})


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
    full, small = flux1_shapes(), _matrices(read_any_header(nano).shapes)
    if misfit(changed, full) is None:
        return file
    if misfit(changed, small) is None:
        return replace(file, what="a LoRA for nano (embedded)", recipes=("nano",))
    models = (("FLUX.1", full), ("nano", small))
    name, nearest = max(models, key=lambda m: _common(changed, m[1]))
    what = f"a LoRA for another model: {misfit(changed, nearest, name)}"
    return replace(file, what=what, recipes=(), slot=NEVER, folder=NEVER)


def _matrices(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices of a model in diffusers' names, by the paths of their modules."""
    return {k.removesuffix(".weight"): shape for k, shape in shapes.items() if len(shape) == 2}


def _common(changed: Shapes, model: Shapes) -> int:
    """How many of the modules a model has in the shape that the LoRA changes."""
    return sum(tuple(model.get(module, ())) == tuple(s) for module, s in changed.items())
