"""Loss, codec and the nano's trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from refiner_core.data.cache import CacheSpec, build_cache
from refiner_core.data.scenes import photographs
from refiner_core.nano.codec import BlockCodec
from refiner_core.nano.engine import load_codec
from refiner_core.training.loss import masked_flow_loss
from refiner_core.training.nano import CropReader, NanoConfig, Stage, Trainer, latent_mask


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def box_mask(h: int, w: int, side: int) -> Tensor:
    m = torch.zeros(1, 1, h, w)
    m[..., :side, :side] = 1
    return m


# --- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 8])
def test_an_error_in_the_mask_counts_alike_at_any_area(side: int) -> None:
    target, mask = normal(0, 1, 4, 8, 8), box_mask(8, 8, side)
    loss = masked_flow_loss(target + 0.5 * mask, target, mask)
    assert float(loss) == pytest.approx(0.25, rel=1e-5)


def test_every_sample_is_normalised_on_its_own() -> None:
    target = normal(0, 2, 4, 8, 8)
    mask = torch.cat([box_mask(8, 8, 1), box_mask(8, 8, 6)])
    predicted = target + normal(1, 2, 4, 8, 8)
    single = [
        float(masked_flow_loss(predicted[i : i + 1], target[i : i + 1], mask[i : i + 1]))
        for i in range(2)
    ]
    assert float(masked_flow_loss(predicted, target, mask)) == pytest.approx(sum(single) / 2)
    weight = torch.tensor([1.0, 3.0])
    weighted = float(masked_flow_loss(predicted, target, mask, weight=weight))
    assert weighted == pytest.approx((single[0] + 3 * single[1]) / 2)


def test_the_loss_by_hand() -> None:
    target, predicted, mask = normal(0, 1, 4, 8, 8), normal(1, 1, 4, 8, 8), box_mask(8, 8, 3)
    error = (predicted - target) ** 2
    inside = error[..., :3, :3].mean()
    outside = (error * (1 - mask)).mean()
    loss = masked_flow_loss(predicted, target, mask, region=2.0, background=0.5)
    torch.testing.assert_close(loss, 2 * inside + 0.5 * outside)


def test_an_empty_mask_leaves_the_plain_mean() -> None:
    target, predicted = normal(0, 2, 4, 8, 8), normal(1, 2, 4, 8, 8)
    loss = masked_flow_loss(predicted, target, torch.zeros(2, 1, 8, 8), region=5, background=0.1)
    torch.testing.assert_close(loss, ((predicted - target) ** 2).mean())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 100), st.floats(0, 1))
def test_the_loss_is_bounded_by_the_largest_error(seed: int, density: float) -> None:
    target, predicted = normal(seed, 3, 4, 6, 6), normal(seed + 1, 3, 4, 6, 6)
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, 1, 6, 6, generator=g) < density).float()
    loss = float(masked_flow_loss(predicted, target, mask))
    most = float((predicted - target).square().amax())
    assert 0 < loss <= 2 * most
    assert float(masked_flow_loss(target, target, mask)) == 0


def test_the_loss_is_float32_and_has_a_gradient_everywhere() -> None:
    predicted, target, mask = normal(0, 1, 4, 8, 8), normal(1, 1, 4, 8, 8), box_mask(8, 8, 3)
    half = masked_flow_loss(predicted.bfloat16(), target.bfloat16(), mask)
    assert half.dtype == torch.float32
    loss = masked_flow_loss(predicted.requires_grad_(), target, mask)
    torch.testing.assert_close(half, loss.detach(), rtol=0.02, atol=0)
    loss.backward()
    assert predicted.grad is not None
    assert bool((predicted.grad != 0).all())


# --- codec ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos() -> Tensor:
    chosen = [p.resize((128, 96), Image.Resampling.BOX) for p in photographs()]
    stack = np.stack([np.asarray(p) for p in chosen])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def fitted(photos: Tensor) -> BlockCodec:
    codec = BlockCodec()
    codec.fit(photos)
    return codec


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def test_photographs_survive_the_codec(fitted: BlockCodec) -> None:
    held = photographs(held_out=True)[0].resize((256, 192), Image.Resampling.BOX)
    x = torch.from_numpy(np.asarray(held).copy()).permute(2, 0, 1)[None].float() / 255
    for codec in (fitted, load_codec()):
        z = codec.encode(x)
        assert z.shape == (1, 16, 48, 64)
        assert psnr(codec.decode(z), x) > 25


def test_the_codec_is_idempotent(fitted: BlockCodec, photos: Tensor) -> None:
    z = fitted.encode(photos)
    torch.testing.assert_close(fitted.encode(fitted.decode(z)), z, rtol=0, atol=1e-4)
    noise = normal(0, 2, 16, 5, 6)
    torch.testing.assert_close(fitted.encode(fitted.decode(noise)), noise, rtol=0, atol=1e-4)


def test_latents_are_centred_orthonormal_and_of_unit_power(
    fitted: BlockCodec, photos: Tensor
) -> None:
    eye = fitted.components @ fitted.components.T
    torch.testing.assert_close(eye, torch.eye(16), rtol=0, atol=1e-5)
    z = fitted.encode(photos)
    assert float(z.mean((0, 2, 3)).abs().max()) < 1e-3
    assert float(z.square().mean()) == pytest.approx(1, abs=0.01)


def test_a_refit_is_the_same_codec(fitted: BlockCodec, photos: Tensor) -> None:
    again = BlockCodec()
    again.fit(photos)
    for name, buffer in fitted.named_buffers():
        assert torch.equal(buffer, dict(again.named_buffers())[name])


def test_flat_pictures_do_not_break_the_fit() -> None:
    codec = BlockCodec()
    flat = torch.full((2, 3, 16, 16), 0.3)
    codec.fit(flat)
    torch.testing.assert_close(codec.decode(codec.encode(flat)), flat)


@pytest.mark.parametrize(("h", "w"), [(7, 8), (8, 10)])
def test_sides_must_be_multiples_of_four(h: int, w: int) -> None:
    with pytest.raises(ValueError, match=f"{w}x{h}"):
        BlockCodec().encode(torch.zeros(1, 3, h, w))


# --- trainer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_cache(folder, CacheSpec(count=4, seed=2, shard=2, agreement=-99, gain=-99), workers=1)
    return folder


def config_of(cache: Path, out: Path) -> NanoConfig:
    stages = (Stage(2, 32, 2, 1e-3), Stage(2, 0, 1, 5e-4))
    return NanoConfig(str(cache), str(out), stages, warmup=2, every=100, codec_windows=64)


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    named = {f"model.{k}": v.detach() for k, v in trainer.model.named_parameters()}
    named |= {f"ema.{k}": v for k, v in trainer.ema.items()}
    return named | {f"codec.{k}": v for k, v in trainer.codec.named_buffers()}


def test_a_resumed_run_is_the_same_run(cache: Path, tmp_path: Path) -> None:
    straight = Trainer(config_of(cache, tmp_path / "a"))
    start = {k: v.clone() for k, v in tensors(straight).items()}
    whole = [straight.train_step() for _ in range(4)]
    assert straight.stage() is None

    first = Trainer(config_of(cache, tmp_path / "b"))
    half = [first.train_step() for _ in range(2)]
    first.save()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["checkpoint.safetensors"]
    second = Trainer(config_of(cache, tmp_path / "b"))
    assert second.step == 2
    half += [second.train_step() for _ in range(2)]

    assert half == whole
    assert all(math.isfinite(row["loss"]) and row["norm"] > 0 for row in whole)
    expected, found = tensors(straight), tensors(second)
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    changed = [k for k in expected if not torch.equal(expected[k], start[k])]
    assert len(changed) > 0.9 * len([k for k in expected if not k.startswith("codec.")])

    second.run()  # nothing is left to do
    assert second.step == 4
    other = replace(config_of(cache, tmp_path / "c"), seed=1)
    assert Trainer(other).train_step() != whole[0]


def test_the_rate_warms_up_and_falls(cache: Path, tmp_path: Path) -> None:
    config = replace(
        config_of(cache, tmp_path),
        warmup=10,
        stages=(Stage(100, 32, 1, 1e-3), Stage(100, 0, 1, 1e-3)),
    )
    trainer = Trainer(config)
    for stage, floor in zip(config.stages, (0.3, 0.0), strict=True):
        rates = [trainer.rate(stage, i) for i in range(100)]
        assert rates[0] == pytest.approx(1e-4)
        assert max(rates) <= 1e-3
        assert rates.index(max(rates)) in (9, 10)
        assert rates[-1] == pytest.approx(floor * 1e-3, abs=2e-6)


def test_batches_are_alike_in_all_pictures(cache: Path) -> None:
    reader = CropReader(cache)
    for window, shape in ((32, (3, 10, 32, 32)), (0, None)):
        x = reader.batch(np.random.default_rng(0), 3, window)
        assert x.dtype == torch.float32
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        assert shape is None or x.shape == shape
        outside = (x[:, 9:] == 0).expand(-1, 3, -1, -1)
        assert torch.equal(x[:, :3][outside], x[:, 3:6][outside])
        again = reader.batch(np.random.default_rng(0), 3, window)
        assert torch.equal(x, again)


def test_windows_lie_on_the_detail(cache: Path) -> None:
    x = CropReader(cache).batch(np.random.default_rng(1), 20, 32)
    assert bool((x[:, 9].amax((1, 2)) > 0).all())


def test_no_crops(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="build the cache"):
        CropReader(tmp_path)


def test_latent_mask_counts_any_pixel() -> None:
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 3, 4] = 1
    assert latent_mask(mask)[0, 0].tolist() == [[0, 1, 0], [0, 0, 0]]
