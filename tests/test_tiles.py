"""Overlapping tiles that share one process: the weights add up, and a single tile changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from refiner_core.images.geometry import Box, CropPlan, Extent, plan_native_crop
from refiner_core.models.kontext import Conditioning, Denoiser
from refiner_core.models.tiles import TileCaches, TiledDenoiser, Tiling, tile_starts
from refiner_core.nano.nano_engine import load_nano
from refiner_core.nano.tile_inputs import with_draft_tone
from refiner_core.recipes.recipe import NANO_TILES
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from tests.synthetic import zero_text


@pytest.mark.parametrize(
    ("length", "side", "starts"),
    [(10, 16, [0]), (16, 16, [0]), (17, 16, [0, 1]), (28, 16, [0, 12]), (40, 16, [0, 12, 24])],
)
def test_tiles_cover_a_side_evenly(length: int, side: int, starts: list[int]) -> None:
    assert tile_starts(length, side) == starts


@pytest.mark.parametrize("size", [(16, 16), (12, 40), (33, 47), (90, 16)])
def test_the_weights_of_overlapping_tiles_add_up_to_one(size: tuple[int, int]) -> None:
    tiling = Tiling(*size, 16)
    everywhere = torch.ones(2, 3, *size)
    total = torch.zeros_like(everywhere)
    for tiles in tiling.chunks(2):
        tiling.add(total, tiling.cut(everywhere, tiles), tiles)
    torch.testing.assert_close(total, everywhere)


def test_neighbouring_tiles_overlap_by_a_quarter_or_more() -> None:
    for length in range(17, 200):
        starts = tile_starts(length, 16)
        assert starts[0] == 0
        assert starts[-1] == length - 16
        assert max(b - a for a, b in zip(starts, starts[1:], strict=False)) <= 12


def conditioning(size: tuple[int, int], batch: int = 1) -> Conditioning:
    g = torch.Generator().manual_seed(1)
    references = tuple(torch.randn(batch, 16, *size, generator=g) for _ in range(2))
    return Conditioning(references, (1, 2), *zero_text(load_nano().model, batch))


def noise(size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(2))


def denoisers(side: int) -> tuple[Denoiser, TiledDenoiser]:
    model, caches = load_nano().model, TileCaches()
    return Denoiser(model, "one way"), TiledDenoiser(
        Denoiser(model, "one way", caches), side, caches
    )


def test_one_tile_that_covers_everything_is_the_single_crop() -> None:
    plain, tiled = denoisers(16)
    c, x = conditioning((12, 16), 2), noise((12, 16), 2)
    for level in (1.0, 0.9):
        sigma = torch.full((2,), level)
        wanted = plain(x, sigma, conditioning=c)
        torch.testing.assert_close(tiled(x, sigma, conditioning=c), wanted, rtol=1e-4, atol=1e-5)


def test_cached_tiles_are_those_that_are_computed_anew() -> None:
    _, tiled = denoisers(8)
    c, x = conditioning((20, 12)), noise((20, 12))
    first = tiled(x, torch.tensor([0.9]), conditioning=c)
    tiled(x, torch.tensor([0.5]), conditioning=c)
    torch.testing.assert_close(tiled(x, torch.tensor([0.9]), conditioning=c), first)
    _, anew = denoisers(8)
    torch.testing.assert_close(anew(x, torch.tensor([0.9]), conditioning=c), first)


def test_memory_is_bounded_by_the_tiles_of_one_pass() -> None:
    rows: list[int] = []

    def counted(x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        assert len(sigma) == len(x) == len(conditioning.references[0])
        rows.append(len(x))
        return x

    x = noise((512, 512))
    c = replace(conditioning((8, 8)), references=(x, x))
    fused = TiledDenoiser(counted, 16)(x, torch.ones(1), conditioning=c)
    torch.testing.assert_close(fused, x)
    assert max(rows) <= 16
    assert sum(rows) == len(tile_starts(512, 16)) ** 2


def test_references_of_another_size_have_no_tiles() -> None:
    plain, tiled = denoisers(8)
    c, x = conditioning((12, 12)), noise((16, 16))
    sigma = torch.ones(1)
    assert torch.equal(tiled(x, sigma, conditioning=c), plain(x, sigma, conditioning=c))


@pytest.mark.parametrize(
    ("image", "shown", "megapixels", "target"),
    [
        ((640, 480), (100, 100, 300, 200), None, (232, 136)),
        ((640, 480), (100, 100, 110, 110), None, (64, 64)),
        ((50, 40), (5, 5, 40, 30), None, (72, 64)),
        ((4000, 4000), (100, 100, 2100, 2100), None, (2032, 2032)),
        ((4000, 4000), (100, 100, 3100, 3100), None, (1520, 1520)),
        ((2000, 2000), (100, 100, 1100, 1100), 0.3, (520, 520)),
    ],
)
def test_a_crop_for_tiles_has_the_resolution_of_the_draft(
    image: tuple[int, int],
    shown: tuple[int, int, int, int],
    megapixels: float | None,
    target: tuple[int, int],
) -> None:
    box = Box(*shown)
    plan = plan_native_crop(CropPlan(Extent(*image), box, box, box.extent), box, 64, megapixels)
    assert plan.target == target
    assert plan.box.contains(box)
    width, height = plan.box.extent
    assert (width % plan.target.width, height % plan.target.height) == (0, 0)


def test_the_draft_is_shown_with_the_detail_of_the_reference_and_its_own_tone() -> None:
    g = torch.Generator().manual_seed(3)
    reference = torch.rand(1, 3, 64, 64, generator=g) * 0.5
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    shown = with_draft_tone(reference + 0.25, reference, mask)
    torch.testing.assert_close(shown, reference + 0.25)
    other = torch.rand(1, 3, 64, 64, generator=g)
    outside = (mask == 0).expand_as(other)
    assert torch.equal(with_draft_tone(other, reference, mask)[outside], other[outside])


def picture_of(size: tuple[int, int]) -> Tensor:
    """Coloured squares of different sizes, uint8 1 3 h w."""
    g = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=g)
    fine = torch.rand(1, 3, size[0] // 4, size[1] // 4, generator=g)
    parts = [torch.nn.functional.interpolate(x, size) for x in (coarse, fine)]
    return ((0.7 * parts[0] + 0.3 * parts[1]) * 255).round().byte()


def test_a_region_is_repaired_at_the_resolution_of_the_draft() -> None:
    truth = picture_of((192, 256))
    draft = truth.clone()
    draft[..., 48:144, 64:192] = draft[..., 48:144, 64:192].float().mean().byte()
    mask = torch.zeros(1, 1, 192, 256)
    mask[..., 48:144, 64:192] = 1
    request = RefineRequest(draft, (truth,), mask, (mask,), RefineOptions(seed=1, align=True))
    result = refine(load_nano(recipe=NANO_TILES), request)
    outside = mask.expand_as(draft) == 0
    assert result.report["regions"][0]["scale"] == 1
    assert torch.equal(result.image[outside], draft[outside])
    error = (result.image.float() - truth).square().mean()
    assert error < (draft.float() - truth).square().mean()
