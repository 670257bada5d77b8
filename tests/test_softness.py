"""A draft that is only soft keeps its own low frequencies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refiner_core.images.filters import blur, wide_blur
from refiner_core.images.geometry import Box, Extent
from refiner_core.images.masks import Region
from refiner_core.matching.find_detail import find_detail
from refiner_core.matching.softness import softness
from refiner_core.matching.tone import soft_draft_step


def _picture(seed: int = 0, side: int = 160) -> Tensor:
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (blur(noise, 1.0) - 0.5) * 1.2 + 0.5


def _mask(side: int = 160) -> Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., 20:-20, 20:-20] = 1
    return mask


@pytest.mark.parametrize("sigma", [2.0, 4.0])
@pytest.mark.parametrize("contrast", [1.0, 0.7])
def test_softness_is_the_blur_whatever_the_contrast(sigma: float, contrast: float) -> None:
    truth = _picture()
    found = softness(0.5 + contrast * (wide_blur(truth, sigma) - 0.5), truth, _mask())
    assert 0.6 * sigma < found < 1.6 * sigma


def test_a_sharp_draft_is_not_soft() -> None:
    truth = _picture()
    assert softness(truth, truth, _mask()) == 0
    assert softness(_picture(1), truth, _mask()) == 0
    step = soft_draft_step(truth, _picture(1), _mask(), torch.ones_like(_mask()))
    assert torch.equal(step, torch.zeros_like(truth))


def test_a_soft_draft_lends_its_light() -> None:
    truth = _picture()
    shade = 0.15 * torch.linspace(-1, 1, 160).view(1, 1, 1, -1).sin()
    draft, other = wide_blur(truth + shade, 3.0), truth
    inside = torch.ones_like(_mask())
    result = other + soft_draft_step(other, draft, _mask(), inside)

    def error(x: Tensor) -> float:
        return float(((x - truth - shade) * _mask()).square().mean())

    assert error(result) < 0.3 * error(other)
    assert error(result) < error(draft), "the reference's detail is kept"


def test_another_detail_without_fine_edges_is_not_soft() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 160), torch.linspace(-1, 1, 160), indexing="ij")
    radius = (x.square() + y.square()).sqrt()
    ring = 0.2 + 0.6 * ((radius > 0.5) & (radius < 0.6)).float().expand(1, 3, -1, -1)
    disc = 0.2 + 0.6 * (radius < 0.6).float().expand(1, 3, -1, -1)
    inside = torch.ones_like(_mask())
    for other in (wide_blur(disc, 3.0), torch.full_like(disc, 0.8)):
        step = soft_draft_step(ring, other, _mask(), inside)
        assert float(step.abs().max()) < 0.02


def test_nothing_is_read_where_the_reference_ends() -> None:
    truth = _picture()
    inside = torch.ones_like(_mask())
    inside[..., :60] = 0
    step = soft_draft_step(truth, wide_blur(truth, 3.0) + 0.1, _mask(), inside)
    assert float(step[..., :60].abs().max()) == 0 and float(step[..., 60:].abs().max()) > 0


def test_a_soft_region_is_found_as_exactly_as_a_sharp_one() -> None:
    picture = _picture(3, 200)
    draft = picture.clone()
    draft[..., 60:140, 60:140] = wide_blur(picture, 3.0)[..., 60:140, 60:140]
    region = Region(Box(60, 60, 140, 140), torch.ones(1, 1, 80, 80))
    mask = torch.zeros(1, 1, 200, 200)
    mask[..., 63:145, 57:136] = 1
    found = find_detail(draft, region, picture, mask)
    assert found.sure
    corners = found.surface.reach(Box(60, 60, 140, 140), Extent(200, 200))
    assert all(abs(a - b) <= 2 for a, b in zip(corners, (60, 60, 140, 140), strict=True))
