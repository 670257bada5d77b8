"""Damaged and hostile files are read or refused with a ValueError, within little memory."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from refiner_core.data.shards import MANIFEST, TripletSet
from refiner_core.weights.lora import read_lora
from refiner_core.weights.safetensors_io import folder_files
from tests.fuzzing import TARGETS, deep, safetensors_of


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: Any) -> None:
        target.check(data.draw(target.inputs))

    run()


def gguf_with(name: bytes, value: bytes) -> bytes:
    """A GGUF file without tensors and with one value of the metadata."""
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name))
    return head + name + value + bytes(64)


def sparse_tar(claimed: int) -> bytes:
    """A tar whose member claims a size of which almost nothing is stored."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.json")
        member.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.size": str(claimed),
            "GNU.sparse.map": f"0,1,{claimed},0",
        }
        member.size = 1
        tar.addfile(member, io.BytesIO(b"{"))
    return stream.getvalue()


REFUSED: list[tuple[str, str, bytes, str]] = [
    (
        "GGUF header",
        "x.gguf",
        gguf_with(b"general.alignment", struct.pack("<II", 4, 0)),
        "alignment",
    ),
    ("GGUF header", "x.gguf", gguf_with(b"a", struct.pack("<IIQ", 9, 9, 1 << 40)), "x.gguf"),
    ("safetensors header", "x.safetensors", safetensors_of(deep()), "x.safetensors"),
    ("safetensors header", "x.safetensors", safetensors_of('{"a": {"shape": []}}'), "'a'"),
    ("safetensors header", "x.safetensors", safetensors_of('{"__metadata__": 3}'), "metadata"),
    ("recipe", "x.json", deep().encode(), "x.json"),
    ("workflow", "x.json", deep().encode(), "x.json"),
    ("listing", "x.jsonl", deep().encode(), "line 1"),
]


@pytest.mark.parametrize(("reader", "name", "data", "named"), REFUSED)
def test_what_is_refused_is_named(
    tmp_path: Path, reader: str, name: str, data: bytes, named: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(named)):
        TARGETS[reader].read[0](path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "", "."])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, name: str) -> None:
    index = tmp_path / "m" / "m.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        folder_files(index.parent, "model")


@pytest.mark.parametrize("shard", ["../train-00000.tar", "/train-00000.tar", "a\\b.tar", ".tar", 3])
def test_a_manifest_names_shards_of_its_own_folder_only(tmp_path: Path, shard: Any) -> None:
    entry = {"id": "0", "shard": shard, "split": "train"}
    (tmp_path / MANIFEST).write_text(json.dumps(entry) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"line 1: {shard!r}")):
        TripletSet(tmp_path)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_member_of_a_tar_cannot_fill_the_memory(tmp_path: Path, manifest: bool) -> None:
    (tmp_path / "train-00000.tar").write_bytes(sparse_tar(1 << 40))
    if manifest:
        entry = {"id": "a", "shard": "train-00000.tar", "split": "train"}
        (tmp_path / MANIFEST).write_text(json.dumps(entry) + "\n")
    with pytest.raises(ValueError, match=str(1 << 40)):
        list(TripletSet(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alpha": torch.ones(2)}, "alpha"),
        ({"alpha": torch.tensor(float("nan"))}, "not finite"),
        ({"lora_A.weight": torch.full((2, 8), float("inf"))}, "not finite"),
        ({"lora_A.weight": torch.ones(8)}, "A has the shape 8"),
        ({"lora_B.weight": torch.ones(8, 0)}, "B has the shape 8x0"),
    ],
)
def test_a_lora_of_impossible_numbers_is_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor], named: str
) -> None:
    module = "transformer_blocks.0.attn.to_q"
    tensors = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(8, 2)} | changes
    path = tmp_path / "x.safetensors"
    save_file({f"{module}.{k}": v for k, v in tensors.items()}, path)
    with pytest.raises(ValueError, match=named) as e:
        read_lora(path)
    assert module in str(e.value)
