"""The names of the weights in a nano's file."""

from __future__ import annotations

from collections.abc import Iterable

CODEC = "codec."  # what the names of the codec's tensors begin with


def is_nano(keys: Iterable[str]) -> bool:
    """Whether these are the names of such a file, which carries its codec beside the transformer."""
    return f"{CODEC}mean" in set(keys)
