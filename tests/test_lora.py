from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_core.weights.inspection import inspect_file
from refiner_core.weights.lora import (
    apply_lora,
    comfyui_weights,
    parse_lora_argument,
    read_lora,
    save_lora,
)

RANK = 3
WIDTH = 128
# diffusers module -> (rows, columns) of its weight in the tiny model
DOUBLE, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.0."
SHAPES = {
    f"{DOUBLE}attn.to_q": (128, 128),
    f"{DOUBLE}attn.to_k": (128, 128),
    f"{DOUBLE}attn.to_v": (128, 128),
    f"{DOUBLE}attn.to_out.0": (128, 128),
    f"{DOUBLE}ff.net.0.proj": (512, 128),
    f"{DOUBLE}ff_context.net.2": (128, 512),
    f"{SINGLE}attn.to_q": (128, 128),
    f"{SINGLE}attn.to_k": (128, 128),
    f"{SINGLE}attn.to_v": (128, 128),
    f"{SINGLE}proj_mlp": (512, 128),
    f"{SINGLE}proj_out": (128, 640),
    "norm_out.linear": (256, 128),
    "proj_out": (64, 128),
}
# BFL module -> the diffusers modules stacked in it
FUSED = {
    "double_blocks.0.img_attn.qkv": [f"{DOUBLE}attn.to_{c}" for c in "qkv"],
    "double_blocks.0.img_attn.proj": [f"{DOUBLE}attn.to_out.0"],
    "double_blocks.0.img_mlp.0": [f"{DOUBLE}ff.net.0.proj"],
    "double_blocks.0.txt_mlp.2": [f"{DOUBLE}ff_context.net.2"],
    "single_blocks.0.linear1": [*(f"{SINGLE}attn.to_{c}" for c in "qkv"), f"{SINGLE}proj_mlp"],
    "single_blocks.0.linear2": [f"{SINGLE}proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
Pairs = dict[str, tuple[Tensor, Tensor]]


def tiny_flux() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=1,
        joint_attention_dim=16,
        pooled_projection_dim=16,
    )
    return model.eval().requires_grad_(False)


def make_pairs() -> Pairs:
    """Pairs in which q, k, v (and mlp) share their A, as the parts of a fused LoRA do."""
    g = torch.Generator().manual_seed(2)
    out: Pairs = {}
    for parts in FUSED.values():
        a = torch.randn(RANK, SHAPES[parts[0]][1], generator=g)
        for name in parts:
            out[name] = (a, torch.randn(SHAPES[name][0], RANK, generator=g))
    return out


def fused(pairs: Pairs) -> Pairs:
    out: Pairs = {}
    for name, parts in FUSED.items():
        b = torch.cat([pairs[p][1] for p in parts])
        if name.startswith("final_layer.ada"):
            b = torch.cat(b.chunk(2)[::-1])  # BFL: shift, scale
        out[name] = (pairs[parts[0]][0], b)
    return out


def keys(pairs: Pairs, name: Callable[[str], str], a: str, b: str) -> dict[str, Tensor]:
    return {
        name(k) + s: v.clone() for k, ab in pairs.items() for s, v in zip((a, b), ab, strict=True)
    }


def kohya(pairs: Pairs, prefix: str) -> dict[str, Tensor]:
    out = keys(
        pairs, lambda k: prefix + k.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"
    )
    alphas = {k.replace(".lora_down.weight", ".alpha"): torch.tensor(RANK * 1.0) for k in out}
    return out | {k: v for k, v in alphas.items() if k.endswith(".alpha")}


AB = (".lora_A.weight", ".lora_B.weight")
FORMATS: dict[str, Callable[[Pairs], dict[str, Tensor]]] = {
    "diffusers": lambda p: keys(p, lambda k: f"transformer.{k}", *AB),
    "bare": lambda p: keys(p, lambda k: k, *AB),
    "adapter": lambda p: keys(
        p, lambda k: f"transformer.{k}", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "down_up": lambda p: keys(
        p, lambda k: f"transformer.{k}", ".lora.down.weight", ".lora.up.weight"
    ),
    "peft": lambda p: keys(p, lambda k: f"base_model.model.{k}", *AB),
    "peft_transformer": lambda p: keys(p, lambda k: f"base_model.model.transformer.{k}", *AB),
    "peft_bfl": lambda p: keys(fused(p), lambda k: f"base_model.model.diffusion_model.{k}", *AB),
    "kohya": lambda p: kohya(fused(p), "lora_unet_"),
    "onetrainer": lambda p: kohya(p, "lora_transformer_"),
    "bfl": lambda p: keys(fused(p), lambda k: f"diffusion_model.{k}", *AB),
}


def merged(sd: dict[str, Tensor], path: Path, strength: float = 1.0) -> dict[str, Tensor]:
    save_file({k: v.contiguous() for k, v in sd.items()}, path)
    model = tiny_flux()
    assert apply_lora(model, read_lora(path), strength) == len(SHAPES)
    return model.state_dict()


@pytest.mark.parametrize("name", FORMATS)
def test_every_spelling_merges_to_the_same_weights(tmp_path: Path, name: str) -> None:
    pairs = make_pairs()
    before = tiny_flux().state_dict()
    after = merged(FORMATS[name](pairs), tmp_path / "lora.safetensors", 0.5)
    for key, weight in before.items():
        pair = pairs.get(key.removesuffix(".weight"))
        wanted = weight if pair is None else weight + 0.5 * pair[1] @ pair[0]
        assert torch.allclose(after[key], wanted, atol=1e-5), key


def test_diffusers_itself_merges_to_the_same_weights(tmp_path: Path) -> None:
    """The file that `save_lora` writes means to diffusers (PEFT) what it means to us."""
    pairs = {k: v for k, v in make_pairs().items() if k not in ("norm_out.linear", "proj_out")}
    path = tmp_path / "lora.safetensors"
    save_lora(path, pairs, alpha=1.5)
    ours, theirs = tiny_flux(), tiny_flux()
    apply_lora(ours, read_lora(path), 1.0)
    theirs.load_lora_adapter(load_file(path), prefix="transformer")
    theirs.fuse_lora()
    theirs.unload_lora()
    for key, weight in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], weight, atol=1e-5), key


def test_alpha_tensor_scales_and_metadata_does_not(tmp_path: Path) -> None:
    name = f"{DOUBLE}attn.to_q"
    a, b = make_pairs()[name]
    path = tmp_path / "lora.safetensors"
    sd = keys({name: (a, b)}, lambda k: f"transformer.{k}", *AB)
    save_file(
        {**sd, f"transformer.{name}.alpha": torch.tensor(1.5)},
        path,
        {"lora_adapter_metadata": '{"transformer.lora_alpha": 30}'},
    )
    lora = read_lora(path)
    assert lora.factors[name][0].scale == 0.5
    assert "lora_adapter_metadata" in lora.metadata
    save_file(sd, path)
    assert read_lora(path).factors[name][0].scale == 1.0


def test_saved_lora_has_alpha_in_b(tmp_path: Path) -> None:
    pairs = make_pairs()
    path = tmp_path / "lora.safetensors"
    save_lora(path, pairs, alpha=6.0)
    name = f"{SINGLE}proj_mlp"
    sd = load_file(path)
    assert len(sd) == 2 * len(pairs)
    assert torch.equal(sd[f"transformer.{name}.lora_B.weight"], pairs[name][1] * 2)
    assert torch.equal(
        read_lora(path).factors[name][0].delta(), 2 * pairs[name][1] @ pairs[name][0]
    )


def test_merging_and_taking_out_again_restores_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, make_pairs())
    model, lora = tiny_flux(), read_lora(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    apply_lora(model, lora, 0.7)
    apply_lora(model, lora, -0.7)
    assert all(torch.allclose(before[k], v, atol=1e-5) for k, v in model.state_dict().items())


def test_bf16_weights_are_rounded_once() -> None:
    from refiner_core.weights.lora import Factor, LoRA

    model = tiny_flux().to(torch.bfloat16)
    name = f"{DOUBLE}attn.to_q"
    weight = model.transformer_blocks[0].attn.to_q.weight
    f = Factor(*make_pairs()[name])
    wanted = (weight.float() + 2 * f.delta()).to(torch.bfloat16)
    apply_lora(model, LoRA({name: (f, f)}), 1.0)
    assert torch.equal(weight, wanted)


def test_text_encoder_part_is_reported_not_merged(tmp_path: Path) -> None:
    sd = kohya(fused(make_pairs()), "lora_unet_")
    sd["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(2, 4)
    save_file(sd, tmp_path / "lora.safetensors")
    assert len(read_lora(tmp_path / "lora.safetensors").skipped) == 1


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ((64, 64), "transformer_blocks.0.attn.to_q", "to_q .*64x64.*128x128"),
        ((128, 128), "transformer_blocks.7.attn.to_q", "1 .*blocks.7.attn.to_q"),
        ((128, 128), "down_blocks.0.attentions.0.to_q", "down_blocks.0.attentions.0.to_q"),
    ],
)
def test_lora_of_another_model_changes_nothing(
    tmp_path: Path, shape: tuple[int, int], name: str, message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, {name: (torch.ones(2, shape[1]), torch.ones(shape[0], 2))})
    model = tiny_flux()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        apply_lora(model, read_lora(path), 1.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("sd", "message"),
    [
        ({"x.weight": torch.ones(1)}, r"\bx\.weight"),
        ({"a.lora_A.weight": torch.ones(2, 4)}, r"lacks lora_B \(up\) of a"),
        (
            {"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.ones(4, 3)},
            r"\b2\b.*\b3\b",
        ),
        ({"lora_unet_x.hada_w1_a": torch.ones(2)}, "LoHa"),
        ({"lora_te_x.lora_up.weight": torch.ones(2, 2)}, "only 1 for text encoders"),
        ({"a.dora_scale": torch.ones(2)}, "DoRA"),
        ({"diffusion_model.img_in.diff": torch.ones(2)}, "difference of whole weights"),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 128),
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(100, 2),
            },
            "100 rows",
        ),
    ],
)
def test_bad_loras(tmp_path: Path, sd: dict[str, Tensor], message: str) -> None:
    save_file(sd, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_must_be_finite(tmp_path: Path, strength: float) -> None:
    save_lora(tmp_path / "lora.safetensors", make_pairs())
    with pytest.raises(ValueError, match="finite"):
        apply_lora(tiny_flux(), read_lora(tmp_path / "lora.safetensors"), strength)


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("dir/a.safetensors:0.8", "dir/a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:0.5", r"C:\loras\a.safetensors", 0.5),
        ("C:/loras/a.safetensors", "C:/loras/a.safetensors", 1.0),
        ("C:a.safetensors", "C:a.safetensors", 1.0),
    ],
)
def test_lora_argument(text: str, path: str, strength: float) -> None:
    assert parse_lora_argument(text) == (Path(path), strength)


@pytest.mark.parametrize(
    "text", ["", ":1", "a.safetensors:", "a.safetensors:strong", "a.sft:nan", "a.sft:inf"]
)
def test_bad_lora_argument(text: str) -> None:
    with pytest.raises(ValueError, match=r"LoRA"):
        parse_lora_argument(text)


def test_save_refuses(tmp_path: Path) -> None:
    a, b = torch.ones(2, 4), torch.ones(4, 3)
    with pytest.raises(ValueError, match="rank 2 and B 3"):
        save_lora(tmp_path / "l.safetensors", {"x": (a, b)})
    with pytest.raises(ValueError, match="no LoRA weight"):
        save_lora(tmp_path / "l.safetensors", {})
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save_lora(tmp_path / "l.pt", {"x": (a, a.T)})
    assert not list(tmp_path.iterdir())


def xlabs(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """XLabs' names for the attention of one double and one single block."""
    names = {
        "double_blocks.0.processor.qkv_lora1": "double_blocks.0.img_attn.qkv",
        "double_blocks.0.processor.proj_lora1": "double_blocks.0.img_attn.proj",
        "double_blocks.0.processor.qkv_lora2": "double_blocks.0.txt_attn.qkv",
        "double_blocks.0.processor.proj_lora2": "double_blocks.0.txt_attn.proj",
    }
    out: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        out[f"{theirs}.down.weight"], out[f"{theirs}.up.weight"] = pairs[ours]
    return out


def test_xlabs_names_mean_the_same_as_bfls(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    pairs = {
        f"double_blocks.0.{side}_attn.{part}": (
            torch.randn(2, 128, generator=generator),
            torch.randn(384 if part == "qkv" else 128, 2, generator=generator),
        )
        for side in ("img", "txt")
        for part in ("qkv", "proj")
    }
    save_file(xlabs(pairs), tmp_path / "xlabs.safetensors")
    save_file(keys(pairs, lambda k: f"diffusion_model.{k}", *AB), tmp_path / "bfl.safetensors")
    ours, theirs = tiny_flux(), tiny_flux()
    assert apply_lora(ours, read_lora(tmp_path / "bfl.safetensors")) == 8
    assert apply_lora(theirs, read_lora(tmp_path / "xlabs.safetensors")) == 8
    for key, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[key]), key


def test_xlabs_single_blocks_change_attention_alone(tmp_path: Path) -> None:
    a, b = torch.ones(2, 128), torch.ones(384, 2)
    name = "single_blocks.0.processor.qkv_lora"
    save_file({f"{name}.down.weight": a, f"{name}.up.weight": b}, tmp_path / "x.safetensors")
    changed = read_lora(tmp_path / "x.safetensors").factors
    assert sorted(changed) == [f"single_transformer_blocks.0.attn.to_{part}" for part in "kqv"]


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"transformer.r": 2, "transformer.lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 8 / 2**0.5),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_q": 2}}, 1.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
        ({}, 1.0),
    ],
)
def test_alpha_in_the_metadata_of_diffusers(
    tmp_path: Path, metadata: dict[str, object], scale: float
) -> None:
    path = tmp_path / "lora.safetensors"
    name = f"{DOUBLE}attn.to_q"
    pair = {name: (torch.ones(2, 128), torch.ones(128, 2))}
    sd = keys(pair, lambda k: f"transformer.{k}", *AB)
    save_file(sd, path, {"lora_adapter_metadata": json.dumps(metadata)})
    assert read_lora(path).factors[name][0].scale == pytest.approx(scale)
    save_file({**sd, f"transformer.{name}.alpha": torch.tensor(6.0)}, path, None)
    assert read_lora(path).factors[name][0].scale == 3.0


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("transformer_blocks.0.attn.to_q.lora_B.bias", "bias"),
        ("transformer_blocks.0.attn.to_q.lora_B.default.bias", "bias"),
        ("transformer_blocks.0.attn.to_q.lora_magnitude_vector", "DoRA"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", "control LoRA"),
        ("lycoris_transformer_blocks_0_attn_to_k.lokr_w1", "LoKr"),
        ("lora_unet_double_blocks_0_img_attn_proj.hada_w1_a", "LoHa"),
        ("lora_unet_double_blocks_0_img_attn_proj.dora_scale", "DoRA"),
    ],
)
def test_other_adapters_are_named_alike_by_reader_and_inspection(
    tmp_path: Path, extra: str, kind: str
) -> None:
    path = tmp_path / "lora.safetensors"
    name = f"{DOUBLE}attn.to_q"
    sd = keys({name: (torch.ones(2, 128), torch.ones(128, 2))}, lambda k: f"transformer.{k}", *AB)
    save_file({**sd, extra: torch.ones(128)}, path)
    with pytest.raises(ValueError, match=kind) as e:
        read_lora(path)
    assert extra in str(e.value)
    found = inspect_file(path)
    assert kind in found.what and found.recipes == ()


def test_comfyui_gets_the_same_change(tmp_path: Path) -> None:
    """In one layout, with alpha as a tensor, whatever the file's layout was."""
    pairs = make_pairs()
    save_file(kohya(fused(pairs), "lora_unet_"), tmp_path / "kohya.safetensors")
    lora = read_lora(tmp_path / "kohya.safetensors")
    weights = comfyui_weights(lora)
    for name, factors in lora.factors.items():
        a, b, alpha = (
            weights[f"transformer.{name}.{part}"]
            for part in ("lora_A.weight", "lora_B.weight", "alpha")
        )
        wanted = sum(f.delta() for f in factors)
        torch.testing.assert_close(float(alpha) / len(a) * (b.float() @ a.float()), wanted)
