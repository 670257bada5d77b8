"""Loss, codec, the choice and augmentation of items, and how nano is made."""

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
from refiner_core.data.photographs import photographs
from refiner_core.data.shards import TripletSet
from refiner_core.nano.codec import BlockCodec
from refiner_core.nano.nano_engine import load_codec, load_nano
from refiner_core.nano.reference_blend import ReferenceBlend
from refiner_core.recipes.recipe import KONTEXT, NANO
from refiner_core.training import train_nano as nano
from refiner_core.training.augment import AugmentedDataset
from refiner_core.training.config import DataSettings
from refiner_core.training.crop_triplet import agreement, check_worth, gain
from refiner_core.training.dataset import Dataset, Item, Pixels
from refiner_core.training.distributed import Processes
from refiner_core.training.losses import masked_flow_errors
from refiner_core.training.prepare import PreparedDataset, prepare


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
    loss = masked_flow_errors(target + 0.5 * mask, target, mask).mean()
    assert float(loss) == pytest.approx(0.25, rel=1e-5)


def test_every_sample_is_normalised_on_its_own() -> None:
    target = normal(0, 2, 4, 8, 8)
    mask = torch.cat([box_mask(8, 8, 1), box_mask(8, 8, 6)])
    predicted = target + normal(1, 2, 4, 8, 8)
    single = [
        float(masked_flow_errors(predicted[i : i + 1], target[i : i + 1], mask[i : i + 1]).mean())
        for i in range(2)
    ]
    assert float(masked_flow_errors(predicted, target, mask).mean()) == pytest.approx(
        sum(single) / 2
    )


def test_the_loss_by_hand() -> None:
    target, predicted, mask = normal(0, 1, 4, 8, 8), normal(1, 1, 4, 8, 8), box_mask(8, 8, 3)
    error = (predicted - target) ** 2
    inside = error[..., :3, :3].mean()
    outside = (error * (1 - mask)).mean()
    loss = masked_flow_errors(predicted, target, mask, region=2.0, background=0.5).mean()
    torch.testing.assert_close(loss, 2 * inside + 0.5 * outside)


def test_an_empty_mask_leaves_the_plain_mean() -> None:
    target, predicted = normal(0, 2, 4, 8, 8), normal(1, 2, 4, 8, 8)
    loss = masked_flow_errors(
        predicted, target, torch.zeros(2, 1, 8, 8), region=5, background=0.1
    ).mean()
    torch.testing.assert_close(loss, ((predicted - target) ** 2).mean())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 100), st.floats(0, 1))
def test_the_loss_is_bounded_by_the_largest_error(seed: int, density: float) -> None:
    target, predicted = normal(seed, 3, 4, 6, 6), normal(seed + 1, 3, 4, 6, 6)
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, 1, 6, 6, generator=g) < density).float()
    loss = float(masked_flow_errors(predicted, target, mask).mean())
    most = float((predicted - target).square().amax())
    assert 0 < loss <= 2 * most
    assert float(masked_flow_errors(target, target, mask).mean()) == 0


def test_the_loss_is_float32_and_has_a_gradient_everywhere() -> None:
    predicted, target, mask = normal(0, 1, 4, 8, 8), normal(1, 1, 4, 8, 8), box_mask(8, 8, 3)
    half = masked_flow_errors(predicted.bfloat16(), target.bfloat16(), mask).mean()
    assert half.dtype == torch.float32
    loss = masked_flow_errors(predicted.requires_grad_(), target, mask).mean()
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


# --- items: the choice and the augmentation ------------------------------------------------------


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup = nano.Setup(tmp_path_factory.mktemp("triplets"), Path(), seed=2)
    nano.draw_triplets(setup, 6)
    return setup.triplets


def prepared(triplets: Path, folder: Path, **options: Any) -> PreparedDataset:
    data = TripletSet(triplets)
    engine, settings = load_nano(), DataSettings(context=(1.2, 2.0), **options)
    names = prepare(data, range(len(data)), engine, settings, folder, Processes(), pixels=True)
    return PreparedDataset(folder, engine.recipe.order, names)


@pytest.fixture(scope="module")
def few(triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepared(triplets, tmp_path_factory.mktemp("items"))


def vary(dataset: Dataset, variants: int) -> AugmentedDataset:
    return AugmentedDataset(dataset, load_nano(), variants, grow=1)


def changed(p: Pixels) -> tuple[float, float]:
    """Mean difference of draft and truth inside and outside the mask."""
    apart, outside = (p.target - p.draft).abs().mean(1, keepdim=True), 1 - p.mask
    return tuple(float((apart * m).sum() / m.sum()) for m in (p.mask, outside))  # type: ignore[return-value]


def pixels(item: Item) -> Pixels:
    assert item.pixels is not None
    return item.pixels


def test_variants_change_all_pictures_of_an_item_alike(few: PreparedDataset) -> None:
    once, often = few, vary(few, 8)
    assert len(often) == 8 * len(once) == len(often.shapes)
    for i in range(len(once)):
        plain, same = once[i], often[8 * i]
        assert torch.equal(plain.references[0], same.references[0])
        variants = [often[8 * i + v] for v in range(8)]
        assert all(v.shape == s for v, s in zip(variants, often.shapes[8 * i :], strict=False))
        for v in variants:  # resampling leaves a trace at the mask's edge
            inside, outside = changed(pixels(v))
            assert outside < 0.1 * inside or inside == outside == 0
        assert len({float(pixels(v).target.sum()) for v in variants}) == 8
        again = often[8 * i + 5]
        assert torch.equal(variants[5].references[0], again.references[0])


def test_every_second_variant_sees_another_share_of_the_reference(few: PreparedDataset) -> None:
    def share(item: Item) -> float:
        p, seen = pixels(item), load_codec().decode(item.references[0])
        way = p.mask * (p.reference - p.draft)
        return float(((seen - p.draft) * way).sum() / way.square().sum())

    found = [share(v) for v in (vary(few, 6)[i] for i in range(6))]
    assert found[::2] == pytest.approx([NANO.reference_blend] * 3, abs=0.02)
    blend = ReferenceBlend.of(NANO, aligned=True)
    others = [blend.candidate(v).share for v in (1, 3, 5)]
    assert found[1::2] == pytest.approx(others, abs=0.02) and len(set(others)) == 3


def pictures(draft: float, reference: float) -> Pixels:
    """A grey truth, a draft and a reference off by so much in the left half."""
    target, mask = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    return Pixels(target, target + draft * mask, target + reference * mask, mask)


def test_gain_and_agreement_by_hand() -> None:
    assert gain(pictures(0.2, 0.1)) == pytest.approx(20 * math.log10(2), abs=0.01)
    assert gain(pictures(0.1, 0.2)) == pytest.approx(-20 * math.log10(2), abs=0.01)
    everywhere = pictures(0.0, 0.0)
    off = Pixels(everywhere.target, everywhere.draft, everywhere.reference + 0.1, everywhere.mask)
    assert agreement(off) == pytest.approx(20, abs=0.01)
    assert agreement(everywhere) == pytest.approx(60, abs=0.1)


def test_a_crop_that_teaches_nothing_is_refused_with_its_value() -> None:
    check_worth(pictures(0.2, 0.1), DataSettings(least_gain=5.0, least_agreement=15.0))
    check_worth(pictures(0.1, 0.2), DataSettings())
    with pytest.raises(ValueError, match=r"-6\.02 dB.*data\.least_gain = 1"):
        check_worth(pictures(0.1, 0.2), DataSettings(least_gain=1.0))
    with pytest.raises(ValueError, match=r"data\.least_agreement = 40"):
        check_worth(pictures(0.1, 0.2), DataSettings(least_agreement=40.0))


@pytest.mark.slow
def test_what_is_sorted_out_is_noted(triplets: Path, few: PreparedDataset, tmp_path: Path) -> None:
    gains = sorted(gain(pixels(few[i])) for i in range(len(few)))
    limit = (gains[-2] + gains[-1]) / 2
    best = prepared(triplets, tmp_path, least_gain=limit)
    assert len(best) == 1
    noted = (tmp_path / "skipped.jsonl").read_text()
    assert noted.count("data.least_gain") == len(noted.splitlines()) == len(few) - 1
    (tmp_path / "items.json").unlink()  # as if it had been interrupted: they are not tried again
    assert len(prepared(triplets, tmp_path, least_gain=limit)) == 1
    assert (tmp_path / "skipped.jsonl").read_text() == noted


@pytest.mark.slow
def test_items_cropped_by_several_processes_are_the_same(
    triplets: Path, few: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refiner_core.training.prepare._CHUNK", 2)
    monkeypatch.setattr("refiner_core.training.prepare._crop_one", None)  # not in this process
    again = prepared(triplets, tmp_path, workers=2)
    assert again.names == few.names
    for i in range(len(few)):
        assert torch.equal(again[i].target, few[i].target)
        assert torch.equal(pixels(again[i]).reference, pixels(few[i]).reference)


@pytest.mark.parametrize("setting", ["variants", "least_gain", "least_agreement"])
def test_recipes_that_do_not_align_refuse_what_compares_pixels(
    triplets: Path, tmp_path: Path, setting: str
) -> None:
    engine = load_nano()
    engine.recipe = KONTEXT
    with pytest.raises(ValueError, match=f"data.{setting} .* kontext"):
        prepare(
            TripletSet(triplets),
            [0],
            engine,
            DataSettings(**{setting: 2}),
            tmp_path,
            Processes(),
            pixels=True,
        )


def test_recipes_that_align_refuse_to_mirror_references_alone(
    triplets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"data.flip .* nano"):
        prepared(triplets, tmp_path, flip=True)


# --- nano ----------------------------------------------------------------------------------------


def test_the_codec_is_fitted_to_what_the_triplets_show(triplets: Path) -> None:
    a, b, c = (nano.fit_codec(nano.Setup(triplets, Path(), seed=s), 32) for s in (0, 0, 1))
    assert torch.equal(a.components, b.components)
    assert not torch.equal(a.components, c.components)
    target = TripletSet(triplets)[0].target
    assert target is not None
    x = torch.from_numpy(target[:224, :224]).permute(2, 0, 1)[None].float() / 255
    assert psnr(a.decode(a.encode(x)), x) > 25


@pytest.mark.slow
def test_nano_is_made_by_one_command_that_goes_on(
    triplets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nano, "_DATA", {"held_out": 2})  # of so few triplets none is sorted out
    out = tmp_path / "run"
    command = [
        "train",
        "nano",
        "--out",
        str(out),
        "--data",
        str(triplets),
        "--max-steps",
        "2",
        "--device",
        "cpu",
        "--sft-set",
        "run.batch=2",
        "--sft-set",
        "run.micro_batch=2",
        "--grpo-steps",
        "1",
        "--grpo-set",
        "rollout.groups=2",
        "--grpo-set",
        "objective.updates=2",
        "--evaluate",
        "2",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    card = capsys.readouterr().out
    for step in ("untrained", "sft", "grpo"):
        assert step in card
    made = load_nano(path=out / "nano.safetensors").model.state_dict()
    start = load_nano(path=out / "start.safetensors").model.state_dict()
    assert any(not torch.equal(made[k], start[k].bfloat16().float()) for k in made)
    assert (
        len(list((out / "cache").iterdir())) == 3
    )  # both stages use the same items, and the texts
    assert all((out / f"curves-{stage}.png").is_file() for stage in ("sft", "grpo"))
    written = [p.stat().st_mtime_ns for p in sorted(out.glob("*/refiner.safetensors"))]
    assert len(written) == 2
    assert main(command) == 0  # nothing is left to do
    assert written == [p.stat().st_mtime_ns for p in sorted(out.glob("*/refiner.safetensors"))]
