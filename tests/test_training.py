"""Loss, codec, nano's crops and how it is made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.data import cache as cached
from refiner_core.data.cache import CacheSpec, build_cache
from refiner_core.data.scenes import photographs
from refiner_core.nano.codec import BlockCodec
from refiner_core.nano.engine import load_codec, load_nano
from refiner_core.training import nano
from refiner_core.training.crops import CropViews
from refiner_core.training.loss import masked_flow_loss
from refiner_core.training.views import Pixels, View


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


# --- crops -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_cache(folder, CacheSpec(count=4, seed=2, shard=2, agreement=-99, gain=-99), workers=1)
    return folder


def views(cache: Path, **options: Any) -> CropViews:
    return CropViews(cache, load_codec(), 0.9, **options)


def outside_is_the_draft(p: Pixels) -> bool:
    outside = (p.mask == 0).expand(-1, 3, -1, -1)
    return torch.equal(p.target[outside], p.draft[outside])


def pixels(view: View) -> Pixels:
    assert view.pixels is not None
    return view.pixels


def test_variants_change_all_pictures_of_a_crop_alike(cache: Path) -> None:
    once, often = views(cache), views(cache, variants=8)
    assert len(often) == 8 * len(once) == len(often.shapes)
    for i in range(len(once)):
        plain, same = once[i], often[8 * i]
        assert torch.equal(plain.references[0], same.references[0])
        variants = [often[8 * i + v] for v in range(8)]
        assert all(v.shape == s for v, s in zip(variants, often.shapes[8 * i :], strict=False))
        assert all(outside_is_the_draft(pixels(v)) for v in variants)
        assert len({float(pixels(v).target.sum()) for v in variants}) == 8
        again = often[8 * i + 5]
        assert torch.equal(variants[5].references[0], again.references[0])


def test_every_second_variant_sees_another_share_of_the_reference(cache: Path) -> None:
    def share(view: View) -> float:
        p, seen = pixels(view), load_codec().decode(view.references[0])
        way = p.mask * (p.reference - p.draft)
        return float(((seen - p.draft) * way).sum() / way.square().sum())

    found = [share(v) for v in (views(cache, variants=6)[i] for i in range(6))]
    assert found[::2] == pytest.approx([0.9] * 3, abs=0.1)
    assert [abs(s - 0.9) > 0.1 for s in found[1::2]] == [True] * 3


@pytest.mark.parametrize("window", [32, 64])
def test_windows_lie_on_the_detail(cache: Path, window: int) -> None:
    cut = views(cache, window=window, variants=3)
    for i in range(len(cut)):
        assert cut[i].shape == ((window // 4, window // 4),) * 3 == cut.shapes[i]
        assert bool((cut[i].mask > 0).any())


def test_no_crops(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="build the cache"):
        views(tmp_path)


# --- nano ----------------------------------------------------------------------------------------


def test_nano_is_made_by_one_command_that_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cached, "build_cache", lambda *_: [])  # the crops are there
    few = CacheSpec(2, shard=2, agreement=-99, gain=-99)
    monkeypatch.setattr(nano, "_HELD_OUT", few)
    command = ["train", "nano", "--out", str(tmp_path), "--cache", str(cache), "--steps", "2", "1",
               "--sft-set", "run.batch=2", "--sft-set", "run.micro_batch=2", "--grpo-steps", "1",
               "--grpo-set", "rollout.groups=2", "--evaluate", "2",
               "--workers", "1"]  # fmt: skip
    assert main(command) == 0
    card = capsys.readouterr().out
    for step in ("untrained", "windows", "sft", "grpo"):
        assert step in card
    made = load_nano(path=tmp_path / "nano.safetensors").model.state_dict()
    start = load_nano(path=tmp_path / "start.safetensors").model.state_dict()
    assert any(not torch.equal(made[k], start[k]) for k in made)
    written = [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/refiner.safetensors"))]
    assert len(written) == 3
    assert main(command) == 0  # nothing is left to do
    assert written == [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/refiner.safetensors"))]


@pytest.mark.parametrize(
    ("steps", "message"), [(["0", "0"], "nothing to train"), (["-1", "5"], "negative")]
)
def test_a_nano_without_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: list[str], message: str
) -> None:
    assert main(["train", "nano", "--out", str(tmp_path), "--steps", *steps]) != 0
    assert message in capsys.readouterr().err
