"""Checksums, which say from which file a number, a weight file or a dataset was made."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK_SIZE = 1 << 20  # bytes read at a time


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_SIZE):
            digest.update(block)
    return digest.hexdigest()
