"""Repairs that somebody kept or rejected, as a folder of pictures.

One folder per case: `draft.png`, `reference.png`, `mask.png`, optionally `reference_mask.png` and
`prompt.txt`, and the repairs: `kept*.png` and `rejected*.png`, or `rank-1.png`, `rank-2.png`, ... with
the best first. Every kept repair is better than every rejected one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..storage.output_files import atomic_path
from .pair_files import read_mask, read_pixels
from .triplets import encode_png

_RANK = re.compile(r"rank-(\d+)\.png")


@dataclass(frozen=True)
class Repair:
    """A repair and its place in the order: 1 is best, equal ranks are not compared."""

    rank: int
    pixels: np.ndarray  # uint8 H W 3


@dataclass(frozen=True)
class Preference:
    """The inputs of a case and repairs of which some are better than others."""

    id: str
    draft: np.ndarray  # uint8 H W 3
    reference: np.ndarray  # uint8 h w 3
    mask: np.ndarray  # uint8 H W
    repairs: tuple[Repair, ...]  # best first
    reference_mask: np.ndarray | None = field(default=None)  # uint8 h w
    prompt: str = ""


def check_preference(preference: Preference) -> Preference:
    """Return the preference if something can be learnt from it.

    Raises:
        ValueError: sizes differ, no repair is better than another, or two that are to be compared are
            identical.
    """
    height, width = preference.draft.shape[:2]
    for repair in preference.repairs:
        if repair.pixels.shape[:2] != (height, width):
            h, w = repair.pixels.shape[:2]
            raise ValueError(
                f"a repair is {w}x{h} but the draft is {width}x{height}; they must have the same size."
            )
    if len({r.rank for r in preference.repairs}) < 2:
        raise ValueError(
            f"it has {len(preference.repairs)} repairs, of which none is better than another: a kept and "
            "a rejected one are needed."
        )
    for i, one in enumerate(preference.repairs):
        for other in preference.repairs[i + 1 :]:
            if one.rank != other.rank and np.array_equal(one.pixels, other.pixels):
                raise ValueError("a better and a worse repair are identical.")
    return preference


def preference_folders(folder: Path) -> list[Path]:
    """The folders of cases, in order.

    Raises:
        ValueError: the folder does not exist or holds no case.
    """
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist.")
    found = sorted(p.parent for p in folder.glob("*/draft.png"))
    if not found:
        raise ValueError(
            f"{folder} holds no preferences: no folder in it has draft.png with kept and rejected repairs."
        )
    return found


def read_preference(folder: Path) -> Preference:
    """One case.

    Raises:
        ValueError: a picture is missing or damaged, or as `check_preference`.
    """
    for name in ("draft.png", "reference.png", "mask.png"):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing.")
    reference_mask = folder / "reference_mask.png"
    prompt = folder / "prompt.txt"
    repairs = [
        Repair(rank, read_pixels(path, path.name)[0]) for rank, path in _ranked_files(folder)
    ]
    return check_preference(
        Preference(
            folder.name,
            read_pixels(folder / "draft.png", "draft")[0],
            read_pixels(folder / "reference.png", "reference")[0],
            read_mask(folder / "mask.png", "mask"),
            tuple(repairs),
            read_mask(reference_mask, "reference mask") if reference_mask.is_file() else None,
            prompt.read_text(encoding="utf-8").strip() if prompt.is_file() else "",
        )
    )


def _ranked_files(folder: Path) -> list[tuple[int, Path]]:
    ranked = [(int(m[1]), p) for p in folder.iterdir() if (m := _RANK.fullmatch(p.name))]
    if ranked:
        return sorted(ranked)
    kept, rejected = (sorted(folder.glob(f"{name}*.png")) for name in ("kept", "rejected"))
    return [*((1, p) for p in kept), *((2, p) for p in rejected)]


class RepairInputs(NamedTuple):
    """What a repair was made of: pictures uint8 H W 3, the region uint8 H W, and the prompt."""

    draft: np.ndarray
    reference: np.ndarray
    mask: np.ndarray
    prompt: str = ""


def record_verdict(folder: Path, inputs: RepairInputs, repair: np.ndarray, kept: bool) -> Path:
    """Write one kept or rejected repair into the folder of its inputs; the file.

    The same inputs share a folder, so that kept and rejected repairs of them can be compared. A second
    verdict on the same repair replaces the first.

    Raises:
        ValueError: the repair has another size than the draft.
        OSError: the folder cannot be written.
    """
    if repair.shape != inputs.draft.shape:
        raise ValueError(
            f"The repair is {repair.shape[1]}x{repair.shape[0]} but the draft is "
            f"{inputs.draft.shape[1]}x{inputs.draft.shape[0]}; they must have the same size."
        )
    pictures = {"draft": inputs.draft, "reference": inputs.reference, "mask": inputs.mask}
    case = folder / _digest(*pictures.values())
    case.mkdir(parents=True, exist_ok=True)
    verdict, other = ("kept", "rejected") if kept else ("rejected", "kept")
    name = _digest(repair)[:8]
    pictures[f"{verdict}-{name}"] = repair
    for stem, pixels in pictures.items():
        with atomic_path(case / f"{stem}.png") as temporary:
            temporary.write_bytes(encode_png(pixels))
    (case / f"{other}-{name}.png").unlink(missing_ok=True)
    if inputs.prompt:
        (case / "prompt.txt").write_text(inputs.prompt, encoding="utf-8")
    return case / f"{verdict}-{name}.png"


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def comparisons(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """All pairs (better, worse) of positions in a list of ranks."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
