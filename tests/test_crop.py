"""Crop, uncrop and stitch: nothing outside the mask changes, nothing inside moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refiner_core.images.crop import (
    box_region,
    crop,
    crop_mask,
    multiband,
    ring,
    stitch_into,
    uncrop,
)
from refiner_core.images.geometry import (
    NANO_BUCKETS,
    Blend,
    Box,
    Buckets,
    CropPlan,
    Extent,
    plan_crop,
)
from refiner_core.images.masks import Region, feather, find_regions
from refiner_core.matching.registration import register

DTYPES = [torch.uint8, torch.uint16, torch.float32, torch.float16]


def random_image(
    seed: int, height: int, width: int, dtype: torch.dtype, channels: int = 3
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    top = {torch.uint8: 256, torch.uint16: 65536}.get(dtype)
    if top:
        return torch.randint(0, top, (1, channels, height, width), generator=g).to(dtype)
    return torch.rand(1, channels, height, width, generator=g).to(dtype)


def stitch(image: Tensor, patch: Tensor, region: Region, **how: Any) -> Tensor:
    """A copy of the image with the patch blended in."""
    out = image.clone()
    stitch_into(out, patch, region, **how)
    return out


def bits(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


def outside(image: Tensor, region: Region) -> Tensor:
    """Where `image` must not change, as a mask of its shape."""
    keep = torch.ones(1, 1, *image.shape[-2:], dtype=torch.bool)
    b = region.box
    keep[..., b.y0 : b.y1, b.x0 : b.x1] = region.mask <= 0
    return keep.expand(image.shape)


@st.composite
def masks(draw: st.DrawFn, most: int = 40) -> Tensor:
    h, w = draw(st.integers(1, most)), draw(st.integers(1, most))
    x0, y0 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
    x1, y1 = draw(st.integers(x0 + 1, w)), draw(st.integers(y0 + 1, h))
    mask = torch.zeros(1, 1, h, w)
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    part = torch.rand(1, 1, y1 - y0, x1 - x0, generator=g)
    sparse = draw(st.sampled_from([0.0, 0.3, 0.8]))
    mask[..., y0:y1, x0:x1] = part * (part >= sparse) if draw(st.booleans()) else 1.0
    mask[..., y0, x0] = 1.0
    return mask


@settings(max_examples=120, deadline=None)
@given(
    masks(),
    st.sampled_from(DTYPES),
    st.sampled_from(["feather", "multiband"]),
    st.sampled_from([0.0, 1.0, 6.0]),
    st.floats(1, 3),
)
def test_outside_the_mask_every_bit_stays(
    mask: Tensor, dtype: torch.dtype, blend: Blend, feather_pixels: float, context: float
) -> None:
    image = random_image(0, mask.shape[-2], mask.shape[-1], dtype)
    before = bits(image)
    (region,) = find_regions(mask, split=False, holes=False)
    plan = plan_crop(Extent(image.shape[-1], image.shape[-2]), region.box, NANO_BUCKETS, context)
    patch = uncrop(1 - crop(image, plan), plan, region)
    out = stitch(image, patch, region, feather_pixels=feather_pixels, blend=blend)
    keep = outside(image, region)
    assert out.dtype == dtype
    assert bits(out[keep]) == bits(image[keep])
    assert bits(image) == before


@settings(max_examples=60, deadline=None)
@given(masks(24), st.sampled_from(DTYPES[:3]), st.sampled_from(["feather", "multiband"]))
def test_at_scale_one_identity_is_exact(mask: Tensor, dtype: torch.dtype, blend: Blend) -> None:
    """The model sees the picture's own pixels and gives them back: nothing at all changes."""
    h, w = mask.shape[-2:]
    image = random_image(1, h, w, dtype)
    (region,) = find_regions(mask, split=False, holes=False)
    plan = CropPlan(Extent(w, h), region.box, Box(-3, -2, 29, 30), Extent(32, 32))
    seen = crop(image, plan)
    assert seen.shape[-2:] == (32, 32)
    patch = uncrop(seen, plan, region)
    out = stitch(image, patch, region, feather_pixels=4, blend=blend)
    if dtype.is_floating_point:
        torch.testing.assert_close(out, image, rtol=0, atol=1e-6)
    else:
        assert bits(out) == bits(image)


def test_without_a_feather_the_patch_is_pasted_as_it_is() -> None:
    image = random_image(2, 20, 30, torch.uint8)
    region = box_region(Box(5, 6, 15, 16))
    patch = random_image(3, 10, 10, torch.uint8)
    out = stitch(image, patch.float() / 255, region, feather_pixels=0)
    assert bits(out[..., 6:16, 5:15]) == bits(patch)


@settings(max_examples=100, deadline=None)
@given(masks(), st.floats(0, 12), st.tuples(*[st.booleans()] * 4))
def test_feather_stays_in_the_mask(
    mask: Tensor, pixels: float, open_sides: tuple[bool, bool, bool, bool]
) -> None:
    weight = feather(mask, pixels, open_sides)
    assert torch.equal(weight > 0, mask > 0)
    assert bool((weight <= mask + 1e-6).all())


def test_feather_rises_inwards_to_one() -> None:
    row = feather(torch.ones(1, 1, 41, 41), 8, (False, False, False, False))[0, 0, 20]
    assert bool((row[:21].diff() >= 0).all())
    assert torch.equal(row, row.flip(0))
    assert row[0] < 0.02
    assert row[20] == 1


@pytest.mark.parametrize("side", range(4))
def test_feather_does_not_fade_at_the_pictures_border(side: int) -> None:
    open_sides = tuple(i == side for i in range(4))
    weight = feather(torch.ones(1, 1, 41, 41), 8, open_sides)[0, 0]  # type: ignore[arg-type]
    edges = (weight[20, 0], weight[0, 20], weight[20, -1], weight[-1, 20])
    assert [bool(e == 1) for e in edges] == list(open_sides)


def test_feather_of_the_whole_picture_fades_nowhere() -> None:
    mask = torch.rand(1, 1, 9, 30) + 0.1
    torch.testing.assert_close(feather(mask, 8, (True, True, True, True)), mask)


def test_region_at_the_pictures_border_is_pasted_up_to_it() -> None:
    image = torch.zeros(1, 3, 40, 40)
    region = box_region(Box(0, 0, 40, 20))
    out = stitch(image, torch.ones(1, 3, 20, 40), region, feather_pixels=6)
    assert bool((out[..., :10, :] == 1).all())
    assert bool((out[..., 19, :] < 0.05).all())


@pytest.mark.parametrize("blend", ["feather", "multiband"])
def test_channels_beyond_the_patchs_stay(blend: Blend) -> None:
    image = random_image(4, 30, 30, torch.uint8, channels=4)
    out = stitch(image, torch.ones(1, 3, 20, 20), box_region(Box(5, 5, 25, 25)), blend=blend)
    assert bits(out[:, 3]) == bits(image[:, 3])
    assert not torch.equal(out[:, :3], image[:, :3])


def _texture(height: int, width: int) -> Tensor:
    """Smooth blobs, about 6 px: nothing there is finer than a halved crop can carry."""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(1, 3, height // 6 + 2, width // 6 + 2, generator=g)
    return torch.nn.functional.interpolate(x, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("blend", ["feather", "multiband"])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((200, 150), (40, 30, 120, 110)),
        ((150, 200), (0, 0, 60, 150)),
        ((301, 97), (7, 11, 290, 60)),
        ((97, 301), (20, 100, 50, 297)),
        ((60, 40), (3, 3, 57, 37)),
    ],
)
def test_nothing_shifts(
    size: tuple[int, int], box: tuple[int, int, int, int], blend: Blend
) -> None:
    image = _texture(size[1], size[0])
    region = box_region(Box(*box))
    plan = plan_crop(Extent(*size), region.box, NANO_BUCKETS, 1.5)
    patch = uncrop(crop(image, plan), plan, region)
    out = stitch(image, patch, region, feather_pixels=3, blend=blend)
    cut = (..., slice(box[1], box[3]), slice(box[0], box[2]))
    weight = torch.ones(1, 1, *out[cut].shape[-2:])
    m = register(image[cut], out[cut], weight, "shift_zoom", finest=400).matrix
    w, h = region.box.extent
    assert abs(float(m[0, 2]) * w / 2) < 0.1
    assert abs(float(m[1, 2]) * h / 2) < 0.1
    assert abs(float(m[0, 0]) - 1) < 0.002
    assert float((out - image).abs().mean()) < 0.02


@pytest.mark.parametrize("at", [(24, 40), (70, 8), (99, 59)])
def test_the_centroid_of_a_dot_stays(at: tuple[int, int]) -> None:
    x, y = at
    yy, xx = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    dot = torch.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8).expand(1, 3, 60, 100)
    region = box_region(Box(0, 0, 100, 60))
    plan = plan_crop(Extent(100, 60), region.box, NANO_BUCKETS, 1.0)
    back = uncrop(crop(dot, plan), plan, region)[0, 0]
    before = dot[0, 0]
    for axis in (xx, yy):
        moved = (back * axis).sum() / back.sum() - (before * axis).sum() / before.sum()
        assert abs(float(moved)) < 0.1


def test_only_the_box_is_read() -> None:
    image = torch.full((1, 3, 300, 300), float("nan"))
    region = box_region(Box(100, 120, 140, 150))
    plan = plan_crop(Extent(300, 300), region.box, NANO_BUCKETS, 1.5)
    b = plan.box
    image[..., b.y0 : b.y1, b.x0 : b.x1] = torch.rand(1, 3, *b.extent[::-1])
    seen = crop(image, plan)
    assert bool(torch.isfinite(seen).all())
    out = stitch(image, uncrop(seen, plan, region), region)
    assert torch.equal(out.isnan(), image.isnan())


def test_padding_repeats_the_edge() -> None:
    image = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 3, 1, 4) / 4
    plan = plan_crop(Extent(4, 1), Box(0, 0, 4, 1), Buckets((Extent(16, 16),), 16), 1.0)
    seen = crop(image, plan)
    assert plan.box.extent == (4, 4)
    torch.testing.assert_close(seen[..., 0, :], seen[..., 15, :])


@settings(max_examples=60, deadline=None)
@given(masks(), st.floats(1, 4))
def test_crop_mask_and_ring(mask: Tensor, context: float) -> None:
    (region,) = find_regions(mask, split=False, holes=False)
    plan = plan_crop(Extent(mask.shape[-1], mask.shape[-2]), region.box, NANO_BUCKETS, context)
    seen = crop_mask(region, plan)
    assert seen.shape == (1, 1, plan.target.height, plan.target.width)
    assert float(seen.min()) >= 0
    assert 0 < float(seen.max()) <= 1
    around = ring(region, plan)
    assert set(around.unique().tolist()) <= {0.0, 1.0}
    assert float((around * seen).max()) <= 0.01


def test_a_thin_stroke_survives_in_a_far_larger_crop() -> None:
    mask = torch.zeros(1, 1, 2048, 2048)
    mask[..., 1000, 200:1800] = 1
    (region,) = find_regions(mask)
    plan = plan_crop(Extent(2048, 2048), region.box, NANO_BUCKETS, 1.2)
    assert int((crop_mask(region, plan) > 0).any(-2).sum()) > 0.7 * plan.target.width


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_multiband_of_equal_pictures_is_that_picture(height: int, width: int) -> None:
    a = random_image(6, height, width, torch.float32)
    weight = random_image(7, height, width, torch.float32)[:, :1]
    torch.testing.assert_close(multiband(a, a, weight), a, rtol=0, atol=1e-5)
    b = random_image(8, height, width, torch.float32)
    ones = torch.ones(1, 1, height, width)
    torch.testing.assert_close(multiband(a, b, ones), b, rtol=0, atol=1e-5)
    torch.testing.assert_close(multiband(a, b, 0 * ones), a, rtol=0, atol=1e-5)
