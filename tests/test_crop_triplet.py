"""A triplet cut for training: where the crop lies, and that all its pictures are cut alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from refiner_core.data.triplets import Triplet
from refiner_core.recipes.recipe import NANO
from refiner_core.training.config import DataSettings
from refiner_core.training.crop_triplet import crop_triplet
from refiner_core.training.dataset import latent_mask
from refiner_core.training.prepare import encode
from tests.tiny_training import tiny_engine

PLAIN = replace(NANO, align=False)  # alignment has its own tests, and takes long
W, H = 400, 300
BOX = (180, 140, 220, 170)


def places(w: int = W, h: int = H) -> np.ndarray:
    """A picture whose red is its x and whose green is its y."""
    x, y = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return np.stack([x, y, np.full_like(x, 128)], -1).round().astype(np.uint8)


def triplet(name: str = "t", marked: bool = True, **over: Any) -> Triplet:
    mask = np.zeros((H, W), np.uint8)
    if marked:
        x0, y0, x1, y1 = BOX
        mask[y0:y1, x0:x1] = 255
    found = Triplet(name, places(), places(200, 160), places(), mask)
    return replace(found, **over)


def view(name: str = "t", number: int = 0, marked: bool = True, **settings: Any) -> Any:
    return crop_triplet(triplet(name, marked), PLAIN, DataSettings(**settings), number)


def test_all_pictures_of_the_draft_are_cut_by_one_plan() -> None:
    pixels, plan = view()
    torch.testing.assert_close(pixels.target, pixels.draft, rtol=0, atol=0)
    x0, y0, x1, y1 = plan.box
    assert pixels.target.shape[-2:] == pixels.mask.shape[-2:] == (plan.target[1], plan.target[0])
    for channel, (low, high, size) in enumerate(((x0, x1, W), (y0, y1, H))):
        seen = pixels.target[0, channel]
        middle = float(seen.mean()) * (size - 1) + 0.5
        assert middle == pytest.approx((low + high) / 2, abs=1.5)
    ys, xs = torch.nonzero(pixels.mask[0, 0], as_tuple=True)
    at = pixels.target[0, :, ys, xs] * 255
    assert (
        float(at[0].min()) >= (BOX[0] - 2) / W * 255
        and float(at[0].max()) <= (BOX[2] + 2) / W * 255
    )
    assert (
        float(at[1].min()) >= (BOX[1] - 2) / H * 255
        and float(at[1].max()) <= (BOX[3] + 2) / H * 255
    )


def test_the_context_is_drawn_anew_for_every_crop_and_stays_in_its_range() -> None:
    def context(name: str, number: int) -> float:
        _, plan = view(name, number, context=(1.2, 3.0))
        x0, y0, x1, y1 = plan.box
        assert x0 <= BOX[0] and y0 <= BOX[1] and x1 >= BOX[2] and y1 >= BOX[3]
        return min((x1 - x0) / (BOX[2] - BOX[0]), (y1 - y0) / (BOX[3] - BOX[1]))

    found = [context(f"t{i}", k) for i in range(12) for k in range(2)]
    assert len({round(c, 2) for c in found}) > 5  # boxes come in whole tenths of their sizes
    assert max(found) > 2.2 and min(found) < 1.9
    assert all(1.15 <= c <= 3.4 for c in found)
    assert context("t3", 1) == context("t3", 1)
    narrow = [view(f"t{i}", context=(1.2, 1.2))[1].box for i in range(4)]
    assert len({(b[0], b[1], b[2], b[3]) for b in narrow}) == 1


def test_without_a_region_the_crop_lies_somewhere() -> None:
    found = {tuple(view(f"t{i}", marked=False)[1].box) for i in range(6)}
    assert len(found) > 3
    pixels, _ = view(marked=False)
    assert not bool(pixels.mask.any())


def test_references_are_mirrored_and_recoloured_as_asked() -> None:
    plain, _ = view()
    mirrored = [view(f"t{i}", flip=True)[0].reference for i in range(12)]
    falling = [bool(r[0, 0, 0, 0] > r[0, 0, 0, -1]) for r in mirrored]
    assert 2 <= sum(falling) <= 10
    assert not bool(plain.reference[0, 0, 0, 0] > plain.reference[0, 0, 0, -1])
    tinted, _ = view(jitter=0.2)
    assert not torch.allclose(tinted.reference, plain.reference, atol=0.02)
    torch.testing.assert_close(tinted.target, plain.target)


def test_nothing_can_be_learnt_without_the_truth() -> None:
    with pytest.raises(ValueError, match="t has no target"):
        crop_triplet(replace(triplet(), target=None), PLAIN, DataSettings(), 0)


def test_the_region_grows_in_latent_pixels() -> None:
    pixels, _ = view()
    sizes = []
    for grow in (0, 1, 3):
        engine = replace(tiny_engine(), recipe=PLAIN)
        mask = encode(pixels, engine, DataSettings(dilate=grow))["mask"]
        sizes.append(int(mask.sum()))
        size = (mask.shape[-2], mask.shape[-1])
        assert torch.equal(mask.float(), latent_mask(pixels.mask, size, grow))
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
