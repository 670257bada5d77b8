from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from refiner_core.models.kontext import Conditioning, velocity
from refiner_core.weights.keys import bfl_to_diffusers, diffusers_to_bfl
from refiner_core.weights.safetensors_io import read_weights
from refiner_core.weights.transformer import count_parameters, flux_config, load_transformer


def tiny_flux(heads: int = 1, guidance: bool = True, seed: int = 0) -> FluxTransformer2DModel:
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guidance,
    )
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    return model.eval().requires_grad_(False)


def velocity_of(model: FluxTransformer2DModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    draw = [torch.randn(1, 16, *s, generator=g) for s in ((4, 6), (4, 6), (6, 4))]
    text, pooled = torch.randn(1, 5, 24, generator=g), torch.randn(1, 20, generator=g)
    return velocity(
        model, draw[0], 0.7, Conditioning((draw[1], draw[2]), (1, 2), text, pooled, guidance=2.5)
    )


def fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("guidance", [True, False])
def test_conversion_is_its_own_inverse(heads: int, guidance: bool) -> None:
    sd = tiny_flux(heads, guidance).state_dict()
    bfl = diffusers_to_bfl(sd)
    assert bfl["double_blocks.1.img_attn.qkv.weight"].shape == (384 * heads, 128 * heads)
    assert bfl["single_blocks.2.linear1.bias"].shape == (7 * 128 * heads,)
    back = bfl_to_diffusers(bfl)
    assert back.keys() == sd.keys()
    assert all(torch.equal(back[k], sd[k]) for k in sd)
    assert flux_config(back)["num_attention_heads"] == heads
    assert flux_config(back)["guidance_embeds"] is guidance


def test_full_size_kontext_has_kontexts_configuration() -> None:
    with torch.device("meta"):
        sd = FluxTransformer2DModel(guidance_embeds=True).state_dict()
    bfl = diffusers_to_bfl(sd)
    assert len(bfl) == 780
    assert bfl["single_blocks.37.linear1.weight"].shape == (21504, 3072)
    back = bfl_to_diffusers(bfl)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in sd.items()}
    assert flux_config(back) == {
        "in_channels": 64,
        "out_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    }


def test_last_modulation_is_swapped_and_the_rest_is_not() -> None:
    sd = tiny_flux().state_dict()
    bfl = diffusers_to_bfl(sd)
    scale, shift = sd["norm_out.linear.bias"].chunk(2)
    assert torch.equal(bfl["final_layer.adaLN_modulation.1.bias"], torch.cat([shift, scale]))
    assert torch.equal(bfl["img_in.weight"], sd["x_embedder.weight"])


def same_model(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Bit-equal weights; velocities only close: where a weight lies in memory changes the order in
    which a threaded matrix product sums."""
    weights = b.state_dict()
    assert a.state_dict().keys() == weights.keys()
    assert [k for k, v in a.state_dict().items() if not torch.equal(v, weights[k])] == []
    torch.testing.assert_close(velocity_of(a), velocity_of(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("norm", ["scale", "weight"])
def test_bfl_file_gives_the_same_velocity(tmp_path: Path, prefix: str, norm: str) -> None:
    model = tiny_flux()
    bfl = diffusers_to_bfl(model.state_dict())
    sd = {prefix + k.replace("_norm.scale", f"_norm.{norm}"): v for k, v in bfl.items()}
    save_file(sd, tmp_path / "flux.safetensors")
    same_model(load_transformer(tmp_path / "flux.safetensors"), model)


def test_diffusers_file_and_folders_give_the_same_velocity(tmp_path: Path) -> None:
    model = tiny_flux()
    save_file(model.state_dict(), tmp_path / "flux.safetensors")
    model.save_pretrained(tmp_path / "whole" / "transformer")
    model.save_pretrained(tmp_path / "shards" / "transformer", max_shard_size="1MB")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 2
    for path in ("flux.safetensors", "whole", "shards", "shards/transformer"):
        same_model(load_transformer(tmp_path / path), model)


def test_checkpoint_with_other_parts_gives_the_transformer(tmp_path: Path) -> None:
    bfl = diffusers_to_bfl(tiny_flux().state_dict())
    sd = {f"model.diffusion_model.{k}": v for k, v in bfl.items()}
    sd["vae.decoder.conv_in.weight"] = torch.zeros(2)
    save_file(sd, tmp_path / "all.safetensors")
    same_model(load_transformer(tmp_path / "all.safetensors"), tiny_flux())


def test_loading_takes_dtype_and_no_second_copy(tmp_path: Path) -> None:
    save_file(diffusers_to_bfl(tiny_flux().state_dict()), tmp_path / "flux.safetensors")
    model = load_transformer(tmp_path / "flux.safetensors", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    q = model.transformer_blocks[0].attn.to_q.weight
    k = model.transformer_blocks[0].attn.to_k.weight
    # query and key are still rows of the one matrix that was read
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert count_parameters(tmp_path / "flux.safetensors") == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc/self/maps")
def test_a_converted_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    """The few tensors that need no conversion must not keep the file mapped beside the copy."""
    path = tmp_path / "half.safetensors"
    save_file({"a": torch.rand(64, 64).half(), "b": torch.rand(64)}, path)
    mixed = read_weights(path, torch.float32)
    assert {x.dtype for x in mixed.values()} == {torch.float32}
    assert path.name not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("convention", ["scale_weight", "weight_scale", "metadata", "rows"])
def test_scaled_fp8_is_multiplied_out(tmp_path: Path, convention: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    quantised, scale = fp8(weight)
    sd = {"a.weight": quantised, "a.bias": torch.ones(6)}
    metadata = None
    if convention == "scale_weight":
        sd |= {
            "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
            "a.scale_weight": scale,
            "a.scale_input": torch.ones(()),
        }
    elif convention == "rows":
        sd["a.weight_scale"] = scale.expand(6, 1).contiguous()
    else:
        sd |= {"a.weight_scale": scale, "a.input_scale": torch.ones(())}
        entry = {"format": "float8_e4m3fn"}
        if convention == "metadata":
            metadata = {"_quantization_metadata": json.dumps({"layers": {"a": entry}})}
        else:
            sd["a.comfy_quant"] = torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)
    save_file(sd, tmp_path / "w.safetensors", metadata)
    out = read_weights(tmp_path / "w.safetensors")
    assert out.keys() == {"a.weight", "a.bias"}
    assert torch.equal(out["a.weight"], quantised.float() * scale)
    assert torch.allclose(out["a.weight"], weight, rtol=0.07, atol=1e-4)
    assert (
        read_weights(tmp_path / "w.safetensors", torch.bfloat16)["a.bias"].dtype == torch.bfloat16
    )


def test_fp8_flux_file_loads(tmp_path: Path) -> None:
    sd: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    exact: dict[str, torch.Tensor] = {}
    for k, v in diffusers_to_bfl(tiny_flux().state_dict()).items():
        if k.endswith(".weight") and "blocks" in k:
            q, scale = fp8(v)
            sd |= {k: q, k.removesuffix("weight") + "scale_weight": scale}
            exact[k] = q.float() * scale
        else:
            sd[k] = exact[k] = v
    save_file(sd, tmp_path / "scaled.safetensors")
    save_file(exact, tmp_path / "exact.safetensors")
    same_model(
        load_transformer(tmp_path / "scaled.safetensors"),
        load_transformer(tmp_path / "exact.safetensors"),
    )


def test_plain_fp8_is_cast(tmp_path: Path) -> None:
    w = torch.linspace(-2, 2, 12).reshape(3, 4).to(torch.float8_e5m2)
    save_file({"a.weight": w}, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["a.weight"], w.float())


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("nvfp4", torch.uint8), ("int8_tensorwise", torch.int8), (None, torch.uint8)],
)
def test_other_quantisation_is_refused(
    tmp_path: Path, layout: str | None, dtype: torch.dtype
) -> None:
    sd = {"a.weight": torch.zeros(4, 2, dtype=dtype)}
    if layout:
        entry = json.dumps({"format": layout}).encode()
        sd["a.comfy_quant"] = torch.tensor(list(entry), dtype=torch.uint8)
    save_file(sd, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"a\.weight is quantised .*Only fp8"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"not even a pickle")
    for read in (read_weights, load_transformer):
        with pytest.raises(ValueError, match=r"pickle .*Convert it to \.safetensors"):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "does not exist"),
        ("empty.safetensors", b"", "damaged, cut off"),
        ("text.safetensors", b"<html>404 not found</html>", "damaged, cut off"),
        ("model.gguf", b"GGUF", "GGUF"),
        ("model.txt", b"x", r"not a \.safetensors file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_transformer(tmp_path / name)


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "flux.safetensors"
    save_file(tiny_flux().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut off"):
        load_transformer(path)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.diffusion_model.label_emb.0.0.weight", "SDXL"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion U-Net"),
        ("transformer_blocks.0.img_mod.1.weight", "Qwen-Image"),
        ("double_stream_modulation_img.lin.weight", r"FLUX\.2"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("text_model.embeddings.token_embedding.weight", "CLIP"),
        ("decoder.conv_in.weight", "autoencoder"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "LoRA"),
        ("something.weight", r"unknown \(first keys: something\.weight"),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, key: str, name: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"not a FLUX\.1 transformer.*{name}"):
        load_transformer(tmp_path / "other.safetensors")


def test_missing_left_over_and_misshapen_weights_are_counted(tmp_path: Path) -> None:
    sd = tiny_flux().state_dict()
    path = tmp_path / "flux.safetensors"
    save_file({k: v for k, v in sd.items() if ".norm_q." not in k}, path)
    with pytest.raises(ValueError, match=r"5 weights are missing: .*norm_q.*, \.\.\."):
        load_transformer(path)
    save_file({**sd, "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match=r"1 weights belong to no part of the model: extra\.weight"
    ):
        load_transformer(path)
    save_file({**sd, "proj_out.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"proj_out\.bias \(3,\) instead of \(64,\)"):
        load_transformer(path)
    bfl = diffusers_to_bfl(sd)
    save_file({**bfl, "double_blocks.0.img_attn.qkv.weight": torch.zeros(100, 128)}, path)
    with pytest.raises(ValueError, match=r"qkv\.weight has 100 rows"):
        load_transformer(path)


def test_flux_fill_is_refused(tmp_path: Path) -> None:
    sd = tiny_flux().state_dict()
    sd["x_embedder.weight"] = torch.zeros(128, 384)
    save_file(sd, tmp_path / "fill.safetensors")
    with pytest.raises(ValueError, match=r"384 channels .*Fill"):
        load_transformer(tmp_path / "fill.safetensors")


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no transformer/config\.json"):
        load_transformer(tmp_path)
    folder = tmp_path / "transformer"
    tiny_flux().save_pretrained(folder, max_shard_size="1MB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of its files: {shard.name}"):
        load_transformer(tmp_path)
    for file in folder.glob("*safetensors*"):
        file.unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle"):
        load_transformer(tmp_path)
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DConditionModel"):
        load_transformer(tmp_path)


def test_half_a_fused_matrix_cannot_be_written() -> None:
    sd = tiny_flux().state_dict()
    del sd["transformer_blocks.0.attn.to_k.weight"]
    with pytest.raises(ValueError, match=r"img_attn\.qkv\.weight is made of 3 .* only 2"):
        diffusers_to_bfl(sd)
