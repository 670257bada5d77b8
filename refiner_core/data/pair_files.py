"""Pairs and cases that exist as files: folders of pictures, or a data set in Critic-10K's layout.

Our own layout is one folder per case with pictures `reference`, `target`, `draft`, `mask` and
`reference_mask` of any common format (which of them are needed depends on the use), `prompt.txt`
and `info.json` (with "identity", "licence", "kind" ...). Critic-10K's is one folder per case with
`product` (the reference), `generated` (the target), `generated_with_degradation` (the draft) and
`mask`, or JSON lines whose A_image, B_image, target, mask and caption name the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images.image_io import PICTURE_SUFFIXES, load_picture
from ..images.mask_io import load_mask
from ..images.picture_folder import picture_files
from ..images.tensors import to_dtype, to_float
from ..storage.output_files import unique_ids
from ..storage.text_files import read_json_lines, read_object, read_text
from .source_files import is_system_file

_OWN = {n: n for n in ("reference", "target", "draft", "mask", "reference_mask")}
_CRITIC = {
    "reference": "product",
    "target": "generated",
    "draft": "generated_with_degradation",
    "mask": "mask",
}
_LISTED = {"draft": "B_image", "reference": "A_image", "mask": "mask", "target": "target"}
# Two files of one picture may differ by a rounding of their sides, but not by more.
_MAX_SKEW = 0.02


@dataclass(frozen=True)
class PairFiles:
    """One case's files."""

    name: str
    files: Mapping[str, Path]  # by role: reference, target, draft, mask, reference_mask
    prompt: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    critic: bool = False  # in Critic-10K's layout, where draft and mask may be smaller


def _pictures_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names in lower case, without the suffix.

    Of several with one name it is the one whose suffix comes first in PICTURE_SUFFIXES.
    """
    files = picture_files(folder)
    files.sort(key=lambda p: PICTURE_SUFFIXES.index(p.suffix.lower()), reverse=True)
    return {p.stem.lower(): p for p in files}


def _read_folder(folder: Path, found: Mapping[str, Path], names: Mapping[str, str]) -> PairFiles:
    pictures = {role: found.get(stem) for role, stem in names.items()}
    prompt, info = folder / "prompt.txt", folder / "info.json"
    text = read_text(prompt).strip() if prompt.is_file() else ""
    known = read_object(info, "description") if info.is_file() else {}
    files = {role: path for role, path in pictures.items() if path}
    return PairFiles(folder.name, files, text, known, critic=names is _CRITIC)


def count_system_files(folder: Path) -> int:
    """How many files and folders of a data set are skipped because the operating system made them."""
    if not folder.is_dir():
        return 0
    return sum(is_system_file(p) for p in (*folder.glob("*"), *folder.glob("*/*")))


def _check_layout(folder: Path, children: Mapping[Path, Mapping[str, Path]]) -> None:
    """Recognise ai-toolkit's folders, which hold one file per pair instead of one folder.

    Raises:
        ValueError: that is the layout; says how to change it.
    """
    for first in children:
        for second in children:
            both = children[first].keys() & children[second].keys()
            shared = sorted(both - set(_OWN) - set(_CRITIC.values()))
            if first < second and shared:
                raise ValueError(
                    f"{folder} has ai-toolkit's layout: {first.name} and {second.name} hold files "
                    f"of the same names ({shared[0]}, ...). Make one folder per pair instead: "
                    f"{shared[0]}/reference.png from the folder with the references, "
                    f"{shared[0]}/target.png from the other, {shared[0]}/mask.png, which is white on "
                    f"the detail in the target, and the caption as {shared[0]}/prompt.txt. The "
                    f"draft, {shared[0]}/draft.png, is the target with a flawed detail. To make the "
                    f"drafts: `omnirefiner data build --pairs {folder} --count N --out DIR`."
                )


def read_listing(path: Path) -> tuple[PairFiles, ...]:
    """Critic-10K's JSON lines: one pair per line, with paths relative to the file.

    Raises:
        ValueError: the file is empty, or a line is not of that form; names it.
    """
    pairs: list[PairFiles] = []
    for number, entry in read_json_lines(path):
        if isinstance(entry, ValueError):
            raise ValueError(f"{path}, line {number}: {entry}") from entry
        for field_name in _LISTED.values():
            if not isinstance(entry.get(field_name), str):
                raise ValueError(
                    f"{path}, line {number}: {field_name} must be the name of a file, got "
                    f"{entry.get(field_name)!r}. Every line names {', '.join(_LISTED.values())}."
                )
        files = {k: path.parent / entry[n] for k, n in _LISTED.items()}
        draft = files["draft"]
        name = draft.parent.name if draft.stem == _CRITIC["draft"] else f"{len(pairs):05d}"
        pairs.append(PairFiles(name, files, str(entry.get("caption", "")), critic=True))
    if not pairs:
        raise ValueError(f"{path} lists no pairs: it is empty.")
    return tuple(pairs)


def find_pairs(folder: Path) -> tuple[PairFiles, ...]:
    """The pairs of a folder in either layout, in the order of their names, or those of a listing.

    Raises:
        ValueError: the folder does not exist or holds no pair; says what is expected.
    """
    if folder.is_file() and folder.suffix == ".jsonl":
        return read_listing(folder)
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist.")
    entries = (p for p in folder.iterdir() if not is_system_file(p))
    children = sorted(p for p in entries if p.is_dir() and not p.name.startswith("."))
    found = {c: _pictures_by_stem(c) for c in children}
    critic = any(_CRITIC[r] in names for names in found.values() for r in ("target", "draft"))
    pairs = [_read_folder(c, names, _CRITIC if critic else _OWN) for c, names in found.items()]
    pairs = [p for p in pairs if p.files]
    listings = sorted(folder.glob("*.jsonl"))
    if not pairs and len(listings) == 1:
        return read_listing(listings[0])
    if not pairs:
        _check_layout(folder, found)
        raise ValueError(
            f"{folder} holds no pairs. Expected one folder per pair, either with reference.png, "
            "target.png, draft.png, mask.png and reference_mask.png as far as they are needed, or "
            "in Critic-10K's layout (product.png, generated.png, mask.png, "
            "generated_with_degradation.png, or a .jsonl file that lists them)."
        )
    return tuple(pairs)


def find_cases(data: Path, reserved: Sequence[str] = ()) -> dict[str, PairFiles]:
    """The pairs of `find_pairs` that have a draft or a reference, by ids that name files.

    Args:
        reserved: ids that none of them gets.

    Raises:
        ValueError: as `find_pairs`.
    """
    pairs = [p for p in find_pairs(data) if p.files.keys() & {"draft", "reference"}]
    ids = unique_ids([*reserved, *(p.name for p in pairs)])[len(reserved) :]
    return dict(zip(ids, pairs, strict=True))


def find_references(folder: Path) -> tuple[PairFiles, ...]:
    """The pictures of a folder, as references without targets.

    Raises:
        ValueError: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist.")
    paths = picture_files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}).")
    return tuple(PairFiles(p.stem, {"reference": p}) for p in paths)


def listing_digest(pairs: Sequence[PairFiles]) -> str:
    """Changes when a pair is added, removed or renamed."""
    names = [[p.name, sorted((r, f.name) for r, f in p.files.items())] for p in pairs]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def picture_identity(path: Path) -> str:
    """What a reference shows, for the split: a digest of its file."""
    return f"picture:{hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()}"


def read_pixels(path: Path, name: str) -> tuple[np.ndarray, bool]:
    """A picture uint8 H W 3, upright and in sRGB; and whether it was transparent.

    Transparent pixels are composited over white: their own colours are arbitrary, often black.

    Raises:
        ValueError: it cannot be read.
    """
    picture = load_picture(path, name)
    pixels = to_dtype(to_float(picture.composited().pixels), torch.uint8)
    return pixels[0].permute(1, 2, 0).numpy(), picture.transparent


def read_alpha(path: Path, name: str) -> np.ndarray | None:
    """The alpha channel of a picture, uint8 H W, or None if it has none.

    Raises:
        ValueError: it cannot be read.
    """
    alpha = load_picture(path, name).alpha
    return None if alpha is None else to_dtype(to_float(alpha), torch.uint8)[0, 0].numpy()


def read_mask(path: Path, name: str) -> np.ndarray:
    """A mask file as uint8 H W, 0 or 255: white from half on."""
    return np.where(load_mask(path, name)[0, 0].numpy() >= 0.5, 255, 0).astype(np.uint8)


def shrink(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """The picture with an area of at most `side` x `side` pixels, its aspect kept."""
    h, w = pixels.shape[:2]
    if side is None or h * w <= side * side:
        return pixels
    scale = side / math.sqrt(h * w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def fit_to(pixels: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    """A mask or draft at the size of `like`; masks (H W) stay 0 or 255.

    Raises:
        ValueError: the aspects differ; names both sizes.
    """
    h, w = like.shape[:2]
    if pixels.shape[:2] == (h, w):
        return pixels
    if abs(math.log(pixels.shape[1] / pixels.shape[0] * h / w)) > _MAX_SKEW:
        raise ValueError(
            f"the {name} is {pixels.shape[1]}x{pixels.shape[0]} but its picture is {w}x{h}"
        )
    mask = pixels.ndim == 2
    how = Image.Resampling.BILINEAR if mask else Image.Resampling.LANCZOS
    resized = np.asarray(Image.fromarray(pixels).resize((w, h), how))
    return np.where(resized > 127, 255, 0).astype(np.uint8) if mask else resized
