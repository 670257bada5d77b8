"""Pairs that exist as files: a folder of pairs, or a data set in Critic-10K's layout.

A folder of pairs holds one folder a pair with `reference` and `target` pictures of any common
format, and as far as there are such `mask`, `reference_mask`, `draft`, `prompt.txt` and
`info.json` (with "identity", "licence", "kind" ...).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...images.image_io import load_mask, load_picture
from ...images.tensors import to_dtype, to_float
from .interface import RejectedError, Sample

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_OWN = {n: n for n in ("reference", "target", "draft", "mask", "reference_mask")}
_CRITIC = {
    "reference": "product", "target": "generated", "draft": "generated_with_degradation",
    "mask": "mask",
}  # fmt: skip
_LISTED = {"draft": "B_image", "reference": "A_image", "mask": "mask", "target": "target"}
# Two files of one picture may differ by a rounding of their sides, not by more.
_SKEW = 0.02


@dataclass(frozen=True)
class PairFile:
    """One pair's files by role, its name, prompt and what is known about it."""

    name: str
    files: Mapping[str, Path]
    prompt: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


def _picture(folder: Path, stem: str) -> Path | None:
    return next((folder / (stem + e) for e in _ENDINGS if (folder / (stem + e)).is_file()), None)


def _pair(folder: Path, names: Mapping[str, str]) -> PairFile:
    found = {role: _picture(folder, stem) for role, stem in names.items()}
    prompt, info = folder / "prompt.txt", folder / "info.json"
    text = prompt.read_text(encoding="utf-8").strip() if prompt.is_file() else ""
    known: dict[str, Any] = {}
    if info.is_file():
        try:
            known = dict(json.loads(info.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as e:
            raise ValueError(f"{info} is no JSON object: {e}.") from e
    return PairFile(folder.name, {r: p for r, p in found.items() if p}, text, known)


def read_listing(path: Path) -> tuple[PairFile, ...]:
    """Critic-10K's JSON lines: a pair a line, its files relative to the listing.

    Raises:
        ValueError: a line that is none; names it.
    """
    pairs: list[PairFile] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            files = {k: path.parent / entry[n] for k, n in _LISTED.items()}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with "
                f"{', '.join(_LISTED.values())} ({type(e).__name__}: {e})."
            ) from e
        draft = files["draft"]
        name = draft.parent.name if draft.stem == _CRITIC["draft"] else f"{len(pairs):05d}"
        pairs.append(PairFile(name, files, str(entry.get("caption", ""))))
    return tuple(pairs)


def find_pairs(folder: Path) -> tuple[PairFile, ...]:
    """The pairs of a folder, in the order of their names, whichever layout it has, or of a listing.

    Raises:
        ValueError: there is no such folder, or no pair in it; says what is expected.
    """
    if folder.is_file() and folder.suffix == ".jsonl":
        listed = read_listing(folder)
        if not listed:
            raise ValueError(f"No pairs in {folder}: it is empty.")
        return listed
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = _CRITIC if any(_picture(c, _CRITIC["target"]) for c in children) else _OWN
    pairs = [_pair(c, names) for c in children]
    pairs = [p for p in pairs if p.files]
    if not pairs:
        raise ValueError(
            f"No pairs in {folder}: expected one folder a pair with reference.png and target.png, "
            "or Critic-10K's layout (product.png, generated.png, mask.png, "
            "generated_with_degradation.png, or a .jsonl file of them)."
        )
    return tuple(pairs)


def find_references(folder: Path) -> tuple[PairFile, ...]:
    """The pictures of a folder, as references without targets.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _ENDINGS)
    if not paths:
        raise ValueError(f"No pictures ({', '.join(_ENDINGS)}) in {folder}.")
    return tuple(PairFile(p.stem, {"reference": p}) for p in paths)


def listing_digest(pairs: Sequence[PairFile]) -> str:
    """Changes when a pair is added, taken away or renamed."""
    names = [[p.name, sorted((r, f.name) for r, f in p.files.items())] for p in pairs]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def picture_identity(path: Path) -> str:
    """What a reference shows, for the split: its file's content."""
    return f"picture:{hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()}"


def read_pixels(path: Path, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture uint8 H W 3, upright and in sRGB, and its alpha uint8 H W if it has one.

    Raises:
        ValueError: it cannot be read.
    """
    picture = load_picture(path, name)
    pixels = to_dtype(to_float(picture.pixels), torch.uint8)[0].permute(1, 2, 0).numpy()
    alpha = picture.alpha
    return pixels, None if alpha is None else to_dtype(to_float(alpha), torch.uint8)[0, 0].numpy()


def read_mask(path: Path, name: str) -> np.ndarray:
    """A mask file as uint8 H W, 0 or 255: white from half on."""
    return np.where(load_mask(path, name)[0, 0].numpy() >= 0.5, 255, 0).astype(np.uint8)


def shrunk(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """The picture with at most `side` x `side` pixels of area, its aspect kept."""
    h, w = pixels.shape[:2]
    if side is None or h * w <= side * side:
        return pixels
    scale = side / math.sqrt(h * w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def fitted(pixels: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    """A mask or draft at the size of `like`; masks (H W) stay 0 or 255.

    Raises:
        ValueError: its aspect is another; names both sizes.
    """
    h, w = like.shape[:2]
    if pixels.shape[:2] == (h, w):
        return pixels
    if abs(math.log(pixels.shape[1] / pixels.shape[0] * h / w)) > _SKEW:
        raise ValueError(
            f"the {name} is {pixels.shape[1]}x{pixels.shape[0]} but its picture {w}x{h}"
        )
    mask = pixels.ndim == 2
    how = Image.Resampling.BILINEAR if mask else Image.Resampling.LANCZOS
    resized = np.asarray(Image.fromarray(pixels).resize((w, h), how))
    return np.where(resized > 127, 255, 0).astype(np.uint8) if mask else resized


@dataclass(frozen=True)
class FilePair:
    """Takes existing pairs in turn; when there are more samples than pairs, each serves again
    with another degradation.

    `side` greatest square root of a picture's area, None = as it is; `source` and `licence` are
    noted in every sample.
    """

    pairs: tuple[PairFile, ...]
    side: int | None
    source: str
    licence: str
    name: str = field(default="pair", init=False)
    version: str = field(default="files/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"pairs": listing_digest(self.pairs), "side": self.side, "source": self.source}

    def __call__(self, sample: Sample) -> Sample:
        pair = self.pairs[sample.number % len(self.pairs)]
        for role in ("reference", "target"):
            if role not in pair.files:
                raise ValueError(f"{pair.name} has no {role} picture")
        reference, target = (
            shrunk(read_pixels(pair.files[r], r)[0], self.side) for r in ("reference", "target")
        )
        if min(*target.shape[:2], *reference.shape[:2]) < 32:
            raise RejectedError("a picture is under 32 px")
        notes = {"identity": picture_identity(pair.files["reference"]), "source": self.source,
                 "licence": self.licence, **pair.info, "pair": pair.name}  # fmt: skip
        return replace(
            sample,
            reference=reference,
            target=target,
            prompt=pair.prompt,
            info=sample.noted(**notes),
        )
