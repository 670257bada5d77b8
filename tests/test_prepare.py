"""Triplets made ready for training: interrupted, gone on with, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.training.config import SftConfig
from refiner_core.training.open_session import open_session
from refiner_core.training.session import Session
from refiner_core.training.settings import build


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets")
    assert main(["data", "build", "--out", str(folder), "--count", "6"]) == 0
    return folder


def opened(triplets: Path, out: Path) -> Session:
    config = build(SftConfig, {"data": {"held_out": 2, "crops": 2}, "model": {"rank": 2}})
    return open_session(config, triplets, out, "cpu", pixels=False)


def latents(folder: Path) -> dict[str, Tensor]:
    """All tensors of all items."""
    found = {p.stem: load_file(p) for p in folder.glob("[!.]*.safetensors")}
    return {f"{name}.{k}": v for name, item in found.items() for k, v in item.items()}


@pytest.mark.slow
def test_an_interrupted_preparation_goes_on(triplets: Path, tmp_path: Path) -> None:
    session = opened(triplets, tmp_path)
    count = len(session.dataset)
    assert count == len(session.dataset.shapes) >= 6
    kinds = {session.dataset[i].kind for i in range(count)}
    assert kinds and kinds <= {"word", "logo", "pattern"}
    listings = tmp_path.glob("cache/*/items.json")
    place = next(p.parent for p in listings if len(json.loads(p.read_text())) == count)
    whole = latents(place)
    # As if the process had been killed while it wrote an item: some are missing, one is half done.
    (place / "items.json").unlink()
    lost = sorted(place.glob("[!.]*.safetensors"))[1]
    lost.unlink()
    half = place / f".{lost.name}.abc.safetensors"
    half.write_bytes(b"half")
    assert len(opened(triplets, tmp_path).dataset) == count
    again = latents(place)
    assert again.keys() == whole.keys()
    assert [k for k in whole if not torch.equal(again[k], whole[k])] == []


@pytest.mark.slow
def test_a_damaged_item_is_named(triplets: Path, tmp_path: Path) -> None:
    session = opened(triplets, tmp_path)
    for path in tmp_path.glob("cache/*/*-0.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"-0.safetensors is damaged"):
        session.dataset[0]
