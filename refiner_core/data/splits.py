"""Which triplets of a data set are for training and which are held out, and the set's digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .shards import MANIFEST, TripletSet


def split_data(data: TripletSet, held_out: int) -> tuple[list[int], list[int]]:
    """The numbers of the triplets to train on, and of those to hold out.

    Held out are the first of the "validation" split, or without one the last of all.

    Raises:
        ValueError: nothing is left to train on.
    """
    splits = [e.get("split") for e in data.entries]
    marked = [i for i, split in enumerate(splits) if split == "validation"][:held_out]
    rest = [i for i, split in enumerate(splits) if split in ("train", None)]
    if not marked:
        at = len(rest) - min(held_out, len(rest) // 2)
        rest, marked = rest[:at], rest[at:]
    if not rest:
        raise ValueError(f"There is no triplet to train on in {data.folder}.")
    return rest, marked


def manifest_hash(folder: Path) -> str:
    """16 hex digits of a data set's manifest, or of its file names and sizes."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        content = manifest.read_bytes()
    else:
        content = str(sorted((p.name, p.stat().st_size) for p in folder.glob("*.*"))).encode()
    return hashlib.sha256(content).hexdigest()[:16]
