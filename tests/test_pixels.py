"""The weight-free distances against scikit-image, literal values and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from refiner_core.scoring.heatmap import difference_heat
from refiner_core.scoring.pixels import (
    edge_error,
    masked_mse,
    masked_psnr,
    masked_ssim,
    outside_difference,
    ssim_map,
)

Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]
MEASURES: list[Measure] = [masked_mse, masked_psnr, masked_ssim, edge_error]


def noise(seed: int, h: int = 40, w: int = 56) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, h, w), generator=generator, dtype=torch.uint8)


def box(h: int = 40, w: int = 56) -> Tensor:
    mask = torch.zeros(1, 1, h, w)
    mask[..., 5:30, 10:50] = 1
    return mask


def test_ssim_is_scikit_images() -> None:
    a, b = noise(0), noise(1) // 2 + noise(0) // 2
    arrays = [x[0].permute(1, 2, 0).numpy() for x in (a, b)]
    full = structural_similarity(
        *arrays, channel_axis=2, data_range=255, full=True, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )[1]  # fmt: skip
    assert np.abs(ssim_map(a, b)[0].permute(1, 2, 0).numpy() - full).max() < 1e-9


@pytest.mark.parametrize(("step", "psnr"), [(255, 0.0), (51, 13.9794), (1, 48.1308)])
def test_psnr_of_a_constant_step(step: int, psnr: float) -> None:
    a = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert float(masked_psnr(a, a + step)) == pytest.approx(psnr, abs=1e-4)


def test_sobel_of_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 11, 11)
    inner = torch.zeros(1, 1, 11, 11)
    inner[..., 1:-1, 1:-1] = 1
    # 0.1 a pixel across, nothing down: the mean over both directions of 0.1 squared.
    assert float(edge_error(ramp, ramp * 0, inner)) == pytest.approx(0.005, rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric_and_blind_outside_the_mask(measure: Measure) -> None:
    a, b, mask = noise(2), noise(3), box()
    changed = a.clone()
    changed[..., 38:, :] = 0  # further from the mask than any window reaches
    assert float(measure(a, b, mask)) == pytest.approx(float(measure(b, a, mask)), rel=1e-12)
    assert float(measure(a, b, mask)) == pytest.approx(float(measure(changed, b, mask)), rel=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_batch_is_its_pictures_one_by_one(measure: Measure) -> None:
    a, b = (torch.cat([noise(s), noise(s + 10), noise(s + 20)]) for s in (0, 1))
    mask = torch.cat([box(), box().flip(-1), torch.ones(1, 1, 40, 56)])
    together = measure(a, b, mask)
    alone = [float(measure(a[i : i + 1], b[i : i + 1], mask[i : i + 1])) for i in range(3)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_the_same_picture() -> None:
    a, mask = noise(4), box()
    assert float(masked_psnr(a, a, mask)) == math.inf
    assert float(masked_ssim(a, a, mask)) == 1
    assert float(edge_error(a, a, mask)) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_an_empty_mask_has_no_value(measure: Measure) -> None:
    assert math.isnan(float(measure(noise(0), noise(1), torch.zeros(1, 1, 40, 56))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_outside_sees_one_changed_bit_and_nothing_inside(dtype: torch.dtype) -> None:
    a = noise(5).to(torch.int32)
    inside, outside = a.clone(), a.clone()
    inside[0, 0, 6, 11] ^= 128
    outside[0, 2, 39, 55] ^= 1
    mask = box()
    assert float(outside_difference(a.to(dtype), inside.to(dtype), mask)) == 0
    assert float(outside_difference(a.to(dtype), outside.to(dtype), mask)) > 0


def test_heat_is_where_the_difference_is() -> None:
    a = noise(6)
    b = a.clone()
    b[..., 12, 20] = 255 - b[..., 12, 20]
    heat = difference_heat(a, b)
    assert heat.flatten().argmax() == 12 * 56 + 20 and int((heat > 0).sum()) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_sizes_that_differ_are_named(measure: Measure) -> None:
    with pytest.raises(ValueError, match=r"40, 56\).*\(1, 3, 20, 20"):
        measure(noise(0), noise(0, 20, 20), None)
    with pytest.raises(ValueError, match="mask"):
        measure(noise(0), noise(1), torch.ones(1, 1, 20, 20))
