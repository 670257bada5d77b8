"""Finding the detail and laying it over the draft, on pictures with planted motion, light and steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.images.crop import box_region
from refiner_core.images.filters import blur, wide_blur
from refiner_core.images.geometry import Box, Extent
from refiner_core.images.masks import Region
from refiner_core.matching import detail_transfer
from refiner_core.matching.detail_transfer import transfer_detail
from refiner_core.matching.find_detail import FoundDetail, find_detail
from refiner_core.matching.surface_fit import SurfaceMatcher
from refiner_core.matching.surface_map import SurfaceMap, box_to_box, warp_surface
from refiner_core.matching.tone import (
    SAME_LIT_SURFACE,
    continued,
    keep_light,
    low_frequency_step,
    membrane,
    relight,
    rim_of,
    tone_gain,
)

_BOX = Box(60, 50, 180, 140)


def _print(seed: int, height: int, width: int) -> Tensor:
    """A picture full of coloured shapes, 1 3 h w."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 10, width // 10, generator=rng)
    shapes = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    fine = F.interpolate(
        torch.rand(1, 3, height // 4, width // 4, generator=rng), (height, width), mode="bilinear"
    )
    return blur(((shapes > 0.5).float() * 0.7 + 0.3 * fine).clamp(0, 1), 0.8)


def _mask(height: int, width: int, box: Box) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., box.y0 : box.y1, box.x0 : box.x1] = 1
    return mask


_REGION = Region(_BOX, torch.ones(1, 1, *_BOX.extent[::-1]))


def _planted(
    bend: list[list[float]], turn: float, zoom: float
) -> tuple[Tensor, Tensor, SurfaceMap]:
    """Draft and reference of which the draft is the view under the map that comes with them."""
    reference = _print(1, 300, 340)
    size = Extent(340, 300)
    surface = box_to_box(_BOX, Box(110, 100, 230, 190), size, turn, zoom)
    surface = surface.bent(torch.tensor(bend, dtype=torch.float64))
    draft, _ = warp_surface(reference, surface, Box(0, 0, 240, 190), Extent(240, 190), "bicubic")
    return draft.clamp(0, 1), reference, surface


def _error(found: SurfaceMap, true: SurfaceMap, size: Extent) -> float:
    """Largest distance of the two maps over the region, px of the draft."""
    x = torch.linspace(_BOX.x0, _BOX.x1, 7).double().repeat(7)
    y = torch.linspace(_BOX.y0, _BOX.y1, 7).double().repeat_interleave(7)
    apart = (found(x, y) - true(x, y)) * torch.tensor(size, dtype=torch.float64) / 2
    return float(apart.norm(dim=-1).max()) / abs(true.zoom(size))


_FLAT = [[0.0, 0.0]] * 6
_CURVED = [[0.03, -0.02], [0.0, 0.0], [0.0, 0.0], [0.06, 0.02], [0.0, 0.04], [-0.03, 0.05]]


@pytest.mark.parametrize(
    ("bend", "turn", "zoom"), [(_FLAT, 0, 1.0), (_FLAT, 14, 1.15), (_CURVED, -6, 0.95)]
)
def test_a_planted_motion_is_found_though_the_inside_is_blurred(
    bend: list[list[float]], turn: float, zoom: float
) -> None:
    draft, reference, true = _planted(bend, turn, zoom)
    mask = _mask(190, 240, _BOX)
    broken = draft * (1 - mask) + blur(draft, 3.0) * mask
    found = find_detail(broken, _REGION, reference, _mask(300, 340, Box(108, 104, 236, 192)))
    assert found.sure
    assert _error(found.surface, true, Extent(340, 300)) < 1.5


@pytest.mark.slow
def test_the_whole_reference_is_searched_without_a_mask_on_it() -> None:
    reference = _print(2, 400, 480) * 0.2 + 0.4
    detail = Box(300, 240, 380, 300)
    reference[..., 240:300, 300:380] = _print(3, 60, 80)
    size = Extent(480, 400)
    true = box_to_box(_BOX, detail, size, 20)
    draft, _ = warp_surface(reference, true, Box(0, 0, 240, 190), Extent(240, 190), "bicubic")
    found = find_detail(draft.clamp(0, 1), _REGION, reference, None)
    assert found.sure and found.searched
    assert _error(found.surface, true, size) < 2
    assert abs(found.surface.turn(size) - 20) < 2


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_a_reference_without_the_detail_is_not_believed(marked: bool) -> None:
    draft, _, _ = _planted(_FLAT, 0, 1.0)
    reference = _print(9, 300, 340)
    mask = _mask(300, 340, Box(110, 100, 230, 190)) if marked else None
    assert not find_detail(draft, _REGION, reference, mask).sure


def test_beyond_the_mark_in_the_reference_the_drafts_surface_stays_but_no_wrong_detail() -> None:
    _, reference, surface = _planted(_FLAT, 0, 1.0)
    faint = 0.15 * reference + 0.5
    surface_only, left = torch.full((1, 3, 190, 240), 0.57), Box(110, 100, 170, 190)
    wrong = surface_only.clone()
    wrong[..., 70:120, 130:160] = 0.0

    def shown(draft: Tensor, detail: Box | None) -> Tensor:
        return transfer_detail(draft, _REGION, faint, surface, detail).part(_BOX)[1]

    assert float(shown(surface_only, None).mean()) > 0.9
    assert float(shown(surface_only, left)[..., 20:40].mean()) > 0.9
    assert float(shown(surface_only, left)[..., 80:].mean()) < 0.1
    assert float(shown(wrong, left)[..., 25:65, 75:95].mean()) > 0.9


def test_a_part_of_the_reference_gives_the_same_picture() -> None:
    _, reference, surface = _planted(_CURVED, 5, 1.0)
    part = Box(20, 30, 320, 280)
    window = Box(70, 60, 170, 130)
    whole, _ = warp_surface(reference, surface, window, window.extent)
    cut = reference[..., part.y0 : part.y1, part.x0 : part.x1]
    same, _ = warp_surface(cut, surface.within(part, Extent(340, 300)), window, window.extent)
    assert torch.allclose(whole, same, atol=1e-4)


def test_tone_takes_a_planted_light_out() -> None:
    truth, mask = _print(4, 120, 160) * 0.6 + 0.2, _mask(120, 160, Box(30, 30, 130, 90))
    light = torch.linspace(-0.4, 0.3, 160).reshape(1, 1, 1, -1) * torch.ones(1, 3, 1, 1)
    reference = relight(truth, -light)
    draft = truth * (1 - mask) + blur(truth, 2.0) * mask
    gain = tone_gain(reference, draft, mask, torch.ones_like(mask))
    before = float(((reference - truth) * mask).square().mean())
    after = float(((relight(reference, gain) - truth) * mask).square().mean())
    assert after < before / 8


def test_membrane_continues_a_constant_step_exactly_and_a_ramp_nearly() -> None:
    mask = _mask(80, 80, Box(20, 20, 60, 60))
    rim = rim_of(mask)
    step = torch.full((1, 3, 80, 80), 0.04)
    assert torch.allclose(membrane(step, rim), step, atol=1e-4)
    ramp = torch.linspace(-0.04, 0.04, 80).reshape(1, 1, 1, -1).expand(1, 3, 80, 80)
    inside = (membrane(ramp, rim) - ramp)[..., 20:60, 20:60].abs()
    assert float(inside.max()) < 0.01
    assert float(membrane(step, torch.zeros_like(rim)).abs().max()) == 0


def test_print_across_the_rim_does_not_tint_the_inside() -> None:
    """Lettering that the draft shows on the rim and the reference elsewhere is no light."""
    mask = _mask(120, 160, Box(30, 30, 130, 90))
    rim = rim_of(mask)
    difference = torch.zeros(1, 3, 120, 160)
    letters = (torch.arange(120) // 6 % 2).float()[:, None]
    difference[:, 2, :, 130:] = -0.1 * letters
    inside = membrane(difference, rim, SAME_LIT_SURFACE)[..., 40:80, 90:120].abs()
    assert float(inside.max()) < 0.01
    light = torch.full_like(difference, 0.04)
    assert torch.allclose(membrane(light, rim, SAME_LIT_SURFACE), light, atol=1e-4)


def test_a_damaged_draft_keeps_its_shadows() -> None:
    truth, mask = _print(4, 120, 160) * 0.6 + 0.2, _mask(120, 160, Box(30, 30, 130, 90))
    spot = blur(_mask(120, 160, Box(70, 50, 90, 70)), 8.0)
    shaded = blur(truth * (1 - 0.4 * spot), 2.0)
    step = low_frequency_step(truth, shaded, mask)
    before = float(((shaded - truth) * spot).mean())
    assert abs(float(((shaded - truth - step) * spot).mean())) < abs(before) / 3
    assert float((step * (1 - mask)).abs().max()) == 0


def test_a_model_changes_detail_but_not_the_light_of_a_transferred_reference() -> None:
    mask = _mask(120, 160, Box(30, 30, 130, 90))
    truth = _print(4, 120, 160) * 0.6 + 0.2
    detail = torch.zeros_like(truth)
    detail[..., ::2] = 0.02
    detail[..., 1::2] = -0.02
    cast = torch.tensor([0.06, -0.04, 0.02])[None, :, None, None]
    kept = keep_light(truth + detail + cast, truth, mask)
    inside = (kept - truth - detail)[..., 34:86, 34:126].abs()
    assert float(inside.max()) < 0.003
    outside = mask.expand_as(truth) == 0
    assert torch.equal(kept[outside], (truth + detail + cast).clamp(0, 1)[outside])


@pytest.mark.parametrize("other", ["another detail", "nothing"])
def test_shapes_of_a_wrong_draft_do_not_shine_through(other: str) -> None:
    truth, mask = _print(4, 120, 160), _mask(120, 160, Box(30, 30, 130, 90))
    wrong = blur(truth.flip(3), 2.0) if other == "another detail" else torch.full_like(truth, 0.5)
    step = low_frequency_step(truth, wrong, mask)
    assert float(step.abs().max()) < 0.04


def test_values_known_at_one_place_are_continued_everywhere() -> None:
    known, weight = torch.full((1, 3, 40, 40), 0.3), torch.zeros(1, 1, 40, 40)
    known[..., 10:, :] = 0.9
    weight[..., :3, 5:9] = 1
    assert torch.allclose(continued(known, weight), torch.full_like(known, 0.3), atol=1e-4)


@pytest.mark.slow
def test_the_surroundings_decide_where_the_inside_is_shifted() -> None:
    draft, reference, true = _planted(_FLAT, 0, 1.0)
    b, shift = _BOX, 18
    shifted = draft.clone()
    inside = draft[..., b.y0 : b.y1, b.x0 : b.x1]
    shifted[..., b.y0 : b.y1, b.x0 : b.x1] = inside.roll(shift, 3)
    found = find_detail(shifted, _REGION, reference, _mask(300, 340, Box(110, 100, 230, 190)))
    assert _error(found.surface, true, Extent(340, 300)) < 2


def _transferred(light: float) -> tuple[Tensor, Tensor, Tensor]:
    """Truth, draft, and the draft with its detail transferred."""
    truth, reference, _ = _planted(_CURVED, 4, 1.0)
    mask = _mask(190, 240, _BOX)
    broken = truth * (1 - mask) + blur(truth, 3.0) * mask
    found = find_detail(broken, _REGION, reference, _mask(300, 340, Box(110, 100, 230, 190)))
    lit = reference * light
    picture, _ = transfer_detail(broken, _REGION, lit, found.surface).part(_BOX)
    return truth[..., 50:140, 60:180], broken[..., 50:140, 60:180], picture


@pytest.mark.parametrize("light", [1.0, 0.7])
def test_the_detail_comes_back_sharp_and_in_the_drafts_light(light: float) -> None:
    truth, draft, picture = _transferred(light)

    def error(x: Tensor) -> float:
        return -10 * math.log10(float((x - truth).square().mean()))

    def fine(x: Tensor) -> float:
        return float((x - blur(x, 1.5)).square().mean())

    assert error(picture) > error(draft) + 4
    assert 0.5 < fine(picture) / fine(truth) < 1.5


def test_the_draft_stays_where_the_reference_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, reference, true = _planted(_FLAT, 0, 1.0)
    cut = reference[..., :, 140:]
    surface = true.within(Box(140, 0, 340, 300), Extent(340, 300))
    found = find_detail(truth, _REGION, cut, _mask(300, 200, Box(0, 100, 90, 190)), surface)
    transfer = transfer_detail(truth, _REGION, cut, found.surface)
    picture, shown = transfer.part(_BOX)
    gone = (shown == 0).expand_as(picture)
    assert 0.1 < float(gone.float().mean()) < 0.6
    assert torch.equal(picture[gone], truth[..., 50:140, 60:180][gone])
    monkeypatch.setattr(detail_transfer, "_STRIP", 13)
    in_strips = transfer_detail(truth, _REGION, cut, found.surface)
    assert torch.allclose(in_strips.shown, transfer.shown, atol=1e-6)
    assert torch.allclose(in_strips.picture, transfer.picture, atol=1e-6)


_WHOLE = Box(0, 0, 240, 240)
_BROKEN = Box(60, 60, 180, 180)
_INNER = (..., slice(60, 180), slice(60, 180))


def _blocks(seed: int) -> Tensor:
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(noise, (240, 240), mode="bicubic", align_corners=False).clamp(0, 1)
    return 0.7 * (large > 0.5).float() + 0.3 * large


def _curved(seed: int, turn: float, zoom: float, bend: float) -> tuple[Tensor, Tensor, SurfaceMap]:
    """A picture of 240 px, another of the same thing on a curved surface, and the map to the latter."""
    reference = _blocks(seed)
    flat = box_to_box(_BROKEN, Box(62, 58, 182, 178), Extent(240, 240), turn, zoom)
    coefficients = torch.zeros(6, 2, dtype=torch.float64)
    coefficients[3, 1], coefficients[5, 0] = bend, -bend
    true = flat.bent(coefficients)
    truth, _ = warp_surface(reference, true, _WHOLE, _WHOLE.extent, "bicubic")
    return truth.clamp(0, 1), reference, true


def _found(draft: Tensor, reference: Tensor) -> FoundDetail:
    region = Region(_BROKEN, torch.ones(1, 1, 120, 120))
    return find_detail(draft, region, reference, _mask(240, 240, Box(62, 58, 182, 178)))


def _distance(found: FoundDetail, true: SurfaceMap) -> float:
    """Root mean square distance of two maps over the region, in px of the reference."""
    side = torch.linspace(60, 180, 9, dtype=torch.float64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    apart = (found.surface(x, y) - true(x, y)) * 120
    return float(apart.square().sum(-1).mean().sqrt())


def test_a_soft_detail_is_found_beside_sharp_surroundings() -> None:
    """A reference that is blurred around the region too no longer matches the surroundings."""
    truth, reference, true = _curved(0, 6, 1.08, 0.06)
    draft = truth.clone()
    draft[_INNER] = wide_blur(truth, 8.0)[_INNER]
    assert _distance(_found(draft, reference), true) < 1


def test_a_soft_detail_is_found_without_surroundings() -> None:
    """Sharp edges resemble blurred ones less: the reference has to be as soft as the draft."""
    truth, reference, true = _curved(2, 6, 1.08, 0.06)
    draft = torch.full_like(truth, 0.5)
    draft[_INNER] = wide_blur(truth, 5.0)[_INNER]
    assert _distance(_found(draft, reference), true) < 1.8


@pytest.mark.slow
def test_a_strong_bend_takes_several_fits() -> None:
    truth, reference, true = _curved(1, 10, 1.15, 0.12)
    draft, part = truth.clone(), truth[_INNER]
    swapped = torch.cat([part[..., 60:], part[..., :60]], -1)
    draft[..., 120:180, 60:180] = swapped[..., 60:, :]
    assert _distance(_found(draft, reference), true) < 7


@pytest.mark.parametrize("turn", [0.16, -0.2])
@pytest.mark.parametrize("broken", ["soft", "shuffled"])
def test_a_can_that_is_turned_is_found(turn: float, broken: str) -> None:
    """The edges of its label stay where they are, all between them moves aside."""
    reference = _blocks(1)
    flat = box_to_box(_BROKEN, Box(62, 58, 182, 178), Extent(240, 240))
    bend = torch.zeros(6, 2, dtype=torch.float64)
    bend[0, 0], bend[3, 0] = turn, -turn
    true = flat.bent(bend)
    truth, _ = warp_surface(reference, true, _WHOLE, _WHOLE.extent, "bicubic")
    draft, part = truth.clamp(0, 1), truth[_INNER].clamp(0, 1)
    swapped = torch.cat([part[..., 60:], part[..., :60]], -1)
    draft[_INNER] = wide_blur(draft, 6.0)[_INNER] if broken == "soft" else swapped
    assert _distance(_found(draft, reference), true) < 0.5


def test_the_difference_of_two_maps_is_the_bend_between_them() -> None:
    flat = box_to_box(_BROKEN, Box(62, 58, 182, 178), Extent(240, 240))
    bend = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.allclose(flat.bent(bend).difference(flat), bend, atol=1e-9)
    moved = box_to_box(_BROKEN, Box(92, 58, 212, 178), Extent(240, 240))
    expected = torch.zeros(6, 2, dtype=torch.float64)
    expected[0, 0] = 0.5
    assert torch.allclose(moved.difference(flat), expected, atol=1e-9)


def test_marks_count_against_a_place_that_agrees_hardly_better() -> None:
    """Far from the marks counts against a map, but ten times as far not ten times as much."""
    picture = _blocks(0)
    region = Region(_BROKEN, torch.ones(1, 1, 120, 120))
    matcher = SurfaceMatcher(picture, region, picture, Extent(240, 240))
    flat = box_to_box(_BROKEN, _BROKEN, Extent(240, 240))
    near, far = (box_to_box(_BROKEN, _BROKEN.moved(n, 0), Extent(240, 240)) for n in (12, 120))
    costs = [matcher.marked(flat).cost(surface) for surface in (flat, near, far)]
    assert costs[0] < 1e-9 < costs[1] < costs[2] < 10 * costs[1]
    assert costs[1] < 0.01 < costs[2]
    assert [matcher.cost(surface) for surface in (near, far)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "sure", "weak"), [(0.1, False, True), (0.15, True, True), (0.25, True, False)]
)
def test_a_match_of_little_of_the_region_is_weak(share: float, sure: bool, weak: bool) -> None:
    truth, reference, _ = _curved(0, 0, 1, 0)
    draft = torch.full_like(truth, 0.5)
    draft[_INNER] = _blocks(9)[_INNER]
    right = slice(60, 60 + int(120 * math.sqrt(share)))
    draft[..., right, right] = truth[..., right, right]
    found = _found(draft, reference).report()
    assert (found["sure"], found["weak"]) == (sure, weak)


@pytest.mark.parametrize("zoom", [1.6, 2.5])
def test_a_larger_reference_is_reduced_without_a_second_blur(zoom: float) -> None:
    """Print of 3 px to a period keeps most of its contrast at half a pixel's displacement."""
    size = (round(160 * zoom), round(120 * zoom))
    across = torch.arange(size[0]) / zoom + 0.5
    stripes = (0.5 + 0.3 * torch.sin(2 * math.pi * across / 3)).expand(1, 3, size[1], size[0])
    box, draft = Box(30, 30, 130, 90), torch.full((1, 3, 120, 160), 0.5)
    detail = Box(*(round(zoom * edge) for edge in box))
    surface = box_to_box(box, detail, Extent(*size))
    done = transfer_detail(draft, box_region(box), stripes, surface)
    picture, _ = done.part(Box(60, 45, 100, 75))
    assert float(picture.std()) > 0.8 * 0.3 / math.sqrt(2)
