"""The state of a run in one safetensors file, written atomically.

It holds the trainable weights, their copies, the optimizer's moments and a few numbers. Batches and
noise follow from (seed, step), so that a run resumes as if it had never stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..weights.safetensors_io import save_weights
from .trainable import Trainable


def save_checkpoint(
    path: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write the state; the previous checkpoint stays until the new one is complete.

    Raises:
        OSError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, p in trainable.parameters.items():
        tensors[f"now.{name}"] = p.detach()
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"optimizer:{key}.{name}"] = torch.as_tensor(value)
    for role, copy in trainable.copies.items():
        tensors |= {f"copy:{role}.{name}": value for name, value in copy.items()}
    # Cloned because 8-bit moments share their tables, which safetensors refuses to write.
    tensors = {k: v.to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    save_weights(path, tensors, {"facts": json.dumps(facts)})


def read_facts(path: Path) -> dict[str, Any]:
    """The numbers that were saved with the weights.

    Raises:
        ValueError: not a checkpoint written by `save_checkpoint`.
    """
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
    except SafetensorError as e:
        raise ValueError(f"The checkpoint {path} cannot be read: {e}.") from e
    if "facts" not in metadata:
        raise ValueError(f"{path} is not a training checkpoint. Choose another --out folder.")
    return json.loads(metadata["facts"])


def load_checkpoint(
    path: Path, trainable: Trainable, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore the saved state and return the saved numbers.

    Raises:
        ValueError: the checkpoint belongs to another model or another set of weights.
    """
    facts = read_facts(path)
    with safe_open(path, "pt") as f:
        shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
        _check_same(path, shapes, trainable)
        for name, p in trainable.parameters.items():
            p.data.copy_(f.get_tensor(f"now.{name}"))
        trainable.copies = {}
        states: dict[str, dict[str, Any]] = {}
        for key in shapes:
            kind, _, name = key.partition(".")
            head, _, label = kind.partition(":")
            where = trainable.parameters.get(name)
            if where is None or head == "now":
                continue
            tensor = f.get_tensor(key)
            if head == "copy":
                trainable.copies.setdefault(label, {})[name] = tensor.to(where.device)
            else:
                states.setdefault(name, {})[label] = _moment(tensor, where.device)
    for name, p in trainable.parameters.items():
        if name in states:
            optimizer.state[p] = states[name]
    return facts


def _moment(saved: Tensor, device: torch.device) -> Tensor | int:
    """A value of the optimizer's state in the form in which the optimizer keeps it."""
    if saved.ndim:
        return saved.to(device)
    # The step counter: on the CPU in PyTorch's Adam, a plain number in the 8-bit one.
    return saved if saved.is_floating_point() else int(saved)


def _check_same(path: Path, shapes: dict[str, tuple[int, ...]], trainable: Trainable) -> None:
    expected = {f"now.{n}": tuple(p.shape) for n, p in trainable.parameters.items()}
    found = {k: v for k, v in shapes.items() if k.startswith("now.")}
    if expected == found:
        return
    odd = next(k for k in [*expected, *found] if expected.get(k) != found.get(k))
    raise ValueError(
        f"The checkpoint {path} belongs to another model or rank: {odd.removeprefix('now.')} is "
        f"{found.get(odd, 'missing')} there and {expected.get(odd, 'missing')} here. Use the settings "
        "the run was started with, or another --out folder."
    )
