"""Triplets in shards: what is written comes back, and damage is named, never read."""

from __future__ import annotations

import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_core.data import shards
from refiner_core.data.shards import MANIFEST, TripletSet, shard_name, write_shard
from refiner_core.data.triplets import PICTURES, Triplet, check, decode, encode


def triplet_of(seed: int, **changes: Any) -> Triplet:
    rng = np.random.default_rng(seed)
    h, w = 12 + seed % 5, 16
    target = rng.integers(0, 256, (h, w, 3), np.uint8)
    mask = np.zeros((h, w), np.uint8)
    mask[3:7, 4:9] = 255
    draft = np.where(mask[..., None] > 0, 255 - target, target)
    made = Triplet(
        f"{seed:08d}", draft, rng.integers(0, 256, (9, 7, 3), np.uint8), target, mask,
        rng.integers(0, 256, (9, 7), np.uint8), "Fix the “logo”", {"kind": "logo", "seed": seed},
    )  # fmt: skip
    return replace(made, **changes)


def same(a: Triplet, b: Triplet) -> None:
    for name in PICTURES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.id, a.prompt, a.info) == (b.id, b.prompt, b.info)


def write_set(folder: Path, counts: dict[str, int], manifest: bool = True) -> list[Triplet]:
    made, entries = [], []
    for split, count in counts.items():
        part = [triplet_of(len(made) + i) for i in range(count)]
        made += part
        for number in range(0, count, 2):
            path = folder / shard_name(split, number // 2)
            entries += write_shard(path, part[number : number + 2])
    if manifest:
        shards.write_lines(folder / MANIFEST, entries)
    return made


@pytest.mark.slow
@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.booleans(), st.text(max_size=20))
def test_any_triplet_comes_back(
    h: int, w: int, with_target: bool, with_reference_mask: bool, prompt: str
) -> None:
    rng = np.random.default_rng(h * 31 + w)
    made = Triplet(
        "a-1_B", rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 256, (w, h, 3), np.uint8),
        rng.integers(0, 256, (h, w, 3), np.uint8) if with_target else None,
        rng.integers(0, 256, (h, w), np.uint8),
        rng.integers(0, 256, (w, h), np.uint8) if with_reference_mask else None, prompt,
    )  # fmt: skip
    same(decode(made.id, encode(check(made))), made)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_set_is_read_in_order_and_by_number(tmp_path: Path, manifest: bool) -> None:
    made = write_set(tmp_path, {"train": 5, "validation": 3}, manifest)
    for split, part in ((None, made), ("train", made[:5]), ("validation", made[5:])):
        numbered = TripletSet(tmp_path, split)
        read = list(numbered)
        assert len(read) == len(numbered) == len(part)
        for a, b, c in zip(read, numbered, part, strict=True):
            same(a, c)
            same(b, c)
    sent = pickle.loads(pickle.dumps(numbered))
    same(sent[-1], made[-1])
    assert [t.id for t in numbered[1:]] == [t.id for t in made[6:]]


def test_webdataset_can_group_the_members(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": 2})
    with tarfile.open(tmp_path / "train-00000.tar") as tar:
        names = tar.getnames()
    keys = [n.split(".", 1) for n in names]
    expected = [
        "draft.png",
        "reference.png",
        "target.png",
        "mask.png",
        "reference_mask.png",
        "json",
    ]
    assert keys == [[k, e] for k in ("00000000", "00000001") for e in expected]


def test_the_same_triplets_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "train-00000.tar", tmp_path / "train-00001.tar"
    for path in (first, second):
        write_shard(path, [triplet_of(3), triplet_of(4)])
    assert first.read_bytes() == second.read_bytes()


def test_the_manifest_tells_size_and_box(tmp_path: Path) -> None:
    (entry,) = write_shard(tmp_path / "validation-00004.tar", [triplet_of(2)])
    assert entry == {
        "id": "00000002", "split": "validation", "shard": "validation-00004.tar",
        "size": [16, 14], "reference_size": [7, 9], "box": (4, 3, 9, 7),
        "mask_area": pytest.approx(20 / 224, abs=1e-5), "prompt": "Fix the “logo”",
        "kind": "logo", "seed": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a.b"}, r"'a\.b'"),
        ({"id": "../x"}, r"'\.\./x'"),
        ({"draft": np.zeros((4, 4, 3), np.float32)}, "draft must be uint8"),
        ({"mask": np.zeros((12, 16, 1), np.uint8)}, "mask must be uint8 H W"),
        ({"mask": np.zeros((12, 15), np.uint8)}, "mask is 15x12 but draft is 16x12"),
        ({"target": np.zeros((10, 16, 3), np.uint8)}, "target is 16x10 but draft is 16x12"),
        ({"reference_mask": np.zeros((9, 8), np.uint8)}, "reference_mask is 8x9"),
    ],
)
def test_a_bad_triplet_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    bad = replace(triplet_of(0), **changes)
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "train-00000.tar", [triplet_of(5), bad])
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        TripletSet(tmp_path / "nowhere")[0]
    with pytest.raises(ValueError, match="holds no triplets"):
        TripletSet(tmp_path)[0]
    write_set(tmp_path, {"train": 3})
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        TripletSet(tmp_path, "test")
    (tmp_path / "train-00001.tar").unlink()
    with pytest.raises(ValueError, match="train-00001.tar is missing"):
        list(TripletSet(tmp_path))


def damaged(folder: Path, member: str) -> None:
    """Flip one byte in the middle of a member of the first shard."""
    path = folder / "train-00000.tar"
    with tarfile.open(path) as tar:
        header = tar.getmember(member)
    data = bytearray(path.read_bytes())
    data[header.offset_data + header.size // 2] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("extension", [f"{n}.png" for n in PICTURES])
def test_a_flipped_byte_is_named(tmp_path: Path, extension: str) -> None:
    write_set(tmp_path, {"train": 2})
    damaged(tmp_path, f"00000001.{extension}")
    with pytest.raises(ValueError, match=rf"train-00000.tar: 00000001.{extension} is damaged"):
        TripletSet(tmp_path)[1]
    same(TripletSet(tmp_path)[0], triplet_of(0))


def test_a_shard_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": 2})
    path = tmp_path / "train-00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(m.offset_data + m.size for m in tar.getmembers())
        second = tar.getmember("00000001.draft.png").offset
    for length in (0, 100, 512, second - 1, second, second + 700, end - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="train-00000.tar"):
            list(TripletSet(tmp_path))


@pytest.mark.parametrize("gone", ["draft.png", "target.png", "json"])
def test_a_missing_member_is_named(tmp_path: Path, gone: str) -> None:
    members = encode(triplet_of(0))
    del members[gone]
    shards.write_samples(tmp_path / "train-00000.tar", [("00000000", members)])
    with pytest.raises(ValueError, match=rf"00000000.{gone} is missing"):
        list(TripletSet(tmp_path))


def test_a_damaged_manifest_names_its_line(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": 2})
    path = tmp_path / MANIFEST
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:20])
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 2"):
        TripletSet(tmp_path)


def test_a_foreign_tar_without_checksums_is_read(tmp_path: Path) -> None:
    members = encode(triplet_of(0, reference_mask=None))
    members["json"] = json.dumps({"caption": "theirs"}).encode()
    members["cls"] = b"7"
    shards.write_samples(tmp_path / "things-000.tar", [("00000000", members)])
    (read,) = TripletSet(tmp_path, "things")
    same(read, triplet_of(0, reference_mask=None, prompt="", info={}))


def test_unfinished_files_are_not_shards(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": 2}, manifest=False)
    (tmp_path / ".train-00001.tar.abc.tar").write_bytes(b"half")
    assert len(list(TripletSet(tmp_path))) == 2
