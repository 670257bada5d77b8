"""Training data that are folders of pictures instead of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..data.pair_files import PairFiles
from ..data.shards import MANIFEST, shard_name, write_lines, write_shard
from ..data.triplets import Triplet
from ..evaluation.cases import FileCases, open_cases

_SHARD = 64  # triplets


def shards_of(folder: Path, cache: Path) -> Path:
    """The folder itself if it holds shards, else a folder of shards that is made of its pictures.

    Args:
        folder: shards, or the folders of pictures that `open_cases` reads, with the roles draft,
            reference, target and mask.
        cache: where the shards are kept and found again. Changed pictures make new ones.

    Raises:
        ValueError: the folder holds neither, or a picture is missing or cannot be read.
    """
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return folder
    cases = open_cases(folder)
    assert isinstance(cases, FileCases), "there are no shards in it"
    made = cache / _digest(cases)
    if (made / MANIFEST).is_file():
        return made
    made.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, first in enumerate(range(0, len(cases.ids), _SHARD)):
        path = made / shard_name("train", number)
        entries += write_shard(path, _triplets(cases, first))
    write_lines(made / MANIFEST, entries)
    return made


def _triplets(cases: FileCases, first: int) -> Iterator[Triplet]:
    for i in range(first, min(first + _SHARD, len(cases.ids))):
        triplet = cases.load(i)
        if triplet.target is None:
            raise ValueError(
                f"{triplet.id}: there is no target picture. Training needs draft, reference, target "
                "and mask of every triplet."
            )
        yield triplet


def _digest(cases: FileCases) -> str:
    """16 hex digits of the names, sizes and times of all files, and of the prompts."""
    files = [(pair.prompt, _states(pair)) for pair in cases.pairs]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def _states(pair: PairFiles) -> list[tuple[str, int, int]]:
    states = ((str(path), path.stat()) for path in pair.files.values())
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]
