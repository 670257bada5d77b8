"""Registration finds known transforms; alignment finds the detail in the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refiner_core.evaluation.held_out_scenes import HeldOutScene, make_scene
from refiner_core.matching import homography as hom
from refiner_core.matching.alignment import align, apply_alignment
from refiner_core.matching.patch_ncc import PatchNcc
from refiner_core.matching.registration import correlation, register
from refiner_core.matching.warping import grid, warp

_EYE = torch.eye(3, dtype=torch.float64)


def scene_at(points: Tensor, seed: int, side: int = 128) -> Tensor:
    """A photo-like texture (amplitudes fall as 1/f) at normalised `points` N 3, exact."""
    g = torch.Generator().manual_seed(seed)
    p = points[:, :2] / points[:, 2:]
    out = torch.zeros(len(p), 3, dtype=torch.float64)
    for _ in range(80):
        cycles = math.exp(float(torch.rand(1, generator=g)) * math.log(side / 6))
        angle = float(torch.rand(1, generator=g)) * 2 * math.pi
        wave = torch.tensor([math.cos(angle), math.sin(angle)]).double() * math.pi * cycles
        phase = float(torch.rand(1, generator=g)) * 2 * math.pi
        color = torch.rand(3, generator=g, dtype=torch.float64)
        out += torch.sin(p @ wave + phase)[:, None] * color / cycles**0.8
    return (0.5 + 0.25 * out / out.std()).clamp(0, 1)


def pair(matrix: Tensor, seed: int, h: int = 112, w: int = 144) -> tuple[Tensor, Tensor]:
    """A picture and the same seen through `matrix` (fixed -> moving)."""
    p = grid(h, w)
    fixed = scene_at(p, seed).T.reshape(1, 3, h, w).float()
    moving = scene_at(p @ torch.linalg.inv(matrix).T, seed).T.reshape(1, 3, h, w).float()
    return fixed, moving


def relit(image: Tensor) -> Tensor:
    h, w = image.shape[-2:]
    ramp = 1 + 0.3 * torch.linspace(-0.5, 0.5, w) + 0.2 * torch.linspace(-0.5, 0.5, h)[:, None]
    tint = torch.tensor([0.8, 0.7, 0.6]).reshape(1, 3, 1, 1)
    return (image * ramp * tint + 0.08).clamp(0, 1)


def most_moved(a: Tensor, b: Tensor, h: int, w: int) -> float:
    """Largest distance in px between two maps over the picture."""
    p = grid(5, 5)
    qa, qb = p @ a.T, p @ b.T
    d = (qa[:, :2] / qa[:, 2:] - qb[:, :2] / qb[:, 2:]) * torch.tensor([w / 2, h / 2])
    return float(d.norm(dim=1).max())


def shift_zoom(dx: float, dy: float, zoom: float, h: int = 112, w: int = 144) -> Tensor:
    m = torch.diag(torch.tensor([zoom, zoom, 1.0], dtype=torch.float64))
    m[0, 2], m[1, 2] = 2 * dx / w, 2 * dy / h
    return m


@pytest.mark.parametrize(
    ("dx", "dy", "zoom"),
    [(0, 0, 1), (3, -2, 1), (0.4, 0.3, 1), (0, 0, 1.02), (-4, 1.5, 0.98), (5, 5, 1.03)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_shift_and_zoom(dx: float, dy: float, zoom: float, seed: int) -> None:
    """Known to a tenth of a pixel, under other light, with the centre broken."""
    truth = shift_zoom(dx, dy, zoom)
    fixed, moving = pair(truth, seed)
    moving = relit(moving)
    g = torch.Generator().manual_seed(seed)
    moving[..., 40:72, 50:94] = torch.rand(1, 3, 32, 44, generator=g)
    weight = torch.ones(1, 1, 112, 144)
    weight[..., 32:80, 42:102] = 0
    found = register(fixed, moving, weight, "shift_zoom", finest=256)
    assert most_moved(found.matrix, truth, 112, 144) < 0.1
    assert found.score > 0.8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_homography(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = hom.corners((-1, -1, 1, 1))
    truth = torch.from_numpy(hom.from_points(box, box * 0.97 + rng.normal(0, 0.04, (4, 2))))
    fixed, moving = pair(truth, seed)
    weight = torch.ones(1, 1, 112, 144)
    found = register(fixed, relit(moving), weight, "homography")
    assert most_moved(found.matrix / found.matrix[2, 2], truth, 112, 144) < 0.3


def test_sizes_may_differ() -> None:
    p = grid(128, 160)
    fixed = scene_at(grid(80, 100), 3).T.reshape(1, 3, 80, 100).float()
    moving = scene_at(p, 3).T.reshape(1, 3, 128, 160).float()
    found = register(fixed, moving, torch.ones(1, 1, 80, 100), "shift_zoom")
    assert most_moved(found.matrix, _EYE, 80, 100) < 0.15


def test_the_best_of_several_starts_wins() -> None:
    truth = shift_zoom(30, 0, 1)
    fixed, moving = pair(truth, 4)
    starts = [shift_zoom(dx, 0, 1) for dx in (-30, 0, 28)]
    found = register(fixed, moving, torch.ones(1, 1, 112, 144), "shift_zoom", starts)
    assert most_moved(found.matrix, truth, 112, 144) < 0.2


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_pictures_give_a_finite_answer(value: float) -> None:
    flat = torch.full((1, 3, 40, 50), value)
    for model in ("shift_zoom", "homography"):
        found = register(flat, flat, torch.ones(1, 1, 40, 50), model)
        assert bool(torch.isfinite(found.matrix).all())
        assert most_moved(found.matrix, _EYE, 40, 50) < 0.5


def test_warp_by_the_identity_is_the_picture() -> None:
    x = torch.rand(2, 3, 20, 30)
    out, inside = warp(x, _EYE, 20, 30)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)
    assert bool((inside == 1).all())
    out, inside = warp(x, shift_zoom(10, 0, 1, 20, 30), 20, 30)
    torch.testing.assert_close(out[..., :20], x[..., 10:], rtol=0, atol=1e-5)
    assert (float(inside[..., :20].min()), float(inside[..., 20:].max())) == (1, 0)


def test_correlation() -> None:
    a = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(2, 1, 8, 8)
    torch.testing.assert_close(correlation(a, 3 * a + 2, weight), torch.ones(2))
    torch.testing.assert_close(correlation(a, -a, weight), -torch.ones(2))
    b = a.clone()
    b[..., :4, :] = 9
    weight[..., :4, :] = 0
    torch.testing.assert_close(correlation(a, b, weight), torch.ones(2))


# --- alignment -----------------------------------------------------------------------------------


def tensors(scene: HeldOutScene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def image(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255

    def mask(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy())[None, None].float() / 255

    return image(scene.draft), mask(scene.mask), image(scene.reference), mask(scene.reference_mask)


def corner_error(scene: HeldOutScene, matrix: Tensor) -> float:
    """How far the mask box's corners land from where they belong, in target px."""
    h, w = scene.mask.shape
    rh, rw = scene.reference_mask.shape
    rows, cols = np.flatnonzero(scene.mask.any(1)), np.flatnonzero(scene.mask.any(0))
    box = hom.corners((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    normal = np.diag([rw / 2, rh / 2, 1]) @ np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    pixels = normal @ matrix.numpy() @ np.array([[2 / w, 0, -1], [0, 2 / h, -1], [0, 0, 1]])
    found = hom.apply(scene.to_target, hom.apply(pixels, box))
    return float(np.linalg.norm(found - box, axis=1).mean())


@pytest.mark.slow
def test_align_on_scenes() -> None:
    errors = []
    for seed in range(8):
        scene = make_scene(seed, (160, 112), (0.5, 0.75), held_out=True, rough_masks=False)
        errors.append(corner_error(scene, align(*tensors(scene)).matrix))
    assert float(np.median(errors)) < 3, errors


def test_apply_alignment_shows_the_reference_in_the_drafts_pose() -> None:
    scene = make_scene(
        4, (160, 112), (0.5, 0.75), rough_masks=False, held_out=True, kind="logo",
        degradation="blur",
    )  # fmt: skip
    draft, mask, reference, reference_mask = tensors(scene)
    found = align(draft, mask, reference, reference_mask)
    view = apply_alignment(reference, found, 112, 160)
    assert view.shape == draft.shape
    target = torch.from_numpy(scene.target.copy()).permute(2, 0, 1)[None].float() / 255
    aligned = float(correlation(view.mean(1, True), target.mean(1, True), mask))
    plain = torch.nn.functional.interpolate(reference, (112, 160), mode="bilinear")
    assert aligned > 0.9
    assert aligned > float(correlation(plain.mean(1, True), target.mean(1, True), mask))


def stroke(kind: str, h: int, w: int, value: float) -> Tensor:
    m = torch.zeros(1, 1, h, w)
    if kind == "pixel":
        m[..., h // 2, w // 2] = value
    elif kind == "full":
        m[:] = value
    elif kind == "row":
        m[..., h // 2, :] = value
    elif kind == "diagonal":
        m[..., torch.arange(min(h, w)), torch.arange(min(h, w))] = value
    elif kind == "triangle":
        m[:] = value * (torch.arange(h)[:, None] >= torch.arange(w)[None, :])
    elif kind == "two dots":
        m[..., 0, 0] = m[..., -1, -1] = value
    else:
        m[..., h // 4 : 3 * h // 4 + 1, w // 4 : 3 * w // 4 + 1] = value
    return m


KINDS = st.sampled_from(["pixel", "full", "row", "diagonal", "triangle", "two dots", "box"])


@settings(max_examples=25, deadline=None)
@given(
    KINDS, KINDS, st.sampled_from([0.05, 0.5, 1.0]), st.integers(8, 40), st.integers(8, 40),
    st.booleans(),
)  # fmt: skip
def test_align_never_raises(
    kind: str, reference_kind: str, value: float, h: int, w: int, flat: bool
) -> None:
    g = torch.Generator().manual_seed(h * 100 + w)
    draft = torch.rand(1, 3, h, w, generator=g)
    reference = torch.rand(1, 3, w + 3, h + 2, generator=g)
    if flat:
        draft, reference = torch.full_like(draft, 0.5), torch.zeros_like(reference)
    mask, reference_mask = stroke(kind, h, w, value), stroke(reference_kind, w + 3, h + 2, 1.0)
    found = align(draft, mask, reference, reference_mask)
    assert bool(torch.isfinite(found.matrix).all())
    assert found.method in ("registered", "boxes")
    assert all(math.isfinite(v) for v in found.report().values() if isinstance(v, float))
    view = apply_alignment(reference, found, h, w)
    assert bool(torch.isfinite(view).all())
    assert view.shape == draft.shape


# --- homographies --------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_homographies_map_their_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = hom.corners((0, 0, 10, 20))
    target = source * rng.uniform(0.5, 2) + rng.uniform(-1, 1, (4, 2))
    m = hom.from_points(source, target)
    np.testing.assert_allclose(hom.apply(m, source), target, atol=1e-8)
    np.testing.assert_allclose(hom.apply(np.linalg.inv(m), target), source, atol=1e-8)


def test_many_maps_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    box = hom.corners((-0.5, -0.5, 0.5, 0.5))
    targets = box + rng.normal(0, 0.05, (5, 4, 2))
    maps = hom.from_points(box, targets)
    assert np.array_equal(maps, np.stack([hom.from_points(box, target) for target in targets]))
    features = scene_at(grid(96, 120), 0).T.reshape(1, 3, 96, 120).float() - 0.5
    ncc = PatchNcc(features, features, torch.ones(1, 1, 96, 120))
    together = ncc(torch.from_numpy(np.stack([np.eye(3), *maps])))
    alone = [float(ncc(torch.from_numpy(m)[None])) for m in (np.eye(3), *maps)]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)
    assert int(together.argmax()) == 0
