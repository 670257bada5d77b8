"""Generated bad inputs for the command line, and what is wrong with how a command takes one.

A command has to give a right result, or end with status 2, a message in a person's words, and no
file that was not there before. `inputs()` makes several hundred of them; the tests run a sample, and
the benchmark `bad-inputs` all of them, each in a process of its own with little memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import resource
import struct
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from refiner_core.__main__ import main

from .fuzzing import deep, safetensors_of, tiny_gguf, tiny_picture, tiny_shard, tiny_weights

Content = bytes | str | None  # None is a folder

# What a person should never read.
_FAILED = (2, 3)  # a command, or some of its items
_RESUMED = ("shard", "pairs", "workflow", "full disk")  # whose folders keep what is finished
INTERNAL = re.compile(
    r"Traceback|NoneType|object has no attribute|unsupported operand|positional argument|out of range\b"
    r"|not subscriptable|not iterable|unhashable|codec can't|Errno|<class|object at 0x|KeyError|IndexError"
)


@dataclass(frozen=True)
class BadInput:
    """A command line and the files that it names; `{}` in an argument is their folder."""

    kind: str
    name: str
    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict[str, Content])
    largest: int | None = None  # bytes of a file, after which the disk is as good as full

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Verdict:
    """What a command did with a bad input; `fault` is None if that was right."""

    status: int
    said: str
    seconds: float
    fault: str | None


def judge(bad: BadInput) -> Verdict:
    """Run a command in this process and look at what it said and left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_files(folder, bad.files)
        arguments = [a.replace("{}", name) for a in bad.arguments]
        before = set(folder.rglob("*"))
        begun = time.perf_counter()
        with disk_of(bad.largest):
            status, said = _run(arguments)
        seconds = time.perf_counter() - begun
        left = {p for p in set(folder.rglob("*")) - before if not p.is_dir()}
        names = sorted(str(p.relative_to(folder)) for p in left)
        cut = sorted(p.name for p in left if p.stat().st_size == bad.largest)
    fault = f"half a file: {cut}" if cut else _fault(status, said, names, bad)
    return Verdict(status, said, seconds, fault)


@contextlib.contextmanager
def disk_of(largest: int | None) -> Iterator[None]:
    """No file becomes larger than so many bytes; writing more fails as on a full disk."""
    if largest is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _write_files(folder: Path, files: Mapping[str, Content]) -> None:
    good = {"good.png": good_picture(), "mask.png": good_mask()}
    for name, content in {**good, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8", errors="surrogatepass")
        else:
            path.write_bytes(content)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and what was printed to the error stream; -1 with an exception's name."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            status = main(arguments)
        except SystemExit as e:  # as argparse ends
            status = int(e.code or 0)
        except BaseException as e:  # whatever else comes is a traceback for the user
            return -1, f"{type(e).__name__}: {e}"
    return status, err.getvalue()


def _fault(status: int, said: str, left: list[str], bad: BadInput) -> str | None:
    """What is wrong with how a bad input was taken, or None."""
    hidden = [n for n in left if n.rpartition("/")[2].startswith(".")]
    if status == -1:
        return f"traceback: {said}"
    if status not in (0, *_FAILED, 4):
        return f"status {status}"
    if status == 0 and bad.largest is not None:
        return "success on a full disk"
    if hidden:
        return f"partial files: {hidden}"
    if status == 2 and left and bad.kind not in _RESUMED:
        return f"files of a failed command: {left}"
    if status in _FAILED and len(said.strip()) < 25:
        return f"no message: {said!r}"
    found = INTERNAL.search(said)
    return f"an internal word, {found[0]!r}, in: {said.strip()}" if found else None


# --- pictures and masks -----------------------------------------------------------------------------

_SIZE = (64, 48)


def _png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def good_picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (_SIZE[1], _SIZE[0], 3), np.uint8)
    return _png(Image.fromarray(pixels))


@cache
def good_mask() -> bytes:
    image = Image.new("L", _SIZE)
    image.paste(255, (20, 12, 44, 36))
    return _png(image)


def _with_sides(side: int) -> bytes:
    """A PNG of a few bytes that claims those sides."""
    data = bytearray(tiny_picture("PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _changed(data: bytes, seed: int) -> bytes:
    """The file with a few bytes changed at random."""
    generator, changed = random.Random(seed), bytearray(data)
    for _ in range(3):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def damaged_pictures() -> Iterator[tuple[str, Content]]:
    """Names and contents of picture files that are damaged, odd or none at all."""
    kinds = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "TGA", "JPEG2000")
    for kind in kinds:
        data = tiny_picture(kind)
        for share in (0.0, 0.4, 0.9):
            yield f"{kind} cut at {share:.0%}", data[: int(len(data) * share)]
        for seed in range(4):
            yield f"{kind} changed {seed}", _changed(data, seed)
    large, flat = Image.new("RGB", _SIZE, "red"), Image.new("RGBA", _SIZE)
    yield "HTML page", "<!doctype html><title>Sign in</title>"
    yield "text", "hello\n"
    yield "zeros", bytes(5000)
    yield "a folder", None
    yield "Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "SVG", '<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "PNG of 60000 px", _with_sides(60_000)
    yield "PNG of 2147483647 px", _with_sides((1 << 31) - 1)
    yield "PNG of 0 px", _with_sides(0)
    yield "PNG with a text bomb", _png(large, pnginfo=_text_bomb())
    yield "PNG with a broken profile", _png(large, icc_profile=b"no profile")
    yield "one pixel", _png(Image.new("RGB", (1, 1)))
    yield "one row", _png(Image.new("RGB", (500, 1)))
    yield "all transparent", _png(flat)
    yield "palette", _png(large.convert("P"), transparency=0)
    yield "one bit", _png(large.convert("1"))
    yield "gray with alpha", _png(flat.convert("LA"))
    yield "16-bit gray", _png(Image.fromarray(np.full((48, 64), 40_000, np.uint16)))
    yield "floats", _saved(Image.new("F", _SIZE, 3.5), "TIFF")
    yield "NaN", _saved(Image.new("F", _SIZE, float("nan")), "TIFF")
    yield "CMYK", _saved(large.convert("CMYK"), "JPEG")
    yield "Lab", _saved(large.convert("LAB"), "TIFF")
    yield "animation", _saved(large, "GIF", save_all=True, append_images=[Image.new("RGB", _SIZE)])
    yield (
        "turned",
        _saved(large, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    )
    yield "broken EXIF", _saved(large, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")


def _text_bomb() -> object:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("x", "0" * (1 << 24), zip=True)
    return info


def _pictures() -> Iterator[BadInput]:
    refine = ("refine", "--out", "{}/out.png", "--steps", "1", "--mask", "{}/mask.png")
    for name, content in damaged_pictures():
        files = {"bad.png": content}
        yield BadInput("picture", f"{name}, scored", ("score", "{}/bad.png", "{}/good.png"), files)
        yield BadInput(
            "picture",
            f"{name}, as reference",
            (*refine, "--draft", "{}/good.png", "--reference", "{}/bad.png"),
            files,
        )


def _masks() -> Iterator[BadInput]:
    line = ("refine", "--draft", "{}/good.png", "--reference", "{}/good.png", "--steps", "1")
    gray = {f"all {v}": Image.new("L", _SIZE, v) for v in (0, 1, 2, 7, 128, 254, 255)}
    sizes = {
        f"{w}x{h}": Image.new("L", (w, h), 255) for w, h in ((1, 1), (64, 64), (48, 64), (640, 480))
    }
    colours = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    other = {
        "two colours": Image.fromarray(np.where(colours > 128, 255, 0).astype(np.uint8)),
        "noise": Image.fromarray(colours),
        "one pixel": Image.fromarray(np.pad(np.uint8([[255]]), ((20, 27), (20, 43)))),
        "every other pixel": Image.fromarray(
            (np.indices((48, 64)).sum(0) % 2 * 255).astype(np.uint8)
        ),
    }
    made = {name: _png(image) for name, image in (gray | sizes | other).items()}
    for name, content in [*made.items(), *list(damaged_pictures())[::3]]:
        yield BadInput(
            "mask",
            name,
            (*line, "--mask", "{}/bad.png", "--out", "{}/out.png"),
            {"bad.png": content},
        )


# --- weights ----------------------------------------------------------------------------------------


def damaged_weights() -> Iterator[tuple[str, Content]]:
    """Names and contents of weight files."""
    good, gguf = tiny_weights(), tiny_gguf()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        yield f"cut at {share:.0%}", good[: int(len(good) * share)]
        yield f"GGUF cut at {share:.0%}", gguf[: int(len(gguf) * share)]
    for seed in range(10):
        yield f"changed {seed}", _changed(good[:600], seed) + good[600:]
        yield f"GGUF changed {seed}", _changed(gguf, seed)
    for header in (
        "{}",
        "[]",
        "null",
        '{"a": null}',
        '{"a": {"dtype": "F32"}}',
        '{"__metadata__": []}',
        '{"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}',
        deep(5000),
    ):
        yield f"header {header[:40]}", safetensors_of(header)
    yield "length of 2^63", struct.pack("<Q", 1 << 63) + good
    yield "Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "HTML page", "<!doctype html><title>Sign in</title>"
    yield "a folder", None
    yield (
        "empty LoRA",
        save({"x.lora_A.weight": torch.zeros(0, 4), "x.lora_B.weight": torch.zeros(4, 0)}),
    )
    module = "transformer_blocks.0.attn.to_q"
    for name, value in (("NaN", float("nan")), ("infinity", float("inf"))):
        pair = {
            f"{module}.lora_A.weight": torch.full((1, 8), value),
            f"{module}.lora_B.weight": torch.ones(8, 1),
        }
        yield f"LoRA of {name}", save(pair)


def _weights() -> Iterator[BadInput]:
    refine = (
        "refine",
        "--draft",
        "{}/good.png",
        "--reference",
        "{}/good.png",
        "--out",
        "{}/out.png",
    )
    uses = {
        "inspected": ("inspect", "{}/bad.safetensors"),
        "as LoRA": (*refine, "--lora", "{}/bad.safetensors"),
        "as refiner": (*refine, "--refiner", "{}/bad.safetensors"),
        "merged": (
            "merge",
            "--base",
            "nano",
            "--lora",
            "{}/bad.safetensors",
            "--out",
            "{}/m.safetensors",
        ),
        "to score with": (
            "score",
            "--metric",
            "dreamsim",
            "--weights",
            "{}/bad.safetensors",
            "{}/good.png",
            "{}/good.png",
        ),
    }
    for number, (name, content) in enumerate(damaged_weights()):
        for use, line in list(uses.items())[number % 2 :: 2]:
            yield BadInput("weights", f"{name}, {use}", line, {"bad.safetensors": content})
    for name in ("x.pt", "x.ckpt", "x.bin", "none.safetensors", "x.gguf"):
        files = {} if "none" in name else {name: b"\x80\x02}q\x00."}
        yield BadInput("weights", name, ("inspect", f"{{}}/{name}"), files)
        yield BadInput("weights", f"{name} as LoRA", (*refine, "--lora", f"{{}}/{name}"), files)


# --- recipes, settings, workflows -------------------------------------------------------------------

_ODD = (
    None,
    True,
    -1,
    0,
    1e400,
    float("nan"),
    "",
    "x",
    "{",
    "{subject.__class__}",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    "x" * 5000,
)
_FIELDS = (
    "name",
    "title",
    "prompt",
    "guidance",
    "steps",
    "order",
    "indices",
    "buckets",
    "context",
    "references",
    "triggers",
    "prompt_strip",
    "distilled",
    "family",
    "layout",
    "based_on",
    "no_such_field",
)


def _recipes() -> Iterator[BadInput]:
    line = (
        "refine",
        "--draft",
        "{}/good.png",
        "--reference",
        "{}/good.png",
        "--steps",
        "1",
        "--mask",
        "{}/mask.png",
        "--out",
        "{}/out.png",
        "--recipe",
    )
    base = {"name": "own", "based_on": "nano"}
    for number, name in enumerate(_FIELDS):
        for value in (_ODD[number % len(_ODD)], _ODD[(3 * number + 5) % len(_ODD)]):
            text = json.dumps({**base, name: value})
            yield BadInput(
                "recipe", f"{name} = {str(value)[:20]!r}", (*line, "{}/r.json"), {"r.json": text}
            )
    texts: dict[str, Content] = {
        "empty": "",
        "list": "[]",
        "not JSON": "{name: own}",
        "deep": deep(),
        "NUL": "\0" * 50,
        "UTF-16 without a mark": "{}".encode("utf-16-le"),
        "two values": "{}{}",
        "a folder": None,
        "large": " " * 200_000 + "{}",
        "lone surrogate": '{"name": "\\ud800", "based_on": "nano"}',
        "same key twice": '{"name": "a", "name": "b", "based_on": "nano"}',
    }
    for name, content in texts.items():
        yield BadInput("recipe", name, (*line, "{}/r.json"), {"r.json": content})
        yield BadInput("recipe", f"TOML, {name}", (*line, "{}/r.toml"), {"r.toml": content})


def _settings() -> Iterator[BadInput]:
    line = ("train", "sft", "--preset", "nano", "--print-config")
    names = (
        "model.rank",
        "model.train",
        "model.alpha",
        "run.max_steps",
        "run.batch",
        "run.seed",
        "optimizer.rate",
        "data.held_out",
        "data.variants",
        "no.such",
        "model",
        "",
    )
    for number, name in enumerate(names):
        for shift in range(4):
            value = _ODD[(number + 4 * shift) % len(_ODD)]
            text = json.dumps(value) if not isinstance(value, str) else value[:50]
            yield BadInput("settings", f"{name}={text[:20]}", (*line, "--set", f"{name}={text}"))
            group, _, key = name.partition(".")
            table = json.dumps({group: {key: value} if key else value})
            yield BadInput(
                "settings",
                f"{name} = {text[:20]} in a file",
                (*line, "--config", "{}/s.json"),
                {"s.json": table},
            )
    for name, content in (
        ("deep", deep()),
        ("a folder", None),
        ("empty", ""),
        ("binary", b"\xff\xfe\0"),
    ):
        yield BadInput("settings", name, (*line, "--config", "{}/s.toml"), {"s.toml": content})


def _workflows() -> Iterator[BadInput]:
    line = (
        "data",
        "build",
        "--out",
        "{}/set",
        "--count",
        "1",
        "--references",
        "{}/refs",
        "--comfyui",
        "http://127.0.0.1:9",
        "--pair-workflow",
        "{}/w.json",
    )
    graphs: dict[str, Content] = {
        "empty": "",
        "list": "[]",
        "no nodes": "{}",
        "deep": deep(),
        "editor's": '{"nodes": [], "links": []}',
        "null node": '{"1": null}',
        "no inputs": '{"1": {"class_type": "A"}}',
        "inputs a list": '{"1": {"class_type": "A", "inputs": []}}',
        "a folder": None,
        "unknown name": '{"1": {"class_type": "A", "inputs": {"a": "{{x}}"}}}',
        "no reference": '{"1": {"class_type": "A", "inputs": {}}}',
        "no server": '{"1": {"class_type": "A", "inputs": {"a": "{{reference}}"}, "_meta": null}}',
        "binary": b"\xff\xfe\xfd",
    }
    for name, content in graphs.items():
        files: dict[str, Content] = {"w.json": content, "refs/a.png": good_picture()}
        yield BadInput("workflow", name, line, files)


# --- data sets --------------------------------------------------------------------------------------


def _shards() -> Iterator[BadInput]:
    good = tiny_shard()
    tars: dict[str, Content] = {
        f"cut at {s:.0%}": good[: int(len(good) * s)] for s in (0, 0.2, 0.5, 0.9)
    }
    tars |= {f"changed {seed}": _changed(good, seed) for seed in range(10)}
    tars |= {"text": "hello", "a folder": None, "gzip": b"\x1f\x8b\x08" + bytes(40)}
    uses = {
        "shown": ("data", "show", "{}/set", "--out", "{}/show"),
        "evaluated": (
            "evaluate",
            "--data",
            "{}/set",
            "--out",
            "{}/run",
            "--metrics",
            "pixels",
            "--results",
            "{}/set",
        ),
    }
    for name, content in tars.items():
        for use, line in uses.items():
            yield BadInput("shard", f"{name}, {use}", line, {"set/train-00000.tar": content})
    for name in (
        "{}",
        "[]",
        "null",
        '{"shard": "../x.tar", "id": "a"}',
        '{"shard": "train-00000.tar"}',
        '{"shard": 3, "id": "a"}',
        '{"shard": "train-00000.tar", "id": "../a"}',
        deep(),
        "x",
    ):
        files: dict[str, Content] = {"set/train-00000.tar": good, "set/manifest.jsonl": name + "\n"}
        for use, line in uses.items():
            yield BadInput("shard", f"manifest {name[:40]}, {use}", line, files)


def _pairs() -> Iterator[BadInput]:
    line = ("data", "build", "--out", "{}/set", "--count", "1", "--pairs", "{}/pairs")
    whole: dict[str, Content] = {
        f"pairs/a/{role}.png": good_picture() for role in ("reference", "target", "draft")
    }
    changes: dict[str, dict[str, Content]] = {
        "empty": {},
        "no mask": whole,
        "info a list": whole | {"pairs/a/info.json": "[]"},
        "deep info": whole | {"pairs/a/info.json": deep()},
        "prompt in another encoding": whole | {"pairs/a/prompt.txt": b"\xe4\xf6"},
        "damaged reference": whole
        | {"pairs/a/reference.png": b"x", "pairs/a/mask.png": good_mask()},
        "small mask": whole | {"pairs/a/mask.png": _png(Image.new("L", (3, 9), 255))},
        "listing of numbers": {"pairs/list.jsonl": "1\n2\n"},
        "listing of nothing": {"pairs/list.jsonl": "\n"},
        "listing of lost files": {
            "pairs/list.jsonl": json.dumps(
                {"A_image": "a", "B_image": "b", "mask": "c", "target": "d"}
            )
        },
        "listing of numbers as files": {
            "pairs/list.jsonl": json.dumps(
                {"A_image": 1, "B_image": [], "mask": None, "target": {}}
            )
        },
    }
    for name, files in changes.items():
        yield BadInput("pairs", name, line, {"pairs": None, **files})


def _options() -> Iterator[BadInput]:
    base = (
        "refine",
        "--draft",
        "{}/good.png",
        "--reference",
        "{}/good.png",
        "--mask",
        "{}/mask.png",
        "--out",
        "{}/out.png",
    )
    odd = ("nan", "inf", "-1", "1e400", "0", "99999999999999999999", "x", "")
    for number, name in enumerate(
        (
            "steps",
            "guidance",
            "context",
            "megapixels",
            "feather",
            "grow",
            "seed",
            "model-mask",
            "color-match",
            "candidates",
            "keep",
            "prune-at",
        )
    ):
        for value in (odd[number % len(odd)], odd[(number + 3) % len(odd)]):
            yield BadInput("option", f"--{name} {value}", (*base, f"--{name}={value}"))
    for out in (
        "{}",
        "{}/no/such/out.png",
        "{}/out.jpg",
        "{}/out",
        "{}/good.png",
        "{}/" + "x" * 300 + ".png",
        "/proc/out.png",
    ):
        yield BadInput("option", f"--out {out[:40]}", (*base[:-1], out))


def _full_disks() -> Iterator[BadInput]:
    pair = ("--draft", "{}/good.png", "--reference", "{}/good.png", "--mask", "{}/mask.png")
    lines: dict[str, tuple[str, ...]] = {
        "refine": ("refine", *pair, "--steps", "1", "--out", "{}/out.png"),
        "refine with a report": (
            "refine",
            *pair,
            "--steps",
            "1",
            "--out",
            "{}/out.png",
            "--report",
            "{}/out.json",
        ),
        "refine to TIFF": ("refine", *pair, "--steps", "1", "--out", "{}/out.tif"),
        "refine to WebP": ("refine", *pair, "--steps", "1", "--out", "{}/out.webp"),
        "jobs": ("refine", "--jobs", "{}/cases", "--out", "{}/out", "--steps", "1"),
        "score": ("score", "{}/good.png", "{}/mask.png", "--heatmap", "{}/out.png"),
        "animate": ("animate", "--pair", "{}/good.png", "{}/mask.png", "--out", "{}/out.webp"),
        "animate as GIF": (
            "animate",
            "--pair",
            "{}/good.png",
            "{}/mask.png",
            "--out",
            "{}/out.gif",
        ),
        "demo": ("demo", "--out", "{}/demo"),
        "data build": ("data", "build", "--out", "{}/set", "--count", "2", "--size", "64"),
        "data show": ("data", "show", "{}/made", "--out", "{}/show"),
        "evaluate": ("evaluate", "--data", "{}/cases", "--out", "{}/run", "--steps", "1"),
        "curves": ("train", "curves", "{}/log", "--out", "{}/out.png"),
    }
    case: dict[str, Content] = {
        f"cases/a/{role}.png": good_picture() for role in ("draft", "reference", "target")
    }
    files = case | {
        "cases/a/mask.png": good_mask(),
        "made/train-00000.tar": tiny_shard(),
        "log/log.jsonl": '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n',
    }
    for name, line in lines.items():
        yield BadInput("full disk", name, line, files, largest=150)


_KINDS: tuple[Callable[[], Iterator[BadInput]], ...] = (
    _pictures,
    _masks,
    _weights,
    _recipes,
    _settings,
    _workflows,
    _shards,
    _pairs,
    _options,
    _full_disks,
)


def inputs() -> list[BadInput]:
    """All of them, in a fixed order."""
    return [bad for make in _KINDS for bad in make()]
