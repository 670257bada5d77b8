"""Procedural scenes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refiner_core.data.degrade import DEGRADATIONS
from refiner_core.data.photographs import photographs
from refiner_core.data.textures import KINDS, alternative, draw_texture
from refiner_core.evaluation.held_out_scenes import HeldOutScene, make_scene
from refiner_core.matching import homography as hom

SIZE = (120, 96)
FILL = (0.4, 0.6)
FIELDS = ("target", "draft", "mask", "reference", "reference_mask")


def scene_of(seed: int, **kwargs: object) -> HeldOutScene:
    return make_scene(seed, SIZE, FILL, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_the_draft_is_the_target_outside_the_mask(seed: int) -> None:
    s = scene_of(seed)
    outside = s.mask == 0
    np.testing.assert_array_equal(s.draft[outside], s.target[outside])
    assert 0.01 < (s.mask > 0).mean() < 0.95
    assert set(np.unique(s.mask)) == {0, 255}
    if s.degradation == "identity":
        np.testing.assert_array_equal(s.draft, s.target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*DEGRADATIONS, "swap"])
def test_every_degradation_breaks_every_kind(kind: str, name: str) -> None:
    s = scene_of(21, kind=kind, degradation=name)
    assert (s.kind, s.degradation) == (kind, name)
    assert s.draft.shape == s.target.shape == (96, 120, 3)
    outside = s.mask == 0
    np.testing.assert_array_equal(s.draft[outside], s.target[outside])
    change = np.abs(s.draft.astype(int) - s.target)[s.mask > 0].mean()
    assert change > 1


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize(("h", "w"), [(5, 4), (31, 60)])
def test_degradations_keep_the_shape(name: str, h: int, w: int) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (h, w, 3)).astype(np.float32)
    for strength in (0.0, 1.0):
        out = DEGRADATIONS[name](pixels.copy(), np.random.default_rng(1), strength)
        assert out.shape == pixels.shape
        assert np.isfinite(out).all()


def test_a_seed_is_a_scene() -> None:
    a, b, c = scene_of(5), scene_of(5), scene_of(6)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.to_target, b.to_target)
    assert (a.label, a.degradation, a.strength) == (b.label, b.degradation, b.strength)
    assert not np.array_equal(a.target, c.target)


def test_everything_is_drawn_sooner_or_later() -> None:
    scenes = [make_scene(s, (64, 48), FILL) for s in range(80)]
    assert {s.kind for s in scenes} == set(KINDS)
    assert {s.degradation for s in scenes} == {*DEGRADATIONS, "swap", "identity"}


def test_held_out_photographs_are_others() -> None:
    train, held = photographs(), photographs(held_out=True)
    assert len(train) >= 8
    assert len(held) >= 2
    seen = {p.tobytes() for p in train}
    assert not any(p.tobytes() in seen for p in held)


def test_to_target_maps_the_detail_onto_itself() -> None:
    for seed in range(6):
        s = make_scene(seed, SIZE, FILL, rough_masks=False)
        ys, xs = np.nonzero(s.reference_mask)
        center = hom.apply(s.to_target, np.array([[xs.mean(), ys.mean()]]))[0]
        ys, xs = np.nonzero(s.mask)
        assert np.linalg.norm(center - (xs.mean(), ys.mean())) < 0.12 * np.ptp(xs)


def test_another_detail_on_the_same_surface() -> None:
    for kind, seed in itertools.product(KINDS, range(4)):
        rng = np.random.default_rng(seed)
        texture = draw_texture(rng, 60, kind)
        other = alternative(rng, texture)
        assert other.label != texture.label
        assert other.kind == kind
        assert other.image.size == texture.image.size
        assert other.image.tobytes() != texture.image.tobytes()
        x0, y0, x1, y1 = texture.box
        assert 0 <= x0 < x1 <= texture.image.width
        assert 0 <= y0 < y1 <= texture.image.height
