"""Hashes of files and of pictures: which weights and which data a number belongs to."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from ..data.triplets import PICTURES, Triplet


@cache
def sha256(path: Path) -> str:
    """The file's SHA-256, hexadecimal; read once a process."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def triplet_digest(triplet: Triplet) -> str:
    """SHA-256 of a triplet's pixels."""
    digest = hashlib.sha256()
    for name in PICTURES:
        array: np.ndarray | None = getattr(triplet, name)
        if array is not None:
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
