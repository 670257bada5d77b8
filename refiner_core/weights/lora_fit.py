"""Which matrices of a model a LoRA changes, and whether the model has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .keys import diffusers_modules, row_counts

Shapes = Mapping[str, tuple[int, ...]]  # rows and columns of weights, by diffusers' module path


def lora_targets(module: str, rows: int, columns: int, name: str) -> list[tuple[str, int]]:
    """The diffusers modules that a LoRA's module changes, with the rows of each.

    Args:
        module: in BFL's or diffusers' names; unknown ones are returned as they are.
        rows: of the change.
        columns: of the change.
        name: for the message of an error.

    Raises:
        ValueError: the rows do not divide into query, key, value and MLP.
    """
    # proj_out is also the name of single blocks' parts; only BFL's outer names are translated.
    targets = diffusers_modules(module)
    if targets is None:
        return [(module, rows)]
    if len(targets) == 4 and rows == 3 * columns:  # XLabs changes no MLP of single blocks
        targets = targets[:3]
    return list(zip(targets, row_counts(rows, len(targets), columns, name), strict=True))


def lost_modules(lost: Collection[str], count: int, model: str) -> str:
    """That a model lacks `lost` of the `count` modules of a LoRA: the first few and their number."""
    few = ", ".join(list(lost)[:4]) + (", ..." if len(lost) > 4 else "")
    return f"{len(lost)} of its {count} modules are not in {model}: {few}"


def misfit(changed: Shapes, model: Shapes, name: str = "this model") -> str | None:
    """Why a LoRA does not fit a model of these shapes, or None if all of it does.

    Args:
        changed: the shapes that the LoRA changes.
        model: the shapes that the model has.
        name: of the model, for the sentence.
    """
    lost = [module for module in changed if module not in model]
    if lost:
        return lost_modules(lost, len(changed), name)
    for module, shape in changed.items():
        if tuple(shape) != tuple(model[module]):
            own, theirs = ("x".join(map(str, s)) for s in (shape, model[module]))
            return f"it changes {module} with {own}, but the weight of {name} is {theirs}"
    return None
