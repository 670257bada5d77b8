"""The weight-free scorer: exact where it must be, ordered as eyes order, blind outside the mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refiner_core.images.filters import blur
from refiner_core.scoring.scorer import check_pair
from refiner_core.scoring.structural import StructuralScorer

SCORER = StructuralScorer()


def picture(seed: int, side: int = 96, count: int = 1) -> Tensor:
    """Soft random shapes with contrast, `count` 3 `side` `side`."""
    g = torch.Generator().manual_seed(seed)
    x = blur(torch.rand(count, 3, side, side, generator=g), 2.0)
    return ((x - 0.5) * 4 + 0.5).clamp(0, 1)


def test_identical_pictures_are_exactly_zero() -> None:
    x = picture(0, count=3)
    assert SCORER.distance(x, x.clone()).tolist() == [0, 0, 0]
    assert float(SCORER.heatmap(x, x).abs().max()) == 0
    flat = torch.full((1, 3, 20, 20), 0.3)
    assert SCORER.distance(flat, flat).tolist() == [0]


def test_symmetric_and_independent_of_the_batch() -> None:
    a, b = picture(1, count=4), picture(2, count=4)
    together = SCORER.distance(a, b)
    assert torch.allclose(together, SCORER.distance(b, a), atol=1e-6)
    apart = torch.cat([SCORER.distance(a[i : i + 1], b[i : i + 1]) for i in (3, 1, 0, 2)])
    assert torch.allclose(together[[3, 1, 0, 2]], apart, atol=1e-6)
    assert torch.allclose(SCORER.distance(a[:1], b)[2], SCORER.distance(a[:1], b[2:3])[0])


def test_worse_pictures_are_further_away() -> None:
    x = picture(3)
    distances = [
        float(SCORER.distance(x, y))
        for y in (x, blur(x, 0.7), blur(x, 1.5), blur(x, 4.0), picture(4), 1 - x)
    ]
    assert distances == sorted(distances) and distances[0] == 0
    assert distances[-2] == pytest.approx(1, abs=0.15)  # unrelated
    assert distances[-1] > 1.5  # the negative


def test_colour_counts() -> None:
    x = picture(5)
    assert float(SCORER.distance(x, x[:, [2, 1, 0]])) > 0.3


def test_only_the_mask_counts() -> None:
    x, mask = picture(6), torch.zeros(1, 1, 96, 96)
    mask[..., 20:50, 30:70] = 1
    outside = torch.where(mask > 0, x, picture(7))
    inside = torch.where(mask > 0, picture(7), x)
    assert SCORER.distance(x, outside, mask).tolist() == [0]
    assert float(SCORER.distance(x, inside, mask)) > 3 * float(SCORER.distance(x, inside))


def test_heatmap_finds_the_change() -> None:
    x = picture(8, 128)
    y = x.clone()
    y[..., 64:96, 16:48] = picture(9, 32)
    heat = SCORER.heatmap(x, y)[0, 0]
    assert heat.shape == (128, 128)
    assert float(heat[64:96, 16:48].mean()) > 20 * float(heat[:32, 80:].mean())


def test_gradient_leads_back() -> None:
    x, y = picture(10, 48), picture(11, 48).requires_grad_()
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 10:40, 10:40] = 1
    before = SCORER.distance(x, y, mask)
    before.sum().backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())
    step = (y - 0.5 * y.grad / y.grad.abs().max()).detach()
    assert float(SCORER.distance(x, step, mask)) < float(before.detach())


@pytest.mark.parametrize("side", [1, 2, 7, 11, 23])
def test_small_pictures(side: int) -> None:
    a, b = torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side)
    assert 0.4 < float(SCORER.distance(a, b)) <= 2
    assert SCORER.heatmap(a, b).shape == (1, 1, side, side)


@pytest.mark.parametrize(
    ("a", "b", "mask", "message"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 9), None, "8x8 and 9x8"),
        ((2, 3, 8, 8), (3, 3, 8, 8), None, "2 and 3"),
        ((1, 4, 8, 8), (1, 3, 8, 8), None, r"\(1, 4, 8, 8\)"),
        ((1, 3, 8, 8), (1, 3, 8, 8), (1, 1, 4, 4), r"8x8.*\(1, 1, 4, 4\)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (3, 1, 8, 8), "2 and 3"),
    ],
)
def test_shapes_that_do_not_fit(
    a: tuple[int, ...], b: tuple[int, ...], mask: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SCORER.distance(torch.zeros(a), torch.zeros(b), None if mask is None else torch.ones(mask))


def test_broken_values_are_refused() -> None:
    x, mask = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="second picture.* 1 values that are NaN"):
        SCORER.distance(x, bad)
    mask[1] = 0
    with pytest.raises(ValueError, match="mask of item 1 is empty"):
        SCORER.distance(x, x, mask)
    with pytest.raises(ValueError, match="uint8"):
        check_pair((x * 255).byte(), x)
