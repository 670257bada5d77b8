"""Triplets in tar files in webdataset's layout, with a manifest.

A data set is a folder of shards `<split>-<number>.tar`, whose samples are consecutive members
`<id>.draft.png ... <id>.json`, and `manifest.jsonl` with one line per sample: its id, split, shard,
sizes, box and info. A shard is written completely or not at all, and the same samples give the same
bytes. A folder of such tars without a manifest, written by another program, is read as well.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from ..storage.output_files import atomic_path
from ..storage.text_files import parse_object
from .triplets import Triplet, check, check_id, decode, encode, mask_box

MANIFEST = "manifest.jsonl"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_LARGEST_MEMBER = 1 << 30  # bytes; a picture of 16384x16384 px has less


def shard_name(split: str, number: int) -> str:
    """`train-00007.tar`."""
    return f"{check_id(split)}-{number:05d}.tar"


def write_samples(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write (id, members) into one tar, completely or not at all; returns the number of samples.

    No times, users or padding of the machine get into the file: the same samples give the same
    bytes.
    """
    count = 0
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, members in samples:
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{check_id(name)}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
            count += 1
    return count


def write_shard(path: Path, triplets: Iterable[Triplet]) -> list[dict[str, Any]]:
    """Write triplets into one tar, completely or not at all; returns their manifest entries.

    The file's name is `shard_name(split, number)`: the entries take their split from it.

    Raises:
        ValueError: a triplet is not valid; nothing is written then.
    """
    entries = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for triplet in triplets:
            entries.append(manifest_entry(check(triplet), path.name))
            yield triplet.id, encode(triplet)

    write_samples(path, samples())
    return entries


def manifest_entry(triplet: Triplet, shard: str) -> dict[str, Any]:
    """A triplet's line in the manifest."""
    height, width = triplet.draft.shape[:2]
    return {
        **triplet.info,
        "id": triplet.id,
        "split": split_of(shard),
        "shard": shard,
        "size": [width, height],
        "reference_size": [triplet.reference.shape[1], triplet.reference.shape[0]],
        "box": mask_box(triplet.mask),
        "mask_area": round(float((triplet.mask > 0).mean()), 5),
        "prompt": triplet.prompt,
    }


def split_of(shard: str) -> str:
    """The split in a shard's file name: what precedes its number."""
    return shard.removesuffix(".tar").rpartition("-")[0]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, completely or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON objects, one per line.

    Raises:
        ValueError: a line is not a JSON object; names file and line.
    """
    records = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            records.append(parse_object(line, f"{path}, line {number}"))
    return records


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The manifest's entries.

    Raises:
        ValueError: there is no manifest, or a line is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST}: the build is not finished (run `omnirefiner data build` "
            "with the same --out again), or this is not a data set."
        )
    entries = read_lines(path)
    for number, entry in enumerate(entries, 1):
        shard = entry.get("shard")
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ValueError(f"{path}, line {number}: {shard!r} is not the name of a shard.")
        check_id(entry.get("id", ""))
    return entries


def find_shards(folder: Path, split: str | None = None) -> list[Path]:
    """The shards of a folder in order, of one split or of all.

    Raises:
        ValueError: there are none, none of that split, or one listed in the manifest is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist.")
    if (folder / MANIFEST).is_file():
        names = sorted({entry["shard"] for entry in read_manifest(folder)})
    else:
        # Names of unfinished files begin with a dot.
        names = sorted(p.name for p in folder.glob("*.tar") if not p.name.startswith("."))
    if not names:
        raise ValueError(
            f"{folder} holds no triplets: there are no shards (*.tar) in it. To make shards of folders "
            "with the pictures draft, reference, target and mask: `omnirefiner data build --pairs "
            f"{folder} --masks given --given-drafts --count N --out DIR`."
        )
    chosen = [n for n in names if split is None or split_of(n) == split]
    if not chosen:
        splits = ", ".join(sorted({split_of(n) for n in names}))
        raise ValueError(f"{folder} has no split {split!r}; it has: {splits}.")
    for name in chosen:
        if not (folder / name).is_file():
            raise ValueError(
                f"The shard {folder / name} is missing, but {MANIFEST} lists it. Copy it again, or "
                "run `omnirefiner data build` with the same --out to make it again."
            )
    return [folder / name for name in chosen]


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(id, members) of a shard, in order.

    Raises:
        ValueError: the tar is damaged or truncated; names it.
    """
    name, members = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for header in tar:
                if not header.isfile():
                    continue
                key, _, extension = Path(header.name).name.partition(".")
                if key != name and members:
                    yield name, members
                    members = {}
                name = key
                members[extension] = _member(tar, header)
    except (tarfile.TarError, EOFError, OSError) as e:
        where = f"after {name}" if name else "at its start"
        raise ValueError(f"The shard {path} is damaged or truncated {where}: {e}.") from e
    if members:
        yield name, members


def _member(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    _check_member(header)
    stream = tar.extractfile(header)
    assert stream is not None, "only files are read"
    data = stream.read()
    if len(data) != header.size:
        raise tarfile.ReadError(f"{header.name} has {len(data)} of {header.size} bytes")
    return data


def _check_member(header: tarfile.TarInfo) -> None:
    """Refuse members that would take far more memory than the shard has bytes."""
    if header.issparse() or header.size > _LARGEST_MEMBER:
        raise tarfile.ReadError(
            f"{header.name} has {header.size} bytes{' (sparse)' * header.issparse()}, but at most "
            f"{_LARGEST_MEMBER} are read"
        )


def _decoded(path: Path, name: str, members: Mapping[str, bytes]) -> Triplet:
    try:
        return decode(name, members)
    except ValueError as e:
        raise ValueError(f"In the shard {path}: {e}.") from e


class TripletSet(Sequence[Triplet]):
    """Random access to the triplets of a data set.

    Shards are indexed when they are first needed, so opening a set of thousands is quick.
    Only offsets are kept in memory and no file stays open, so it can be sent to other processes.

    Args:
        folder: a data set (see the module).
        split: "train", "validation", ...; None = all.

    Raises:
        ValueError: the folder, split or a shard is missing, or, on reading the triplet, a member is
            damaged; names the shard and the member.
    """

    def __init__(self, folder: Path | str, split: str | None = None) -> None:
        self.folder, self.split = Path(folder), split
        self._offsets: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
        shards = find_shards(self.folder, split)
        self.entries = self._entries(shards)

    def _entries(self, shards: Sequence[Path]) -> list[dict[str, Any]]:
        if (self.folder / MANIFEST).is_file():
            names = {p.name for p in shards}
            return [e for e in read_manifest(self.folder) if e["shard"] in names]
        return [
            {"id": name, "shard": p.name, "split": split_of(p.name)}
            for p in shards
            for name in self._index(p.name)
        ]

    def _index(self, shard: str) -> dict[str, dict[str, tuple[int, int]]]:
        """Offset and length of every member by sample and extension."""
        if shard not in self._offsets:
            path, offsets = self.folder / shard, {}
            try:
                with tarfile.open(path, "r:") as tar:
                    for header in tar:
                        if not header.isfile():
                            continue
                        _check_member(header)
                        key, _, extension = Path(header.name).name.partition(".")
                        offsets.setdefault(key, {})[extension] = (header.offset_data, header.size)
            except (tarfile.TarError, OSError) as e:
                raise ValueError(f"The shard {path} is damaged or truncated: {e}.") from e
            self._offsets[shard] = offsets
        return self._offsets[shard]

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> list[Triplet]: ...
    def __getitem__(self, index: int | slice) -> Triplet | list[Triplet]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry = self.entries[index]
        path, name = self.folder / entry["shard"], entry["id"]
        offsets = self._index(entry["shard"]).get(name)
        if offsets is None:
            raise ValueError(f"The shard {path} does not hold {name}, which {MANIFEST} lists.")
        with path.open("rb") as stream:
            members = {e: _read_slice(stream, *place) for e, place in offsets.items()}
        return _decoded(path, name, members)


def _read_slice(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)
