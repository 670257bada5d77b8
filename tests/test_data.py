"""Procedural scenes and their cache."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from refiner_core.data.cache import CHANNELS, CacheSpec, build_cache, draw_crop, shard_plan
from refiner_core.data.degrade import DEGRADATIONS
from refiner_core.data.details import KINDS, alternative, draw_texture, draw_word
from refiner_core.data.scenes import Scene, make_scene, photographs, warp_reference
from refiner_core.matching import homography as hom

SIZE = (120, 96)
FILL = (0.4, 0.6)
FIELDS = ("target", "draft", "mask", "reference", "reference_mask")


def scene_of(seed: int, **kwargs: object) -> Scene:
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


def test_the_unwarped_reference_lies_on_the_target() -> None:
    """Without error the reference's detail covers the target's; moved by 6 px it does not."""

    def agreement(s: Scene, error: np.ndarray) -> float:
        warped = warp_reference(s, error)
        assert warped.shape == s.target.shape
        on = s.mask > 0
        grey = [x.astype(float).mean(-1)[on] for x in (warped, s.target)]
        return float(abs(np.corrcoef(*grey)[0, 1]))

    none, off = [], []
    for seed in (1, 2, 3, 4, 5, 6):
        s = make_scene(seed, (160, 120), FILL, rough_masks=False, kind="word")
        none.append(agreement(s, np.zeros((4, 2))))
        off.append(agreement(s, np.full((4, 2), 6.0)))
    assert np.mean(none) > 0.6
    assert np.mean(none) > np.mean(off) + 0.2


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
    texture = draw_texture(np.random.default_rng(0), 60, "word")
    assert draw_word(texture.style, "OPEN").label == "OPEN"


# --- the cache -----------------------------------------------------------------------------------

SPEC = CacheSpec(count=7, seed=3, shard=2, agreement=-99, gain=-99)


def test_shards_are_planned() -> None:
    plan = shard_plan(SPEC)
    assert [p[0] for p in plan] == [0, 1, 2, 3]
    assert [p[2] for p in plan] == ["word", "other", "word", "other"]
    assert len({p[1] for p in shard_plan(CacheSpec(1600, shard=100))}) > 4


def test_a_crop_is_ten_channels() -> None:
    crop = draw_crop(4, (96, 64), "word", 1.0)
    assert (crop.shape, crop.dtype) == ((64, 96, CHANNELS), np.uint8)
    outside = crop[..., 9] == 0
    np.testing.assert_array_equal(crop[outside][:, :3], crop[outside][:, 3:6])
    np.testing.assert_array_equal(crop, draw_crop(4, (96, 64), "word", 1.0))
    assert not np.array_equal(crop[..., 6:9], draw_crop(4, (96, 64), "word", 0.0)[..., 6:9])


def test_building_again_fills_in_what_is_missing(tmp_path: Path) -> None:
    paths = build_cache(tmp_path, SPEC, workers=1)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    shards = [np.load(p) for p in paths]
    assert all(len(s) == 2 and s.shape[-1] == CHANNELS for s in shards)
    crops = {s[i].tobytes() for s in shards for i in range(2)}
    assert len(crops) == 8

    paths[1].unlink()
    kept = {p: p.stat().st_mtime_ns for p in paths if p.exists()}
    again = build_cache(tmp_path, SPEC, workers=1)
    assert again == paths
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    np.testing.assert_array_equal(np.load(paths[1]), shards[1])


def test_workers_draw_the_same(tmp_path: Path) -> None:
    spec = CacheSpec(count=2, seed=1, shard=1, agreement=-99, gain=-99)
    one = build_cache(tmp_path / "one", spec, workers=1)
    two = build_cache(tmp_path / "two", spec, workers=2)
    assert [p.name for p in one] == [p.name for p in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.load(a), np.load(b))
