"""Safetensors files and folders: names checked, fp8 multiplied out, nothing ever unpickled."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..storage.output_files import atomic_path
from ..storage.text_files import parse_object, read_object

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_FP8 = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
_SCALES = (".scale_weight", ".weight_scale")
# Scales of activations: they speed up fp8 arithmetic and do not change the weights.
_DROPPED = (".scale_input", ".input_scale", ".comfy_quant")


def save_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file whole or not at all.

    Raises:
        OSError: the disk is full or not writable; an earlier file of that name is untouched.
    """
    try:
        with atomic_path(path) as temporary:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, temporary, dict(metadata or {})
            )
    except SafetensorError as e:  # as which safetensors reports a full disk
        raise OSError(f"{path} could not be written: {e}. What was there before is kept.") from e


def check_weights_path(path: str | Path, what: str) -> Path:
    """The path of an existing `.safetensors` file.

    Raises:
        ValueError: missing, a folder, a pickle, GGUF, or another kind of file.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ValueError(
            f"The {what} {path} is a pickle ({suffix}), which can run code when opened. Convert it "
            "to .safetensors."
        )
    if suffix == ".gguf":
        raise ValueError(
            f"The {what} {path} is GGUF, which only ComfyUI can run here: load it with a GGUF "
            "loader and use Refiner from Model, or take a .safetensors file."
        )
    if path.is_dir():
        raise ValueError(f"The {what} {path} is a folder; name a .safetensors file in it.")
    if not path.is_file():
        raise ValueError(f"The {what} {path} does not exist.")
    if suffix not in (".safetensors", ".sft"):
        raise ValueError(f"The {what} {path} is not a .safetensors file.")
    return path


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Generator[Any, None, None]:
    try:
        with safe_open(path, "pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise ValueError(
            f"The {what} {path} ({path.stat().st_size} bytes) is damaged, cut off or no "
            f"safetensors file: {e}. Download it again."
        ) from e


def read_header(
    path: str | Path, what: str = "weight file"
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of every tensor of a safetensors file, and its metadata; no tensor is read.

    Raises:
        ValueError: as `read_weights`.
    """
    path = check_weights_path(path, what)
    with _reading(path, what) as f:
        shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
        return shapes, dict(f.metadata() or {})


def read_weights(
    path: str | Path, dtype: torch.dtype | None = None, what: str = "weight file"
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, under their own names.

    ComfyUI's scaled fp8 is multiplied out (`X.weight` with `X.scale_weight` or `X.weight_scale`,
    scalar or one per row) and its bookkeeping keys are dropped. Floats become `dtype`, one tensor
    at a time; with None they stay as stored, except fp8, which becomes float32.

    Raises:
        ValueError: missing, not safetensors, cut off, or quantised in a way this cannot undo.
    """
    path = check_weights_path(path, what)
    with _reading(path, what) as f:
        names = list(f.keys())
        formats = _formats(f, names, path)
        present = set(names)
        out: dict[str, Tensor] = {}
        mapped: list[str] = []
        for name in names:
            if name.endswith((*_SCALES, *_DROPPED)) or name.split(".")[-1] == "scaled_fp8":
                continue
            tensor: Tensor = f.get_tensor(name)
            module = name.removesuffix(".weight")
            layout = formats.get(module)
            if name.endswith(".weight"):
                _check_format(path, name, tensor, layout)
                scales = [f.get_tensor(module + s) for s in _SCALES if module + s in present]
                if scales:
                    tensor = _unscale(path, name, tensor, scales[0], layout)
            if dtype is None:
                dtype_here = torch.float32 if tensor.dtype in _FP8.values() else tensor.dtype
            else:
                dtype_here = dtype if tensor.is_floating_point() else tensor.dtype
            out[name] = tensor.to(dtype_here)
            if out[name] is tensor:
                mapped.append(name)
    if 2 * sum(out[name].nbytes for name in mapped) < sum(x.nbytes for x in out.values()):
        # Each of them would keep the whole file in memory, beside what was converted.
        out |= {name: out[name].clone() for name in mapped}
    return out


def _formats(f: Any, names: Sequence[str], path: Path) -> dict[str, str]:
    """Module -> quantisation, from ComfyUI's `comfy_quant` tensors or the file's metadata."""
    metadata: dict[str, str] = f.metadata() or {}
    text = metadata.get("_quantization_metadata", "{}")
    listed = parse_object(text, f"{path}: its _quantization_metadata").get("layers", {})
    entries: dict[str, Any] = dict(listed) if isinstance(listed, dict) else {}
    for name in names:
        if name.endswith(".comfy_quant"):
            stored: Tensor = f.get_tensor(name)
            if stored.dtype != torch.uint8 or stored.ndim != 1:
                raise ValueError(f"{path}: {name} must be text, got {stored.dtype} {stored.shape}.")
            entry = parse_object(bytes(stored.tolist()), f"{path}: {name}")
            entries[name.removesuffix(".comfy_quant")] = entry
    odd = next((k for k, v in entries.items() if not isinstance(v, dict)), None)
    if odd is not None:
        raise ValueError(f"{path}: the quantization of {odd} is not a table: {entries[odd]!r}.")
    return {module: str(entry.get("format")) for module, entry in entries.items()}


def _check_format(path: Path, name: str, tensor: Tensor, layout: str | None) -> None:
    if layout in _FP8:
        return
    if layout is None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        return
    raise ValueError(
        f"{path}: {name} is quantised ({layout or tensor.dtype}). Only fp8 can be read here; take "
        "the bf16 or the fp8 file, or run this one in ComfyUI."
    )


def _unscale(path: Path, name: str, tensor: Tensor, scale: Tensor, layout: str | None) -> Tensor:
    if tensor.dtype == torch.uint8 and layout in _FP8:
        tensor = tensor.view(_FP8[layout])  # older writers stored the bytes
    scale = scale.float()
    if scale.numel() == 1:
        return tensor.float() * scale.reshape(())
    if tensor.ndim and scale.numel() == len(tensor):
        return tensor.float() * scale.reshape(-1, *([1] * (tensor.ndim - 1)))
    raise ValueError(
        f"{path}: the scale of {name} has {tuple(scale.shape)} numbers for a weight of "
        f"{tuple(tensor.shape)}; only one, or one per row, can be read."
    )


def folder_files(folder: Path, what: str) -> list[Path]:
    """The safetensors files of a diffusers or transformers folder, the shards of one model.

    Raises:
        ValueError: none there, pickles only, or a shard is missing.
    """
    index = sorted(folder.glob("*.safetensors.index.json"))
    if index:
        files = [folder / name for name in _indexed_files(index[0])]
        lost = [f.name for f in files if not f.is_file()]
        if lost:
            raise ValueError(f"The {what} {folder} lacks {len(lost)} of its files: {lost[0]}, ...")
        return files
    files = sorted(folder.glob("*.safetensors"), key=lambda f: len(f.name))
    if not files:
        pickles = [f.name for f in sorted(folder.iterdir()) if f.suffix in _PICKLES]
        hint = f" ({pickles[0]} is a pickle: convert it)" if pickles else ""
        raise ValueError(f"The {what} {folder} holds no .safetensors file{hint}.")
    return files[:1]  # others are variants (fp16, ema) of the same weights


def _indexed_files(index: Path) -> list[str]:
    """The names of the files that an index lists.

    Raises:
        ValueError: it lists none, or something else than files of its own folder.
    """
    table = read_object(index, "index").get("weight_map")
    listed = list(cast(dict[str, Any], table).values()) if isinstance(table, dict) else [table]
    names = {n for n in listed if isinstance(n, str) and n and Path(n).name == n}
    odd = [n for n in listed if not isinstance(n, str) or n not in names]
    if odd or not names:
        raise ValueError(
            f"The index {index} must list files of its own folder under weight_map, got "
            f"{odd[0] if odd else None!r}."
        )
    return sorted(names)


def read_folder(folder: Path, dtype: torch.dtype | None, what: str) -> dict[str, Tensor]:
    """The weights of a diffusers or transformers folder, from all its shards.

    Raises:
        ValueError: as `folder_files` and `read_weights`.
    """
    out: dict[str, Tensor] = {}
    for file in folder_files(folder, what):
        out |= read_weights(file, dtype, what)
    return out


def fill(model: nn.Module, sd: Mapping[str, Tensor], source: str) -> None:
    """Give a model built on the meta device its weights, without copying them.

    Raises:
        ValueError: keys missing, left over or of another shape; the first few and their number.
    """
    own = model.state_dict()
    _report(source, "are missing", [k for k in own if k not in sd])
    _report(source, "belong to no part of the model", [k for k in sd if k not in own])
    wrong = [
        f"{k} {tuple(sd[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if sd[k].shape != v.shape
    ]
    _report(source, "have the wrong shape", wrong)
    model.load_state_dict(dict(sd), assign=True)
    model.eval().requires_grad_(False)


def _report(source: str, what: str, keys: Sequence[str]) -> None:
    if keys:
        few = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
        raise ValueError(f"{source}: {len(keys)} weights {what}: {few}.")
