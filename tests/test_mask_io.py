"""Masks mean what a person sees in them, or are refused with what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refiner_core.images.mask_io import (
    coverage_notes,
    is_unpainted,
    normalize_mask,
    read_mask,
    strength_notes,
)
from refiner_core.images.masks import bounds

SHAPE = np.zeros((40, 60), bool)
SHAPE[10:20, 15:40] = True
PHOTO = np.random.default_rng(0).integers(20, 236, (40, 60, 3), dtype=np.uint8)


def colored(inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
    return np.where(SHAPE[..., None], inside, outside).astype(np.uint8)


def with_alpha(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([color, alpha[..., None].astype(np.uint8)], -1)


WHITE_LAYER = np.full((40, 60, 3), 255, np.uint8)
FILES = {
    "black and white": np.uint8(SHAPE * 255),
    "one bit": SHAPE,
    "sixteen bits": np.uint16(SHAPE * 65535),
    "0 and 1": np.uint8(SHAPE),
    "0 and 1 in color": colored((1, 1, 1), (0, 0, 0)),
    "16 bits with values of 8": np.uint16(SHAPE * 255),
    "black is 1": colored((255, 255, 255), (1, 1, 1)),
    "red on black": colored((255, 0, 0), (0, 0, 0)),
    "one class of a palette": colored((128, 0, 0), (0, 0, 0)),
    "white layer": with_alpha(WHITE_LAYER, SHAPE * 255),
    "black layer": with_alpha(WHITE_LAYER * 0, SHAPE * 255),
    "white on black, corners transparent": with_alpha(
        colored((255, 255, 255), (0, 0, 0)), np.where(np.arange(60) < 50, 255, 0) + 0 * SHAPE
    ),
    "photo with a hole": with_alpha(PHOTO, ~SHAPE * 255),
}
NOTED = set(FILES) - {"black and white", "one bit", "sixteen bits", "16 bits with values of 8"}


@pytest.mark.parametrize("kind", FILES)
def test_the_shape_that_is_seen_is_the_mask(tmp_path: Path, kind: str) -> None:
    Image.fromarray(FILES[kind]).save(tmp_path / "mask.png")
    mask, notes = read_mask(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask[0, 0].numpy(), SHAPE.astype(np.float32))
    assert bool(notes) == (kind in NOTED)


def test_a_palette_file_is_one_class(tmp_path: Path) -> None:
    image = Image.fromarray(SHAPE.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png")[0][0, 0].numpy(), SHAPE)


def test_jpeg_leaves_no_traces_outside(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(SHAPE * 255)).save(tmp_path / "mask.jpg", quality=75)
    mask, notes = read_mask(tmp_path / "mask.jpg")
    far = np.ones_like(SHAPE)
    far[8:24, 8:48] = False  # the blocks of 8 pixels that the shape touches
    assert not mask[0, 0].numpy()[far].any() and notes
    assert float(mask[0, 0, 15, 25]) > 0.9


def test_soft_edges_keep_their_values(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 60).round().astype(np.uint8)[None].repeat(40, 0)
    Image.fromarray(ramp).save(tmp_path / "mask.png")
    mask, notes = read_mask(tmp_path / "mask.png")
    assert notes == ()
    torch.testing.assert_close(mask[0, 0, 0], torch.from_numpy(ramp[0]) / 255)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (np.uint8(SHAPE * 5), "0.0196"),
        (PHOTO, "colors"),
        (colored((255, 0, 0), (255, 255, 255)), r"255, 0, 0"),
        (colored((128, 0, 0), (0, 128, 0)), r"\(0, 128, 0\), \(128, 0, 0\)"),
        (with_alpha(WHITE_LAYER, SHAPE * 0), "transparent"),
    ],
)
def test_what_could_mean_several_things_is_refused(
    tmp_path: Path, data: np.ndarray, named: str
) -> None:
    Image.fromarray(data).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask.png") as e:
        read_mask(tmp_path / "mask.png", "reference mask")
    assert "reference mask" in str(e.value)
    assert e.match(named)


def tensor(inside: float, outside: float = 0.0) -> Tensor:
    return torch.from_numpy(np.where(SHAPE, inside, outside).astype(np.float32))[None, None]


@pytest.mark.parametrize(
    ("mask", "noted"),
    [
        (tensor(1), False),
        (tensor(1).bool(), False),
        (tensor(255).byte(), False),
        (tensor(1).half(), False),
        (tensor(255), True),
        (tensor(1 / 255), True),
        (tensor(1, 1 / 255), True),
        (tensor(1.05, -0.03), True),
        (tensor(1 + 1e-6, -1e-6), False),
    ],
)
def test_tensors_of_any_range(mask: Tensor, noted: bool) -> None:
    found, notes = normalize_mask(mask)
    assert torch.equal(found, tensor(1)) and found.dtype == torch.float32
    assert bool(notes) == noted


@pytest.mark.parametrize("strength", [0.15, 0.5, 1.0])
def test_a_mask_of_any_strength_is_left_alone(strength: float) -> None:
    found, notes = normalize_mask(tensor(strength))
    assert torch.equal(found, tensor(strength)) and notes == ()


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (tensor(7), "from 0 to 7"),
        (tensor(300), "from 0 to 300"),
        (tensor(128.5), "from 0 to 128.5"),
        (tensor(1, -1), "from -1 to 1"),
        (tensor(0.05), "0.05"),
        (tensor(float("nan")), "NaN"),
    ],
)
def test_tensors_of_unclear_meaning_are_refused(mask: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=f"reference mask.*{named}"):
        normalize_mask(mask, "reference mask")


def test_an_empty_mask_stays_empty() -> None:
    found, notes = normalize_mask(tensor(0))
    assert not found.any() and notes == ()


def test_what_load_image_gives_when_nothing_is_painted() -> None:
    empty = torch.zeros(1, 1, 64, 64)
    assert is_unpainted(empty, 320, 240)
    assert not is_unpainted(empty, 64, 64), "a picture of that size has a mask of that size"
    assert not is_unpainted(empty + 1, 320, 240)
    assert not is_unpainted(torch.zeros(1, 1, 240, 320), 320, 240)


@pytest.mark.parametrize(("rows", "noted"), [(10, False), (20, False), (36, True), (40, False)])
def test_a_mask_of_most_of_the_picture_is_noted(rows: int, noted: bool) -> None:
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., :rows, :] = 1
    notes = coverage_notes(mask, bounds(mask))
    assert bool(notes) == noted and all("90%" in note for note in notes)


@pytest.mark.parametrize(
    ("strength", "named"), [(0.3, "30%"), (128 / 255, "50%"), (0.95, ""), (1.0, "")]
)
def test_a_mask_that_is_gray_where_it_is_brightest_is_noted(strength: float, named: str) -> None:
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., 10:20, 15:40] = strength
    mask[..., 10, :] *= 0.5  # a soft edge says nothing
    notes = strength_notes(mask, bounds(mask))
    assert len(notes) == bool(named) and all(named in note for note in notes)
    assert strength_notes(mask * 0, None) == ()


def test_a_mask_without_black_is_noted() -> None:
    mask = torch.full((1, 1, 40, 60), 0.5)
    assert (
        coverage_notes(mask, bounds(mask)) == ()
    )  # the same everywhere: nothing was meant as black
    mask[..., 10:20, 15:40] = 1
    (note,) = coverage_notes(mask, bounds(mask))
    assert "0.5" in note and "black" in note
