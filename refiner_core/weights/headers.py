"""What the first bytes of a weight file say: names, shapes and types, without reading a weight.

Safetensors (an 8-byte length, then JSON) and GGUF (version 2 and 3) are read; nothing else is opened.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..storage.text_files import parse_object

_MOST_BYTES = 100 << 20  # of a header, which is also the limit of the safetensors library
_MOST_ENTRIES = 1_000_000  # tensors, values or items of a list
_MOST_SIDES = 8
_MOST_NESTED = 4  # lists in lists
_LFS_POINTER = b"version https://git-lfs"
_STRING, _LIST = 8, 9  # GGUF's value types; those of numbers with their struct formats:
_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
# GGML's types: name, and numbers and bytes of a block where the size of a file is checked by them.
_GGML = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 1, 0),
    17: ("IQ2_XS", 1, 0),
    18: ("IQ3_XXS", 1, 0),
    19: ("IQ1_S", 1, 0),
    20: ("IQ4_NL", 1, 0),
    21: ("IQ3_S", 1, 0),
    22: ("IQ2_S", 1, 0),
    23: ("IQ4_XS", 1, 0),
    29: ("IQ1_M", 1, 0),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class Header:
    """`shapes` and `types` ("BF16", "F8_E4M3", "Q4_K", ...) by tensor name; `metadata` of the file;
    `format` "safetensors" or "gguf".
    """

    path: Path
    format: str
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


def read_any_header(path: str | Path) -> Header:
    """The header of a safetensors or GGUF file.

    Raises:
        ValueError: no such file, another format, or a file that is cut off (says how much is there).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file.")
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(8)
        if start[:4] == b"GGUF":
            f.seek(0)
            try:
                header, whole = _gguf(f, path)
            except struct.error as e:
                raise ValueError(
                    f"{path} ({size} bytes) is GGUF but cut off or damaged ({e}). Download it again."
                ) from e
            _check_whole(path, size, whole)
            return header
        return _safetensors(f, path, start, size)


def _safetensors(f: BinaryIO, path: Path, start: bytes, size: int) -> Header:
    if start == _LFS_POINTER[:8]:
        raise ValueError(
            f"{path} ({size} bytes) is a Git LFS pointer, not the weights. Download the file itself, "
            "for example with git lfs pull."
        )
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _MOST_BYTES:
        raise ValueError(
            f"{path} ({size} bytes) is neither safetensors nor GGUF. A pickle (.pt, .ckpt, .bin) is "
            "not opened; a page saved instead of the file begins like this too."
        )
    _check_whole(path, size, 8 + length)
    source = f"The safetensors header of {path} ({size} bytes)"
    table = parse_object(f.read(length), source)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{source} is damaged: its metadata is not a table.")
    for name, entry in table.items():
        if not _is_entry(entry):
            raise ValueError(f"{source} is damaged: {name[:80]!r} has no shape, dtype or offsets.")
    shapes = {k: tuple(v["shape"]) for k, v in table.items()}
    types = {k: v["dtype"] for k, v in table.items()}
    end = max((v["data_offsets"][1] for v in table.values()), default=0)
    _check_whole(path, size, 8 + length + end)
    return Header(path, "safetensors", shapes, types, cast(dict[str, Any], metadata))


def _is_entry(entry: Any) -> bool:
    """Whether a value is what a safetensors header says of a tensor."""
    if not isinstance(entry, dict):
        return False
    table = cast(dict[str, Any], entry)
    offsets = table.get("data_offsets")
    return (
        isinstance(table.get("dtype"), str)
        and _are_sizes(table.get("shape"))
        and _are_sizes(offsets)
        and len(cast(list[int], offsets)) == 2
    )


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in cast(list[Any], values)
    )


def _check_whole(path: Path, size: int, whole: int) -> None:
    if size < whole:
        raise ValueError(
            f"{path} is cut off: {size} of {whole} bytes are there ({size / whole:.0%}). Download it "
            "again."
        )


def _unpack(f: BinaryIO, form: str) -> Any:
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, f.read(size))[0]


def _count(f: BinaryIO, form: str, most: int) -> int:
    """A number of things that follow in the file.

    Raises:
        struct.error: it is more than any real file has.
    """
    count: int = _unpack(f, form)
    if count > most or f.tell() > _MOST_BYTES:
        raise struct.error(f"{count} is more than {most}")
    return count


def _string(f: BinaryIO) -> str:
    data = f.read(_count(f, "Q", _MOST_BYTES))
    return data.decode("utf-8", "replace")


def _value(f: BinaryIO, kind: int, depth: int = 0) -> Any:
    """A value of the metadata; of a list only its length, as vocabularies have 100,000s of words."""
    if kind == _LIST and depth < _MOST_NESTED:
        return _skip_list(f, depth)
    if kind == _STRING:
        return _string(f)
    if kind not in _SCALARS:
        raise struct.error(f"value type {kind}")
    return _unpack(f, _SCALARS[kind])


def _skip_list(f: BinaryIO, depth: int) -> int:
    inner, count = _unpack(f, "I"), _count(f, "Q", _MOST_ENTRIES)
    if inner in _SCALARS:
        f.seek(count * struct.calcsize("<" + _SCALARS[inner]), os.SEEK_CUR)
        return count
    for _ in range(count):
        _value(f, inner, depth + 1)
    return count


def _gguf(f: BinaryIO, path: Path) -> tuple[Header, int]:
    """The header, and the least size that a whole file has."""
    f.read(4)
    version = _unpack(f, "I")
    if version not in (2, 3):
        raise ValueError(f"{path} is GGUF version {version}; 2 and 3 can be read.")
    tensors, values = (_count(f, "Q", _MOST_ENTRIES) for _ in range(2))
    metadata: dict[str, Any] = {}
    for _ in range(values):
        name = _string(f)
        metadata[name] = _value(f, _unpack(f, "I"))
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    end = 0
    for _ in range(tensors):
        name = _string(f)
        sides = [_unpack(f, "Q") for _ in range(_count(f, "I", _MOST_SIDES))]
        kind = _unpack(f, "I")
        start = _unpack(f, "Q")
        types[name], numbers, size = _GGML.get(kind, (f"type {kind}", 1, 0))
        end = max(end, start + math.prod(sides) // numbers * size)
        shapes[name] = tuple(reversed(sides))
    # The data begins at the next multiple of the alignment.
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{path} is damaged: its alignment is {alignment!r}.")
    whole = -(-f.tell() // alignment) * alignment + end
    return Header(path, "gguf", shapes, types, metadata), whole


def parameters(header: Header) -> int:
    """How many numbers the file holds, bookkeeping of quantisations left out."""
    small = (".scale_weight", ".weight_scale", ".comfy_quant", ".scale_input", ".input_scale")
    return sum(math.prod(s) for k, s in header.shapes.items() if not k.endswith(small))
