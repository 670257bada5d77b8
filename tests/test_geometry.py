"""Crop plans: covering, exact aspect, inside the picture whenever that is possible."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refiner_core.images.geometry import (
    KONTEXT_BUCKETS,
    NANO_BUCKETS,
    Box,
    Buckets,
    CropPlan,
    Extent,
    plan_crop,
)

MEGAPIXELS = st.none() | st.floats(0.02, 2)
BUCKETS = st.sampled_from([KONTEXT_BUCKETS, NANO_BUCKETS])


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Extent, Box]:
    side = st.one_of(st.integers(1, 64), st.integers(1, 16384), st.sampled_from([1, 1024, 16384]))
    image = Extent(draw(side), draw(side))
    x0, y0 = draw(st.integers(0, image.width - 1)), draw(st.integers(0, image.height - 1))
    x1 = draw(st.integers(x0 + 1, image.width))
    y1 = draw(st.integers(y0 + 1, image.height))
    return image, Box(x0, y0, x1, y1)


def smallest_cover(size: Extent, region: Extent) -> Extent:
    g = math.gcd(*size)
    w, h = size.width // g, size.height // g
    k = max(-(-region.width // w), -(-region.height // h))
    return Extent(w * k, h * k)


@settings(max_examples=400, deadline=None)
@given(pictures(), BUCKETS, st.floats(1, 4), MEGAPIXELS)
# A thousandth of padding is still padding, and another bucket needs none.
@example((Extent(16384, 7022), Box(0, 0, 16383, 7021)), KONTEXT_BUCKETS, 1.0, None)
def test_plan(
    picture: tuple[Extent, Box], buckets: Buckets, context: float, megapixels: float | None
) -> None:
    image, region = picture
    plan = plan_crop(image, region, buckets, context, megapixels)
    box, target = plan.box.extent, plan.target

    assert plan.box.contains(region)
    assert box.width * target.height == box.height * target.width
    assert target in buckets.scaled(megapixels)
    assert target.width % buckets.multiple == target.height % buckets.multiple == 0
    assert plan.scale == pytest.approx(target.height / box.height)
    fits = any(
        c.width <= image.width and c.height <= image.height
        for c in (smallest_cover(s, region.extent) for s in buckets.scaled(megapixels))
    )
    assert any(plan.padding) == (not fits)
    assert all(side >= 0 for side in plan.padding)
    left, top, right, bottom = plan.padding
    assert plan.inside.extent == (box.width - left - right, box.height - top - bottom)


@pytest.mark.parametrize(
    ("image", "region", "buckets", "context", "megapixels", "box", "target"),
    [
        # in the middle: the region's centre, twice the region, Kontext's square
        ((2000, 2000), (900, 900, 1100, 1100), KONTEXT_BUCKETS, 2, None,
         (800, 800, 1200, 1200), (1024, 1024)),
        # in the corner: shifted, not shrunk
        ((2000, 2000), (0, 0, 200, 200), KONTEXT_BUCKETS, 2, None,
         (0, 0, 400, 400), (1024, 1024)),
        ((2000, 2000), (1800, 1800, 2000, 2000), KONTEXT_BUCKETS, 2, None,
         (1600, 1600, 2000, 2000), (1024, 1024)),
        # no room for the context: made smaller, not padded
        ((256, 256), (28, 28, 228, 228), NANO_BUCKETS, 4, None, (0, 0, 256, 256), (128, 128)),
        # context counts for more than an area near to what was asked for
        ((320, 240), (90, 80, 230, 160), NANO_BUCKETS, 1.5, None, (50, 60, 270, 180), (176, 96)),
        ((1024, 1024), (292, 332, 732, 692), KONTEXT_BUCKETS, 1.5, None,
         (142, 237, 882, 787), (1184, 880)),
        # a picture that is a bucket
        ((1024, 1024), (0, 0, 1024, 1024), KONTEXT_BUCKETS, 1, None,
         (0, 0, 1024, 1024), (1024, 1024)),
        ((1568, 672), (0, 0, 1568, 672), KONTEXT_BUCKETS, 1.5, None,
         (0, 0, 1568, 672), (1568, 672)),
        # a quarter of a megapixel
        ((2000, 2000), (900, 900, 1100, 1100), KONTEXT_BUCKETS, 2, 0.262144,
         (800, 800, 1200, 1200), (512, 512)),
        # a single pixel
        ((1, 1), (0, 0, 1, 1), NANO_BUCKETS, 1, None, (0, 0, 1, 1), (128, 128)),
    ],
)  # fmt: skip
def test_plan_table(
    image: tuple[int, int],
    region: tuple[int, int, int, int],
    buckets: Buckets,
    context: float,
    megapixels: float | None,
    box: tuple[int, int, int, int],
    target: tuple[int, int],
) -> None:
    plan = plan_crop(Extent(*image), Box(*region), buckets, context, megapixels)
    assert (plan.box, plan.target) == (box, target)
    assert plan.padding == (0, 0, 0, 0)


def test_padding_is_shared_by_both_sides_when_the_picture_is_a_stripe() -> None:
    plan = plan_crop(Extent(2000, 20), Box(0, 0, 2000, 20), KONTEXT_BUCKETS, 1.0)
    left, top, right, bottom = plan.padding
    assert left + right == plan.box.extent.width - 2000
    assert max(abs(top - bottom), abs(left - right)) <= 1
    assert top > 0


@pytest.mark.parametrize(
    ("region", "context", "megapixels", "says"),
    [
        ((0, 0, 0, 10), 1.5, None, r"\(0, 0, 0, 10\)"),
        ((10, 0, 5, 10), 1.5, None, r"\(10, 0, 5, 10\)"),
        ((-1, 0, 5, 10), 1.5, None, "-1, 0, 5, 10"),
        ((0, 0, 101, 10), 1.5, None, "100x50"),
        ((0, 0, 10, 10), 0.99, None, "0.99"),
        ((0, 0, 10, 10), 101, None, "101"),
        ((0, 0, 10, 10), math.nan, None, "nan"),
        ((0, 0, 10, 10), 1.5, 0, r"megapixels.*\b0\b"),
        ((0, 0, 10, 10), 1.5, -1, "-1"),
        ((0, 0, 10, 10), 1.5, 16.5, "16.5"),
        ((0, 0, 10, 10), 1.5, math.nan, "nan"),
        ((0, 0, 10, 10), 1.5, math.inf, "inf"),
    ],
)
def test_plan_errors(
    region: tuple[int, int, int, int], context: float, megapixels: float | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        plan_crop(Extent(100, 50), Box(*region), NANO_BUCKETS, context, megapixels)


def test_bucket_tables() -> None:
    assert len(KONTEXT_BUCKETS.sizes) == 17
    assert len(set(KONTEXT_BUCKETS.sizes)) == 17
    for buckets, area in ((KONTEXT_BUCKETS, 1024 * 1024), (NANO_BUCKETS, 16384)):
        for w, h in buckets.sizes:
            assert (h, w) in buckets.sizes
            assert w % buckets.multiple == h % buckets.multiple == 0
            assert abs(w * h / area - 1) < 0.08


@settings(max_examples=60, deadline=None)
@given(BUCKETS, st.floats(0.02, 2))
def test_scaled_buckets_have_about_the_asked_area(buckets: Buckets, megapixels: float) -> None:
    for size in buckets.scaled(megapixels):
        w, h = size
        slack = (1 + buckets.multiple / 2 / w) * (1 + buckets.multiple / 2 / h) + 0.02
        assert 1 / slack / slack < size.area / (megapixels * 1e6) < slack * slack


def test_box_arithmetic() -> None:
    box = Box(1, 2, 5, 10)
    assert (box.extent, box.center) == ((4, 8), (3.0, 6.0))
    assert box.moved(10, -2) == (11, 0, 15, 8)
    assert box.intersection(Box(3, 0, 20, 4)) == (3, 2, 5, 4)
    assert box.contains(box)
    assert not box.contains(box.moved(1, 0))
    assert str(Extent(3, 4)) == "3x4"
    plan = CropPlan(Extent(4, 4), Box(0, 0, 1, 1), Box(-2, -1, 6, 7), Extent(16, 16))
    assert (plan.padding, plan.scale) == ((2, 1, 2, 3), 2.0)
