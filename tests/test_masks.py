"""Masks become regions: every painted pixel in exactly one of them, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refiner_core.images.geometry import Box, Extent
from refiner_core.images.masks import (
    Region,
    bounds,
    fill_holes,
    find_regions,
    grow,
    scan_mask,
    whole_region,
)


def mask_of(text: str) -> Tensor:
    """A drawing: `#` on, `.` off, digits tenths."""
    value = {"#": 1.0, ".": 0.0} | {str(d): d / 10 for d in range(10)}
    rows = [[value[c] for c in line.strip()] for line in text.strip().splitlines()]
    return torch.tensor(rows)[None, None]


def painted(regions: list[Region], extent: Extent) -> Tensor:
    out = torch.zeros(1, 1, extent.height, extent.width)
    for r in regions:
        b = r.box
        part = out[..., b.y0 : b.y1, b.x0 : b.x1]
        assert not bool(((part > 0) & (r.mask > 0)).any()), "regions overlap"
        part += r.mask
    return out


@st.composite
def random_masks(draw: st.DrawFn) -> Tensor:
    h, w = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    density = draw(st.sampled_from([0.02, 0.1, 0.5, 1.0]))
    mask = torch.rand(1, 1, h, w, generator=g).clamp_min(0.01)
    mask = mask * (torch.rand(1, 1, h, w, generator=g) < density)
    mask[0, 0, draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))] = 1
    return mask


@settings(max_examples=150, deadline=None)
@given(random_masks(), st.sampled_from([0, 2, 24]), st.booleans())
def test_regions_are_exactly_the_mask(mask: Tensor, merge: int, split: bool) -> None:
    try:
        regions = find_regions(mask, holes=False, merge=merge, split=split)
    except ValueError as e:
        assert "64" in str(e)  # noqa: PT017
        return
    extent = Extent(mask.shape[-1], mask.shape[-2])
    assert torch.equal(painted(regions, extent), mask)
    for r in regions:
        assert r.mask.shape[-2:] == (r.box.extent.height, r.box.extent.width)
        assert bounds(r.mask) == (0, 0, *r.box.extent)
    if not split:
        assert len(regions) == 1
    boxes = [r.box for r in regions]
    assert boxes == sorted(boxes, key=lambda b: (b.y0, b.x0))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            gap = max(a.x0 - b.x1, b.x0 - a.x1, a.y0 - b.y1, b.y0 - a.y1)
            assert gap > merge


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (0, [(0, 0, 2, 2), (5, 0, 6, 2), (12, 0, 13, 1)]),
        (2, [(0, 0, 2, 2), (5, 0, 6, 2), (12, 0, 13, 1)]),
        (3, [(0, 0, 6, 2), (12, 0, 13, 1)]),
        (6, [(0, 0, 13, 2)]),
    ],
)
def test_letters_merge(merge: int, expected: list[tuple[int, int, int, int]]) -> None:
    word = mask_of(
        """
        ##...#......#
        ##...#.......
        .............
        """
    )
    assert [r.box for r in find_regions(word, merge=merge)] == expected


def test_merging_chains_through_the_union() -> None:
    """A ring's box touches what none of its pixels is near to."""
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., 0, :] = mask[..., :, 0] = 1
    mask[..., 40, 40] = 1
    assert len(find_regions(mask, merge=0)) == 1
    assert len(find_regions(mask, merge=0, split=False)) == 1


def test_diagonal_neighbours_are_one_piece() -> None:
    mask = mask_of("#..\n.#.\n..#")
    assert [r.box for r in find_regions(mask, merge=0)] == [(0, 0, 3, 3)]


def test_holes() -> None:
    ring = mask_of("5555\n5..5\n5..5\n5555")
    (filled,) = find_regions(ring)
    (open_,) = find_regions(ring, holes=False)
    assert float(filled.mask[0, 0, 1, 1]) == 1.0
    assert float(filled.mask[0, 0, 0, 0]) == 0.5
    assert torch.equal(open_.mask, ring)
    cup = mask_of("#..#\n#..#\n####")
    assert torch.equal(fill_holes(cup), cup)


def test_smallest_drops_specks() -> None:
    mask = torch.zeros(1, 1, 100, 100)
    mask[..., 10:20, 10:20] = 1
    mask[..., 90, 90] = 1
    assert len(find_regions(mask)) == 2
    assert [r.box for r in find_regions(mask, smallest=2)] == [(10, 10, 20, 20)]
    assert [r.box for r in find_regions(mask, smallest=100)] == [(10, 10, 20, 20)]
    with pytest.raises(ValueError, match=r"\b101\b.*\b100\b"):
        find_regions(mask, smallest=101)


@pytest.mark.parametrize(
    ("pixels", "box"),
    [(3, (7, 7, 18, 18)), (0.5, (10, 10, 15, 15)), (-1, (11, 11, 14, 14)), (-2, (12, 12, 13, 13))],
)
def test_grow(pixels: float, box: tuple[int, int, int, int]) -> None:
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 10:15, 10:15] = 0.5
    (region,) = find_regions(mask, grow_pixels=pixels)
    assert region.box == box
    middle = region.mask[0, 0, region.box.extent.height // 2, region.box.extent.width // 2]
    assert float(middle) == 0.5


def test_grow_is_euclidean() -> None:
    dot = torch.zeros(1, 1, 21, 21)
    dot[..., 10, 10] = 1
    yy, xx = np.mgrid[-10:11, -10:11]
    expected = torch.from_numpy((xx**2 + yy**2 <= 36).astype(np.float32))
    assert torch.equal(grow(dot, 6)[0, 0], expected)


def test_shrinking_leaves_the_pictures_border() -> None:
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., :10, :] = 1
    (region,) = find_regions(mask, grow_pixels=-2)
    assert region.box == (0, 0, 30, 8)
    full = torch.ones(1, 1, 9, 9)
    assert torch.equal(grow(full, -3), full)
    assert torch.equal(grow(full, 3), full)


def test_shrunk_to_nothing() -> None:
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 10:15, 10:15] = 1
    with pytest.raises(ValueError, match="-3"):
        find_regions(mask, grow_pixels=-3)


def test_growing_joins_pieces() -> None:
    mask = mask_of("#......#")
    assert len(find_regions(mask, merge=0)) == 2
    assert len(find_regions(mask, merge=0, grow_pixels=3)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_numbers(value: float) -> None:
    mask = torch.ones(1, 1, 4, 4)
    mask[0, 0, 1, 2] = value
    with pytest.raises(ValueError, match="mask.*NaN"):
        find_regions(mask)


def test_a_number_that_is_none_is_found_far_from_what_is_marked() -> None:
    mask = mask_of("#.......\n........")
    mask[0, 0, 1, 6] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        find_regions(mask)


@pytest.mark.parametrize("grow_pixels", [-1, 0, 2])
def test_a_mask_that_is_read_within_a_box_gives_the_same_regions(grow_pixels: float) -> None:
    mask = torch.zeros(1, 1, 90, 120)
    mask[..., 20:30, 5:15] = mask[..., 60:88, 70:100] = 0.5
    whole = find_regions(mask, grow_pixels=grow_pixels)
    part = find_regions(mask, grow_pixels=grow_pixels, within=bounds(mask))
    assert [r.box for r in part] == [r.box for r in whole] and len(part) == 2
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(part, whole, strict=True))


def test_empty() -> None:
    with pytest.raises(ValueError, match="7x5"):
        find_regions(torch.zeros(1, 1, 5, 7))


def test_too_many() -> None:
    mask = torch.zeros(1, 1, 400, 400)
    mask[..., ::40, ::40] = 1
    with pytest.raises(ValueError, match=r"100 .*64"):
        find_regions(mask)
    assert len(find_regions(mask, split=False)) == 1
    assert len(find_regions(mask, merge=40)) == 1
    assert len(find_regions(mask[..., :320, :320])) == 64


def test_a_noise_mask_is_one_region() -> None:
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, 1, 1000, 1000, generator=g) < 0.05).float()
    assert [r.box.extent for r in find_regions(mask)] == [(1000, 1000)]


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("....\n.##.\n....", (1, 1, 3, 2)),
        ("5...\n...#", (0, 0, 4, 2)),
        ("....\n....", None),
        ("#", (0, 0, 1, 1)),
    ],
)
def test_bounds(drawing: str, expected: Box | None) -> None:
    assert bounds(mask_of(drawing)) == expected


def test_bounds_are_over_the_batch() -> None:
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, 0, 0, 1] = mask[1, 0, 4, 3] = 1
    assert bounds(mask) == (1, 0, 4, 5)


@pytest.mark.parametrize("background", [0.0, -0.0, 0.25])
@pytest.mark.parametrize("rows", [(3,), (0, 99), (31, 32), (40, 70)])
@pytest.mark.parametrize("value", [1.0, -0.5, 300.0, 1e-40, math.inf, -math.inf, math.nan])
def test_one_pass_tells_extremes_and_bounds(
    background: float, rows: tuple[int, ...], value: float
) -> None:
    mask = torch.full((2, 1, 100, 9), background)
    for i, y in enumerate(rows):
        mask[i, 0, y, 2 + 3 * i] = value
    scan = scan_mask(mask)
    expected = torch.stack(torch.aminmax(mask))
    found = torch.tensor([scan.low, scan.high])
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert scan.box == bounds(mask)
    across = mask.transpose(2, 3)
    assert scan_mask(across).box == bounds(across)


def test_whole_region() -> None:
    region = whole_region(Extent(7, 5))
    assert region.box == (0, 0, 7, 5)
    assert torch.equal(region.mask, torch.ones(1, 1, 5, 7))
