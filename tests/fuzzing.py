"""Damaged and hostile files for the readers: each has to be read, or refused with a ValueError.

`TARGETS` holds a check by name; the tests run each with a few examples and the benchmark `fuzz` with
thousands. A check writes a file, reads it, and bounds the memory that Python allocates meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tarfile
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from refiner_core.data.pair_files import find_pairs
from refiner_core.data.shards import MANIFEST, TripletSet, write_shard
from refiner_core.data.triplets import Triplet
from refiner_core.data.workflow import load_workflow
from refiner_core.images.boxes import parse_boxes
from refiner_core.images.image_io import load_picture
from refiner_core.images.mask_io import read_mask
from refiner_core.recipes.recipe_files import read_recipe
from refiner_core.training.config import SftConfig
from refiner_core.training.settings import build, read_settings_file
from refiner_core.weights.headers import read_any_header
from refiner_core.weights.inspection import inspect_file
from refiner_core.weights.lora import read_lora
from refiner_core.weights.safetensors_io import folder_files, read_weights

_MEMORY = 256 << 20  # bytes that a reader may allocate for a file of a few kilobytes
_EXTREMES = (0, 1, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Target:
    """Readers of files of one name, and the files that they are given."""

    inputs: st.SearchStrategy[Any]
    name: str
    read: tuple[Callable[[Path], object], ...]

    def check(self, data: bytes | str) -> None:
        """Give a file to every reader.

        Raises:
            Exception: one of them raised something else than a ValueError, or took much memory.
        """
        for reader in self.read:
            with bounded() as folder:
                reader(_write(folder, self.name, data))


@contextlib.contextmanager
def bounded() -> Iterator[Path]:
    """A folder for a file, in which nothing but a ValueError may come and little memory be taken."""
    with tempfile.TemporaryDirectory() as folder:
        tracing = tracemalloc.is_tracing()
        tracemalloc.start()
        try:
            with contextlib.suppress(ValueError):
                yield Path(folder)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            if not tracing:
                tracemalloc.stop()
    assert peak < _MEMORY, f"{peak >> 20} MiB were allocated"


# --- inputs -----------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, files: st.SearchStrategy[bytes]) -> bytes:
    """A file with some bytes changed, cut out, repeated or replaced by extreme numbers."""
    data = bytearray(draw(files))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        end = min(len(data), at + draw(st.sampled_from([1, 2, 4, 8, 40, 400])))
        kind = draw(st.sampled_from(["flip", "cut", "truncate", "repeat", "number", "text"]))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:end]
        elif kind == "truncate":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at:end]
        elif kind == "number":
            form = draw(st.sampled_from(["<I", ">I", "<Q", "<H", ">H"]))
            size = struct.calcsize(form)
            number = draw(st.sampled_from(_EXTREMES)) % (1 << (8 * size))
            data[at : at + size] = struct.pack(form, number)
        else:
            data[at:end] = draw(st.binary(max_size=12))
    return bytes(data)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, also those that programs forget."""
    odd = [
        None,
        True,
        -1,
        0,
        1,
        1 << 70,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../x",
        "CON",
    ]
    leaves = st.sampled_from(odd) | st.integers(-5, 5) | st.text(max_size=5)
    keys = st.sampled_from(["shape", "dtype", "data_offsets", "draft", "inputs"]) | st.text(
        max_size=4
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


def deep(depth: int = 100_000) -> str:
    """JSON that nests deeper than parsers go."""
    return "[" * depth + "]" * depth


def changed(table: dict[str, Any]) -> st.SearchStrategy[str]:
    """JSON text: the table with some of its values replaced, removed or added."""

    @st.composite
    def make(draw: st.DrawFn) -> str:
        made = json.loads(json.dumps(table))
        for _ in range(draw(st.integers(1, 3))):
            here: Any = made
            while True:
                keys = list(here) if isinstance(here, dict) else list(range(len(here)))
                if not keys:
                    break
                key = draw(st.sampled_from(keys))
                if isinstance(here[key], dict | list) and here[key] and draw(st.booleans()):
                    here = here[key]
                    continue
                if isinstance(here, dict) and draw(st.integers(0, 4)) == 0:
                    del here[key]
                else:
                    here[key] = draw(json_values())
                break
        return json.dumps(made)

    return make() | json_values().map(json.dumps) | st.just(deep()) | st.text(max_size=20)


def safetensors_of(header: str | bytes, data: bytes = bytes(64)) -> bytes:
    """A file with that header."""
    text = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


_HEADER = {
    "__metadata__": {
        "format": "pt",
        "lora_adapter_metadata": '{"transformer.r": 4}',
        "recipe": "x",
    },
    "transformer_blocks.0.attn.to_q.lora_A.weight": {
        "dtype": "F32",
        "shape": [1, 4],
        "data_offsets": [0, 16],
    },
    "transformer_blocks.0.attn.to_q.lora_B.weight": {
        "dtype": "F32",
        "shape": [4, 1],
        "data_offsets": [16, 32],
    },
    "transformer_blocks.0.attn.to_q.alpha": {
        "dtype": "F32",
        "shape": [],
        "data_offsets": [32, 36],
    },
}


@cache
def tiny_weights() -> bytes:
    """A LoRA and a scaled fp8 weight in one file."""
    base = "transformer_blocks.0.attn.to_q"
    tensors = {
        f"{base}.lora_A.weight": torch.ones(2, 8),
        f"{base}.lora_B.weight": torch.ones(8, 2),
        f"{base}.alpha": torch.tensor(2.0),
        "x.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "x.scale_weight": torch.tensor(0.5),
        "y.weight": torch.zeros(4, 4),
        "y.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    return save(
        tensors, {"_quantization_metadata": '{"layers": {"x": {"format": "float8_e4m3fn"}}}'}
    )


def lora_files() -> st.SearchStrategy[bytes]:
    """LoRAs whose factors have any shapes, names and values."""
    shape = st.lists(st.integers(0, 3), max_size=4).map(tuple)
    names = st.sampled_from(
        ["transformer_blocks.0.attn.to_q", "single_blocks.0.linear1", "lora_unet_x", "a", ""]
    )
    suffixes = st.sampled_from(
        [
            ".lora_A.weight",
            ".lora_B.weight",
            ".alpha",
            ".lora_down.weight",
            ".lora_up.weight",
            ".processor.q_loras.0.down.weight",
            ".processor.q_loras.0.up.weight",
            ".weight",
        ]
    )
    kinds = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
    values = st.sampled_from([0.0, 1.0, float("nan"), float("inf")])

    def tensor(made: tuple[tuple[int, ...], torch.dtype, float]) -> torch.Tensor:
        shape, dtype, value = made
        value = value if dtype.is_floating_point or np.isfinite(value) else 1.0
        return torch.full(shape, value).to(dtype)

    tensors = st.dictionaries(
        st.tuples(names, suffixes).map("".join),
        st.tuples(shape, kinds, values).map(tensor),
        min_size=1,
        max_size=4,
    )
    return tensors.map(save)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@cache
def tiny_gguf() -> bytes:
    """A GGUF file with values of several types and two tensors."""
    values = [
        _string(b"general.architecture") + struct.pack("<I", 8) + _string(b"flux"),
        _string(b"general.alignment") + struct.pack("<II", 4, 32),
        _string(b"words") + struct.pack("<IIQ", 9, 8, 2) + _string(b"a") + _string(b"b"),
        _string(b"numbers") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 1, 2, 3),
    ]
    tensors = [
        _string(name) + struct.pack("<IQQIQ", 2, 32, 2, kind, 0)
        for name, kind in ((b"single_blocks.0.linear1.weight", 8), (b"img_in.weight", 0))
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values + tensors)
    return head + bytes(-len(head) % 32 + 256)


@st.composite
def gguf_headers(draw: st.DrawFn) -> bytes:
    """GGUF headers of the right form with any numbers in them."""
    number = st.sampled_from(_EXTREMES) | st.integers(0, 40)

    def packed(form: str, value: int) -> bytes:
        return struct.pack(f"<{form}", value % (1 << (8 * struct.calcsize(form))))

    def text() -> bytes:
        names = [b"general.alignment", b"general.architecture", b"img_in.weight", b"x", b"\xff"]
        return _string(draw(st.sampled_from(names)))

    def value(kind: int, depth: int = 0) -> bytes:
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = draw(st.sampled_from([0, 4, 8, 9, 11])), draw(st.integers(0, 3))
            items = b"" if depth > 6 else b"".join(value(inner, depth + 1) for _ in range(count))
            claimed = draw(st.sampled_from([count, count, 1 << 40]))
            return packed("I", inner) + packed("Q", claimed) + items
        return packed("Q" if kind > 9 else "I", draw(number))

    values = [(text(), draw(st.sampled_from([4, 5, 6, 8, 9, 10, 99]))) for _ in range(3)]
    body = b"".join(name + packed("I", kind) + value(kind) for name, kind in values)
    for _ in range(draw(st.integers(0, 3))):
        sides = draw(st.lists(number, max_size=3))
        body += text() + packed("I", draw(st.sampled_from([len(sides), 1 << 31])))
        body += b"".join(packed("Q", s) for s in sides)
        body += packed("I", draw(st.sampled_from([0, 1, 8, 12, 99]))) + packed("Q", draw(number))
    counts = packed("Q", draw(st.integers(0, 4) | number)) + packed("Q", draw(st.integers(0, 4)))
    return b"GGUF" + packed("I", draw(st.sampled_from([2, 3, 3, 3, 9]))) + counts + body


_PICTURE_KINDS = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "TGA", "JPEG2000")


@cache
def tiny_picture(kind: str, mode: str = "RGB") -> bytes:
    """A picture file of that kind."""
    stream = io.BytesIO()
    pixels = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    options: dict[str, Any] = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"} if kind == "JPEG" else {}
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@st.composite
def png_chunks(draw: st.DrawFn) -> bytes:
    """PNGs with true checksums, so that what is in the chunks is read."""
    number = st.sampled_from([0, 1, 3, 16, 60_000, (1 << 31) - 1, (1 << 32) - 1])
    depths, colours = st.sampled_from([0, 1, 2, 4, 8, 16, 32]), st.sampled_from([0, 2, 3, 4, 6, 7])
    header = struct.pack(
        ">IIBBBBB",
        draw(number),
        draw(number),
        draw(depths),
        draw(colours),
        draw(st.integers(0, 1)),
        0,
        draw(st.integers(0, 2)),
    )
    bomb = zlib.compress(bytes(1 << 22))
    pool = [
        (b"IDAT", zlib.compress(bytes(4000))),
        (b"IDAT", bomb),
        (b"IDAT", b""),
        (b"PLTE", bytes(9)),
        (b"PLTE", bytes(1000)),
        (b"tRNS", bytes(3)),
        (b"tRNS", b""),
        (b"iCCP", b"x\0\0" + bomb),
        (b"zTXt", b"x\0\0" + bomb),
        (b"iTXt", b"x\0\1\0\0\0" + bomb),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"acTL", struct.pack(">II", 1 << 31, 0)),
        (b"fcTL", bytes(26)),
        (b"gAMA", b""),
        (b"pHYs", bytes(9)),
        (b"cHRM", b"1"),
        (b"abCD", b""),
    ]
    chunks = draw(st.lists(st.sampled_from(pool), max_size=5))
    body = b"".join(_chunk(*c) for c in chunks)
    end = _chunk(b"IEND", b"") if draw(st.booleans()) else b""
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + body + end


@st.composite
def tiff_tags(draw: st.DrawFn) -> bytes:
    """TIFFs with any numbers in the tags that say how the pixels are stored."""
    tags = {256: 16, 257: 12, 258: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: 12, 279: 576, 284: 1}
    more = st.sampled_from([*tags, 266, 317, 320, 322, 323, 324, 330, 338, 339, 700, 34665, 34675])
    numbers = st.sampled_from([*_EXTREMES[:6], 2, 3, 5, 7, 8, 16, 32, 32773])
    for tag in draw(st.lists(more, max_size=4)):
        tags[tag] = draw(numbers)
    entries = b"".join(
        struct.pack("<HHII", tag, draw(st.sampled_from([3, 4])), 1, value)
        for tag, value in sorted(tags.items())
    )
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", draw(numbers))
    return struct.pack("<2sHI", b"II", 42, 8 + 576) + bytes(576) + directory


@cache
def tiny_shard() -> bytes:
    """A shard of two triplets."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-00000.tar"
        write_shard(path, [_triplet(i) for i in range(2)])
        return path.read_bytes()


def _triplet(seed: int) -> Triplet:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 255
    return Triplet(f"{seed:08d}", pixels, pixels, pixels, mask, None, "fix", {"seed": seed})


@st.composite
def tar_members(draw: st.DrawFn) -> bytes:
    """Tars whose members have any name, kind and size."""
    names = st.sampled_from(
        [
            "a.draft.png",
            "a.reference.png",
            "a.mask.png",
            "a.json",
            "../../a.json",
            "/etc/a.json",
            "a/b.json",
            "CON.json",
            ".json",
            "a",
            "..",
            "a.b.c.json",
            "\udce4.json",
            "x" * 90 + ".json",
        ]
    )
    record = st.sampled_from(
        [
            {"crc32": {}},
            {"crc32": []},
            {"crc32": None},
            {"info": 3},
            {"prompt": ["x"]},
            [],
            {"crc32": {"draft.png": "x"}},
        ]
    )
    contents = (
        record.map(lambda r: json.dumps(r).encode())
        | st.just(deep().encode())
        | st.sampled_from([b"", b"{", tiny_picture("PNG"), tiny_picture("GIF"), b"\xff\xfe"])
    )
    kinds = st.sampled_from(
        [tarfile.REGTYPE] * 4
        + [
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
            tarfile.GNUTYPE_SPARSE,
        ]
    )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for _ in range(draw(st.integers(1, 5))):
            member, data = tarfile.TarInfo(draw(names)), draw(contents)
            member.type, member.size, member.linkname = draw(kinds), len(data), "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


_ENTRY = {"id": "00000000", "split": "train", "shard": "train-00000.tar", "size": [8, 8]}
_RECIPE = {
    "name": "own",
    "based_on": "omnirefiner",
    "prompt": "fix the {subject}",
    "steps": 20,
    "order": ["draft", "reference"],
    "indices": [1, 2],
    "references": [1, 3],
    "triggers": [],
    "prompt_strip": ["x+"],
    "distilled": None,
    "buckets": [[512, 512]],
    "guidance": 2.5,
    "context": 1.5,
    "align": True,
}
_SETTINGS = {
    "model": {"rank": 4, "train": "lora", "alpha": 4.0},
    "run": {"max_steps": 3, "batch": 2},
    "optimizer": {"rate": 1e-4},
    "data": {"held_out": 2},
}
_GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "{{reference}}"}, "_meta": {"title": "x"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
_BOXES = {"b": [{"draft": [0.1, 0.1, 0.5, 0.5], "reference": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}


# --- checks -----------------------------------------------------------------------------------------


def _write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return path


def _read_set(path: Path) -> None:
    for triplet in TripletSet(path.parent):
        assert triplet.draft.ndim == 3


def _with_shard(read: Callable[[Path], None]) -> Callable[[Path], None]:
    def with_shard(manifest: Path) -> None:
        _write(manifest.parent, "train-00000.tar", tiny_shard())
        read(manifest)

    return with_shard


def _workflow(path: Path) -> None:
    load_workflow(path, {"reference": "x"}, ()).fill({"reference": "y"})


def _pair(path: Path) -> None:
    (path.parent / "pair").mkdir()
    path.rename(path.parent / "pair" / "info.json")
    _write(path.parent / "pair", "reference.png", tiny_picture("PNG"))
    find_pairs(path.parent)


def _boxes(path: Path) -> None:
    text = path.read_text()
    if text.startswith('{"b": '):
        text = text.removeprefix('{"b": ').removesuffix("}")
    parse_boxes(text)


_WEIGHTS = (read_any_header, inspect_file, read_weights, read_lora)
_PICTURES = (load_picture, read_mask)

TARGETS: dict[str, Target] = {
    "safetensors header": Target(changed(_HEADER).map(safetensors_of), "x.safetensors", _WEIGHTS),
    "safetensors file": Target(damaged(st.builds(tiny_weights)), "x.safetensors", _WEIGHTS),
    "LoRA shapes": Target(lora_files(), "x.safetensors", (inspect_file, read_lora)),
    "GGUF": Target(damaged(st.builds(tiny_gguf)), "x.gguf", _WEIGHTS[:2]),
    "GGUF header": Target(gguf_headers(), "x.gguf", _WEIGHTS[:2]),
    "weight index": Target(
        changed({"metadata": {}, "weight_map": {"a": "x.safetensors"}}),
        "m.safetensors.index.json",
        (lambda path: folder_files(path.parent, "model"),),
    ),
    "picture": Target(
        damaged(st.sampled_from(_PICTURE_KINDS).map(tiny_picture)), "x.png", _PICTURES
    ),
    "PNG chunks": Target(png_chunks(), "x.png", _PICTURES),
    "TIFF tags": Target(tiff_tags(), "x.tif", _PICTURES),
    "shard": Target(damaged(st.builds(tiny_shard)), "train-00000.tar", (_read_set,)),
    "tar members": Target(tar_members(), "train-00000.tar", (_read_set,)),
    "manifest": Target(changed(_ENTRY), MANIFEST, (_with_shard(_read_set),)),
    "pair notes": Target(changed({"kind": "logo"}), "info.json", (_pair,)),
    "listing": Target(
        changed({"A_image": "a", "B_image": "b", "mask": "c", "target": "d", "caption": "e"}),
        "x.jsonl",
        (find_pairs,),
    ),
    "recipe": Target(changed(_RECIPE), "x.json", (read_recipe,)),
    "TOML recipe": Target(st.text(max_size=40), "x.toml", (read_recipe,)),
    "settings": Target(
        changed(_SETTINGS),
        "x.json",
        (lambda path: build(SftConfig, read_settings_file(str(path))),),
    ),
    "workflow": Target(changed(_GRAPH), "x.json", (_workflow,)),
    "boxes": Target(changed(_BOXES), "boxes.json", (_boxes,)),
}
