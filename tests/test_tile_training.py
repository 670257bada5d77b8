"""Scenes and tiles on which a nano learns to work on tiles."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.nano import NANO_WEIGHTS, nano_recipe
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO, NANO_TILES
from refiner_core.training.losses import masked_flow_errors, mean_loss
from refiner_core.training.tile_dataset import TileDataset, draw_scenes
from refiner_core.training.tile_scenes import TileScene, draw_tile_scene
from refiner_core.weights.inspection import inspect_file


def photographs() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)) for _ in range(3)]
    return [c.resize((400, 320), Image.Resampling.BICUBIC) for c in coarse]


def drawn_scene(seed: int) -> TileScene:
    return draw_tile_scene(np.random.default_rng(seed), photographs())


scene = cache(drawn_scene)  # drawing takes a second


@pytest.mark.parametrize("seed", range(4))
def test_a_scene_shows_the_truth_around_the_mask_and_can_be_repaired(seed: int) -> None:
    drawn = scene(seed)
    sizes = {x.shape[-2:] for x in (drawn.target, drawn.draft, drawn.reference, drawn.mask)}
    assert len(sizes) == 1
    assert set(drawn.mask.unique().tolist()) == {0, 1}
    assert drawn.agreement() >= 20
    for picture in (drawn.target, drawn.draft, drawn.reference):
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_the_same_seed_draws_the_same_scene() -> None:
    assert np.array_equal(scene(1).stacked(), drawn_scene(1).stacked())
    assert not np.array_equal(scene(1).stacked(), scene(2).stacked())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"scene-{i:06d}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        np.save(path, scene(i).stacked())
    return paths


def test_a_tile_is_always_the_same_and_shows_the_mask(files: list[Path]) -> None:
    data = TileDataset(files, load_nano(recipe=NANO_TILES), 4)
    assert len(data) == len(data.shapes) == 12
    for i in range(len(data)):
        item, again = data[i], data[i]
        assert item.shape == data.shapes[i] == ((16, 16),) * 3
        assert torch.equal(item.target, again.target)
        assert item.pixels is not None
        assert item.pixels.mask.any()
        assert item.mask.any()
    assert not torch.equal(data[0].target, data[1].target)


def test_a_scene_smaller_than_a_tile_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "scene-000000.npy"
    np.save(path, scene(0).stacked()[:40, :90])
    item = TileDataset([path], load_nano(recipe=NANO_TILES), 1)[0]
    assert item.shape[0] == (16, 16)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        draw_scenes(tmp_path / "scenes", 2, tmp_path, 0, 1, lambda done, total, report: None)


def test_the_root_of_the_loss_weighs_hopeless_samples_less() -> None:
    target, mask = torch.zeros(2, 4, 8, 8), torch.ones(2, 1, 8, 8)
    predicted = torch.stack([torch.full((4, 8, 8), v) for v in (0.1, 3.0)])
    errors = masked_flow_errors(predicted, target, mask)
    assert float(mean_loss(errors, root=False)) == pytest.approx((0.01 + 9) / 2)
    assert float(mean_loss(errors, root=True)) == pytest.approx(3.1 / 2)


@pytest.mark.slow
def test_train_nano_on_tiles_writes_weights_that_know_their_recipe(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i, photo in enumerate(photographs()):
        photo.save(photos / f"{i}.png")
    arguments = ["train", "nano", "--out", str(out), "--tiles", "50", "--photos", str(photos)]
    assert main([*arguments, "--max-steps", "2", "--sft-set", "run.validate_every=0"]) == 0
    weights = out / "tiles" / "refiner.safetensors"
    assert nano_recipe(weights) is NANO_TILES
    assert nano_recipe(NANO_WEIGHTS) is NANO
    assert load_nano(path=weights).recipe is NANO_TILES
    assert inspect_file(weights).attention == "one way"
    assert main([*arguments, "--max-steps", "3", "--sft-set", "run.validate_every=0"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--tiles", "48"],
        ["--tiles", "60", "--data", "triplets"],
        ["--tiles", "60", "--triplets", "9"],
        ["--tiles", "60", "--grpo-steps", "2"],
        ["--tiles", "60", "--max-steps", "0"],
        ["--photos", "photos"],
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_drawn(
    options: list[str], tmp_path: Path
) -> None:
    assert main(["train", "nano", "--out", str(tmp_path / "run"), *options]) == 2
    assert not (tmp_path / "run").exists()
