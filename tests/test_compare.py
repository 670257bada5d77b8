"""Paired comparisons and merged models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from refiner_core.load import load_engine
from refiner_core.nano.nano_engine import load_nano
from refiner_core.training.compare import Comparison, held_out_scenes, measure, paired, table
from refiner_core.training.merge_lora import merge
from refiner_core.weights.keys import is_bfl
from refiner_core.weights.lora import apply_lora, read_lora, save_lora
from refiner_core.weights.transformer import load_transformer


def test_a_clear_gain_is_better_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    a = {"psnr": rng.normal(20, 3, 256), "edge_error": rng.normal(1, 0.1, 256)}
    b = {"psnr": a["psnr"] + rng.normal(0.3, 0.5, 256), "edge_error": a["edge_error"] + 0.02}
    psnr, edges = paired(a, b)
    assert psnr.verdict == "better"
    assert psnr.low < psnr.gain < psnr.high
    assert psnr.gain == pytest.approx(0.3, abs=0.1)
    assert psnr.high - psnr.low == pytest.approx(2 * 1.96 * 0.5 / 16, rel=0.25)
    assert edges.verdict == "worse", "a larger edge error is a loss"
    same = paired(a, {k: rng.permutation(v) for k, v in a.items()})
    assert {c.verdict for c in same} == {"equal within the interval"}
    text = table([psnr, edges], ("sft", "grpo"), 256)
    assert "| psnr |" in text
    assert "better" in text


@pytest.mark.slow
def test_a_model_against_itself_is_equal() -> None:
    cases = held_out_scenes(2, 1)
    engine = load_nano()
    found = paired(measure(engine, cases), measure(load_nano(), cases))
    assert [c.gain for c in found] == [0.0] * len(found)
    assert {c.metric for c in found} >= {"psnr", "ssim", "edge_error", "reward/pixels"}
    assert isinstance(found[0], Comparison)


def nano_lora(path: Path) -> Path:
    name = "single_transformer_blocks.1.proj_mlp"
    weight = load_nano().model.get_parameter(f"{name}.weight")
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, weight.shape[1], generator=g), torch.randn(len(weight), 2, generator=g)
    save_lora(path, {name: (a, 0.01 * b)})
    return path


def test_a_merged_nano_runs_like_nano_with_the_lora(tmp_path: Path) -> None:
    lora = nano_lora(tmp_path / "l.safetensors")
    out = tmp_path / "merged.safetensors"
    assert merge("nano", [f"{lora}:0.5"], out, dtype="fp32") == 1
    merged = load_engine(out)
    assert merged.recipe.name == "nano"
    wanted = load_engine("nano", loras=[(lora, 0.5)]).model.state_dict()
    found = merged.model.state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_a_merged_flux_is_read_in_either_layout(tmp_path: Path, layout: str) -> None:
    engine = load_nano()
    base = tmp_path / "base.safetensors"
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in engine.model.state_dict().items()}, base)
    lora = nano_lora(tmp_path / "l.safetensors")
    out = tmp_path / "merged.safetensors"
    merge(base, [str(lora)], out, layout, "fp32")  # type: ignore[arg-type]
    assert is_bfl(load_file(out)) == (layout == "bfl")
    apply_lora(engine.model, read_lora(lora))
    found, wanted = load_transformer(out).state_dict(), engine.model.state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_merge_refuses(tmp_path: Path) -> None:
    lora = nano_lora(tmp_path / "l.safetensors")
    with pytest.raises(ValueError, match=r"written as \.safetensors"):
        merge("nano", [str(lora)], tmp_path / "out.bin")
    with pytest.raises(ValueError, match="LoRA"):
        merge("nano", [str(tmp_path / "none.safetensors")], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
