"""Boxes as text and in pixels, the regions they make, and masks built of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refiner_core.images.boxes import (
    BoxPair,
    RelativeBox,
    RelativeQuad,
    box_regions,
    format_boxes,
    parse_boxes,
    reference_box_mask,
)
from refiner_core.images.geometry import Box, Extent
from refiner_core.images.shapes import RelativePainting, Stroke
from refiner_core.matching.outline import is_upright, quadrilateral
from refiner_core.repair.mask_building import MaskOptions, build_mask, grown_boxes, reference_mask

HALF = RelativeBox(0.25, 0.25, 0.75, 0.75)
fractions = st.floats(0, 1, allow_nan=False)
boxes = st.tuples(fractions, fractions, fractions, fractions).map(
    lambda v: RelativeBox(min(v[0], v[1]), min(v[2], v[3]), max(v[0], v[1]), max(v[2], v[3]))
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON.* 1"),
        ('{"draft": 1}', "dict"),
        ("[1]", "1 .*draft"),
        ('[{"reference": [0, 0, 1, 1]}]', "1 .*draft"),
        ('[{"draft": [0, 0, 1, 1], "colour": 1}]', "1 .*colour"),
        ('[{"draft": [0, 0, 1]}]', r"1 .*draft .*\[0, 0, 1\]"),
        ('[{"draft": [0, 0, 1, true]}]', "1 .*draft .*True"),
        ('[{"draft": [0, 0, 1, 1.5]}]', "1 .*draft .*1.5"),
        ('[{"draft": [0, 0, 1, NaN]}]', "1 .*draft .*nan"),
        ('[{"draft": [0, 0, 1, 1]}, {"draft": [0.5, 0.2, 0.5, 0.4]}]', "2 .*draft .*0.5, 0.4"),
        ('[{"draft": [0, 0, 1, 1], "reference": [0, 1, 1, 0]}]', "1 .*reference .*1, 1, 0"),
        ('[{"draft": [[0, 0], [1, 0], [1, 1]]}]', r"1 .*draft .*\[\[0, 0\], \[1, 0\], \[1, 1\]\]"),
        ('[{"draft": [[0, 0], [1, 0], [1, 1], [0, "1"]]}]', "1 .*draft .*'1'"),
        ('[{"draft": [[0, 0], [1, 0], [1, 1], 0]}]', "1 .*draft .*0"),
        ('[{"draft": [[0, 0], [1, 0], [1, 2], [0, 1]]}]', "1 .*draft .*2"),
        ('[{"draft": [[0, 0], [1, 1], [1, 0], [0, 1]]}]', r"1 .*draft .*\[1, 1\], \[1, 0\]"),
        ('[{"draft": [[0, 0], [1, 0], [0.1, 0.1], [0, 1]]}]', r"1 .*draft .*\[0.1, 0.1\]"),
        (json.dumps([{"draft": [0, 0, 1, 1]}] * 100), "100 .*64"),
        ('[{"draft": {"strokes": 1}}]', "1 .*draft .*strokes"),
        ('[{"draft": {"strokes": [], "colour": 1}}]', "1 .*draft .*colour"),
        ('[{"draft": {"strokes": []}}]', "1 .*draft"),
        ('[{"draft": {"strokes": [{"size": 0.1, "points": []}]}}]', "1 .*draft .*points"),
        ('[{"draft": {"strokes": [{"size": 0, "points": [[0, 0]]}]}}]', "1 .*draft .* 0"),
        ('[{"draft": {"strokes": [{"size": 0.1, "points": [[0, 1.5]]}]}}]', "1 .*draft .*1.5"),
        ('[{"draft": {"strokes": [{"size": 0.1, "points": [[0, 0]], "erase": 1}]}}]', "1 .*draft"),
        (
            '[{"draft": {"strokes": [{"size": 0.1, "points": [[0, 0]], "erase": true}]}}]',
            "1 .*draft",
        ),
    ],
)
def test_text_that_is_not_a_list_of_boxes(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_boxes(text)


@pytest.mark.parametrize("text", [None, "", "  ", "[]"])
def test_no_boxes(text: str | None) -> None:
    assert parse_boxes(text) == ()


@given(st.lists(boxes.filter(lambda b: b.x0 < b.x1 and b.y0 < b.y1), max_size=5))
def test_text_round_trip(drawn: list[RelativeBox]) -> None:
    pairs = tuple(BoxPair(b, None if i % 2 else b) for i, b in enumerate(drawn))
    assert parse_boxes(format_boxes(pairs)) == pairs


TURNED = RelativeQuad(((0.5, 0.2), (0.8, 0.5), (0.5, 0.8), (0.2, 0.5)))
TILTED = RelativeQuad(((0.3, 0.2), (0.7, 0.3), (0.65, 0.8), (0.25, 0.7)))


def test_outlines_are_text_and_old_text_is_boxes() -> None:
    pairs = (BoxPair(TURNED, TILTED), BoxPair(HALF, TURNED), BoxPair(TILTED, HALF), BoxPair(TURNED))
    assert parse_boxes(format_boxes(pairs)) == pairs
    text = '[{"draft": [[0.5, 0.2], [0.8, 0.5], [0.5, 0.8], [0.2, 0.5]], "reference": null}]'
    assert parse_boxes(text) == (BoxPair(TURNED),)


@pytest.mark.parametrize("outline", [TURNED, TILTED, RelativeQuad(TILTED.corners[::-1])])
def test_an_outline_covers_its_area_and_is_found_again(outline: RelativeQuad) -> None:
    size = Extent(400, 200)
    covered = outline.cover(size, Box(0, 0, *size))
    points = torch.tensor(outline.corners, dtype=torch.float64) * torch.tensor(size)
    x, y = points.T
    area = float((x * y.roll(-1) - x.roll(-1) * y).sum().abs() / 2)
    assert float(covered.sum()) == pytest.approx(area, rel=0.01)
    found = quadrilateral(covered)
    assert found is not None and not is_upright(found)
    corners = torch.from_numpy(found) + torch.tensor(size) / 2
    assert float(torch.cdist(points, corners).amin(1).max()) < 0.5  # px
    part = outline.pixels(size)
    inside = covered[..., part.y0 : part.y1, part.x0 : part.x1]
    assert torch.equal(outline.cover(size, part), inside) and inside.sum() == covered.sum()


def test_an_upright_outline_is_the_box_and_a_sliver_is_not_nothing() -> None:
    size = Extent(40, 20)
    upright = RelativeQuad(((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)))
    whole = Box(0, 0, *size)
    assert torch.equal(upright.cover(size, whole), HALF.cover(size, whole))
    sliver = RelativeQuad(((0.5, 0.5), (0.502, 0.5), (0.502, 0.503), (0.5, 0.502)))
    assert float(sliver.cover(size, whole).sum()) > 0
    (region,) = box_regions((BoxPair(TURNED),), size)
    assert 0 < float(region.mask.mean()) < 0.6 and region.box == TURNED.pixels(size)


def test_outlines_grow_and_shrink_and_stay_outlines() -> None:
    size = Extent(100, 100)
    (grown,) = grown_boxes((BoxPair(TURNED),), size, 5)
    assert isinstance(grown.draft, RelativeQuad)
    step = 0.05 * 2**0.5  # a side that moves by 5 px takes its corner along the diagonal
    expected = [(0.5, 0.2 - step), (0.8 + step, 0.5), (0.5, 0.8 + step), (0.2 - step, 0.5)]
    assert [v for c in grown.draft.corners for v in c] == pytest.approx(
        [v for c in expected for v in c]
    )
    assert grown.draft.grown(-5, size).corners[0] == pytest.approx((0.5, 0.2))
    assert all(0 <= v <= 1 for c in TURNED.grown(60, size).corners for v in c)
    with pytest.raises(ValueError, match="30"):
        TURNED.grown(-30, size)


PAINTED = RelativePainting(
    (
        Stroke(((0.2, 0.5), (0.6, 0.5)), 0.1),
        Stroke(((0.6, 0.5), (0.6, 0.5)), 0.05, erase=True),
        Stroke(((0.8, 0.25),), 0.02),
    )
)


def test_paintings_are_text() -> None:
    pairs = (BoxPair(PAINTED, HALF), BoxPair(HALF, RelativePainting(PAINTED.strokes, TILTED)))
    assert parse_boxes(format_boxes(pairs)) == pairs
    text = '[{"draft": {"strokes": [{"size": 0.5, "points": [[0.5, 1]]}], "from": [0, 0, 1, 0.5]}}]'
    (pair,) = parse_boxes(text)
    assert pair.draft == RelativePainting((Stroke(((0.5, 1.0),), 0.5),), RelativeBox(0, 0, 1, 0.5))


def test_a_painting_covers_what_the_brush_touched() -> None:
    size = Extent(400, 200)
    whole = Box(0, 0, *size)
    covered = PAINTED.cover(size, whole)
    at = {(100, 100): 1, (100, 118): 1, (100, 122): 0, (239, 100): 0, (320, 50): 1, (330, 50): 0}
    assert {(x, y): float(covered[0, 0, y, x]) for x, y in at} == at
    bar, ends, erased, dot = 160 * 40, math.pi * 20**2, math.pi * 10**2, math.pi * 4**2
    assert float(covered.sum()) == pytest.approx(bar + ends - erased + dot, rel=0.01)
    part = PAINTED.pixels(size)
    inside = covered[..., part.y0 : part.y1, part.x0 : part.x1]
    assert (
        torch.equal(PAINTED.cover(size, part), inside) and (inside > 0).sum() == (covered > 0).sum()
    )
    (region,) = box_regions((BoxPair(PAINTED),), size)
    assert PAINTED.pixels(size) == region.box
    assert region.box == Box(60, 46, 324, 120)
    erasing = (Stroke(((0.5, 0.5),), 0.1, erase=True),)
    left = RelativePainting(erasing, HALF).cover(size, whole)
    assert float(left.sum()) == pytest.approx(200 * 100 - math.pi * 20**2, rel=0.01)
    (region,) = box_regions((BoxPair(RelativePainting(erasing, HALF)),), size)
    assert region.mask[0, 0, 50, 100] == 0, "the hole is meant"
    dot = Stroke(((0.8, 0.25),), 0.02)
    gone = RelativePainting((Stroke(((0.2, 0.5),), 0.1), dot, dot._replace(erase=True)))
    assert float(gone.cover(size, whole)[..., 280:].sum()) == 0


def test_paintings_grow_and_shrink() -> None:
    size = Extent(400, 200)
    whole = Box(0, 0, *size)
    (grown,) = grown_boxes((BoxPair(PAINTED),), size, 4)
    covered = grown.draft.cover(size, whole)
    at = {(100, 123): 1, (100, 125): 0, (239, 107): 1, (239, 100): 0}
    assert {(x, y): float(covered[0, 0, y, x]) for x, y in at} == at
    (shrunk,) = grown_boxes((BoxPair(RelativePainting((), HALF)),), size, -10)
    assert shrunk.draft.pixels(size) == Box(110, 60, 290, 140)
    with pytest.raises(ValueError, match="30"):
        grown_boxes((BoxPair(PAINTED),), size, -30)


@given(boxes, st.integers(1, 5000), st.integers(1, 5000))
def test_pixels_lie_inside_and_have_area(box: RelativeBox, width: int, height: int) -> None:
    pixels = box.pixels(Extent(width, height))
    assert Box(0, 0, width, height).contains(pixels) and min(pixels.extent) >= 1


def test_a_mask_narrows_a_box_it_reaches_and_no_other() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 12:15, 12:17] = 0.5
    mask[..., 30:, 30:] = 1  # touches no box
    pairs = (BoxPair(HALF), BoxPair(RelativeBox(0, 0, 0.2, 0.2)))
    narrowed, whole = box_regions(pairs, Extent(40, 40), mask)
    assert narrowed.box == Box(12, 12, 17, 15) and float(narrowed.mask.max()) == 0.5
    assert whole.box == Box(0, 0, 8, 8) and bool((whole.mask == 1).all())


@pytest.mark.parametrize(
    ("grow", "box"),
    [(0, (10, 10, 30, 30)), (3, (7, 7, 33, 33)), (-4, (14, 14, 26, 26)), (20, (0, 0, 40, 40))],
)
def test_boxes_grow_and_shrink(grow: int, box: tuple[int, ...]) -> None:
    (region,) = box_regions((BoxPair(HALF),), Extent(40, 40), grow_pixels=grow)
    assert region.box == Box(*box)
    assert grown_boxes((BoxPair(HALF),), Extent(40, 40), grow)[0].draft.pixels(
        Extent(40, 40)
    ) == Box(*box)


def test_shrinking_a_box_away_says_so() -> None:
    with pytest.raises(ValueError, match="-10"):
        box_regions((BoxPair(HALF),), Extent(40, 40), grow_pixels=-10)


def test_reference_masks() -> None:
    size = Extent(20, 10)
    painted = torch.zeros(1, 1, 10, 20)
    painted[..., 4, 8] = 1
    assert float(reference_box_mask(HALF, size, None).sum()) == 10 * 5
    assert float(reference_box_mask(HALF, size, painted).sum()) == 1
    assert reference_mask((BoxPair(HALF),), size) is None
    both = reference_mask((BoxPair(HALF, HALF), BoxPair(HALF, RelativeBox(0, 0, 1, 0.1))), size)
    assert both is not None and float(both.sum()) == 10 * 5 + 20


def test_mask_of_paint_boxes_and_difference() -> None:
    image = torch.zeros(1, 3, 40, 40)
    other = image.clone()
    other[..., 30:38, 30:38] = 1
    painted = torch.zeros(1, 1, 40, 40)
    painted[..., 0:4, 0:4] = 1
    pairs = (BoxPair(RelativeBox(0.5, 0, 0.6, 0.1)),)
    options = MaskOptions(align=False, smallest=1)
    built = build_mask(image, painted, other, pairs, options)
    assert built[0, 0, 2, 2] == 1 and built[0, 0, 2, 21] == 1 and built[0, 0, 34, 34] == 1
    assert built[0, 0, 20, 20] == 0
    inverted = build_mask(
        image, painted, other, pairs, MaskOptions(align=False, smallest=1, invert=True)
    )
    assert torch.equal(inverted, 1 - built)


def test_mask_refusals() -> None:
    image = torch.zeros(1, 3, 40, 40)
    with pytest.raises(ValueError, match="mask"):
        build_mask(image)
    with pytest.raises(ValueError, match="20x20.*40x40"):
        build_mask(image, torch.ones(1, 1, 20, 20))
