"""Digests of files and pictures: which weights and data a figure belongs to."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from ..data.triplets import PICTURES, Triplet
from ..storage import checksums

sha256 = cache(checksums.sha256)  # each file is read once per process


def triplet_digest(triplet: Triplet) -> str:
    """SHA-256 of a triplet's pixels."""
    digest = hashlib.sha256()
    for name in PICTURES:
        array: np.ndarray | None = getattr(triplet, name)
        if array is not None:
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
