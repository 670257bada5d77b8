"""Folders of pictures as training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.data.shards import TripletSet, find_shards
from refiner_core.evaluation.held_out_scenes import make_scene
from refiner_core.training.triplet_folder import shards_of

ROLES = ("draft", "reference", "target", "mask", "reference_mask")


def write_folders(folder: Path, count: int = 3) -> None:
    for i in range(count):
        scene = make_scene(i, (80, 64), (0.4, 0.6))
        own = folder / f"case {i}"
        own.mkdir(parents=True)
        for role in ROLES:
            Image.fromarray(getattr(scene, role)).save(own / f"{role}.png")


def test_folders_of_pictures_become_shards_once(tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    made = shards_of(tmp_path / "data", tmp_path / "cache")
    triplets = TripletSet(made)
    assert len(triplets) == 3 and shards_of(made, tmp_path / "cache") == made
    scene = make_scene(0, (80, 64), (0.4, 0.6))
    for role in ROLES:
        assert np.array_equal(getattr(triplets[0], role), getattr(scene, role)), role
    (shard,) = find_shards(made)
    written = shard.stat().st_mtime_ns
    assert shards_of(tmp_path / "data", tmp_path / "cache") == made
    assert shard.stat().st_mtime_ns == written
    Image.new("RGB", (80, 64)).save(tmp_path / "data/case 1/draft.png")
    assert shards_of(tmp_path / "data", tmp_path / "cache") != made


def test_folders_that_are_no_triplets_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    (tmp_path / "data/case 2/target.png").unlink()
    with pytest.raises(ValueError, match="2.*target"):
        shards_of(tmp_path / "data", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        shards_of(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(ValueError, match="--given-drafts"):
        find_shards(tmp_path / "empty")


def test_the_alpha_of_a_reference_is_its_mask_unless_there_is_another(tmp_path: Path) -> None:
    write_folders(tmp_path / "data", 2)
    alpha = np.zeros((64, 80), np.uint8)
    alpha[10:40, 20:60] = 255
    for i in range(2):
        path = tmp_path / f"data/case {i}/reference.png"
        picture = Image.open(path).convert("RGB")
        picture.putalpha(Image.fromarray(alpha).resize(picture.size, Image.Resampling.NEAREST))
        picture.save(path)
    (tmp_path / "data/case 0/reference_mask.png").unlink()
    own, other = TripletSet(shards_of(tmp_path / "data", tmp_path / "cache"))
    assert own.reference_mask is not None and other.reference_mask is not None
    shown = np.asarray(Image.open(tmp_path / "data/case 0/reference.png").getchannel("A"))
    assert np.array_equal(own.reference_mask > 0, shown > 0)
    assert bool((own.reference[shown == 0] == 255).all())
    assert not np.array_equal(other.reference_mask > 0, shown > 0)
