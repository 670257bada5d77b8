"""What weight files are, told by their headers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from refiner_core.__main__ import main
from refiner_core.models.lora_models import changed_shapes, flux1_shapes, with_fit
from refiner_core.nano import NANO_WEIGHTS
from refiner_core.weights.inspection import expect, inspect_file
from refiner_core.weights.lora import read_lora

from . import synthetic

FLUX = {
    "img_in.weight": (3072, 64),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "vector_in.in_layer.weight": (3072, 768),
}
QWEN = {
    "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
    "txt_norm.weight": (3584,),
    "img_in.weight": (3072, 64),
}
FLUX2 = {"double_stream_modulation_img.lin.weight": (36864, 6144), "img_in.weight": (6144, 128)}


def named(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + k: v for k, v in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "kind", "family", "slot"),
    [
        (FLUX, "base", "flux", "diffusion_model"),
        (named("model.diffusion_model.", FLUX), "base", "flux", "diffusion_model"),
        (QWEN, "base", "qwen-edit", "diffusion_model"),
        (QWEN | {"__index_timestep_zero__": (0,)}, "base", "qwen-edit", "diffusion_model"),
        (FLUX2, "base", "flux2", "diffusion_model"),
        (FLUX | {"img_in.weight": (3072, 384)}, "base", "flux", "none"),
        ({"decoder.conv_in.weight": (512, 16, 3, 3)}, "vae", "flux", "vae"),
        ({"decoder.conv_in.weight": (512, 32, 3, 3)}, "vae", "flux2", "vae"),
        ({"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1)}, "vae", "qwen-edit", "vae"),
        (
            {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)},
            "text encoder",
            "flux",
            "t5xxl",
        ),
        (
            {"text_model.embeddings.token_embedding.weight": (49408, 768)},
            "text encoder",
            "flux",
            "clip_l",
        ),
        (
            {"visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14), "model.layers.0.x": (2, 2)},
            "text encoder",
            "qwen-edit",
            "text_encoder",
        ),
        (
            {"model.layers.0.self_attn.q_proj.weight": (4096, 5120)},
            "text encoder",
            "flux2",
            "text_encoder",
        ),
        (
            {"model.layers.0.self_attn.q_norm.weight": (128,)},
            "text encoder",
            "flux2",
            "text_encoder",
        ),
        ({"joint_blocks.0.x.weight": (2, 2)}, "other", None, "none"),
    ],
)
def test_full_size_headers(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str, family: str | None, slot: str
) -> None:
    found = inspect_file(synthetic.header_only(tmp_path / "file.safetensors", shapes))
    assert (found.kind, found.family, found.slot) == (kind, family, slot)
    assert "BF16" in found.types


def test_the_published_files(tmp_path: Path) -> None:
    lora = synthetic.imagecritic_lora()
    encoder = synthetic.detail_encoder(text=128)
    assert len(lora) == 380 and len(encoder) == 407, "as many weights as the published files"
    found = inspect_file(synthetic.write(tmp_path / "lora.safetensors", lora))
    assert (found.kind, found.rank, found.recipes, found.folder) == (
        "lora",
        4,
        ("imagecritic",),
        "loras",
    )
    found = inspect_file(synthetic.write(tmp_path / "detail_encoder.safetensors", encoder))
    assert (found.kind, found.recipes, found.folder) == (
        "detail encoder",
        ("imagecritic",),
        "clip_vision",
    )
    found = inspect_file(
        synthetic.write(tmp_path / "a.safetensors", synthetic.refineanything_lora())
    )
    assert (found.family, found.recipes, found.slot) == (
        "qwen-edit",
        ("refineanything",),
        "refiner_lora",
    )
    found = inspect_file(synthetic.write(tmp_path / "b.safetensors", synthetic.lightning_lora()))
    assert (found.family, found.slot, found.alpha) == (
        "qwen-edit",
        "accelerator_lora",
        "in the tensors",
    )
    hyper = synthetic.flux_accelerator_lora()
    assert len(hyper) == 1008, "as many weights as the published files"
    found = inspect_file(synthetic.write(tmp_path / "c.safetensors", hyper))
    assert (found.family, found.slot, found.recipes) == (
        "flux",
        "accelerator_lora",
        ("omnirefiner", "imagecritic", "kontext"),
    )


@pytest.mark.parametrize(
    ("modules", "family"),
    [
        (["transformer_blocks.18.attn.to_q", "single_transformer_blocks.37.attn.to_k"], "flux"),
        (["transformer_blocks.0.attn.to_q"], "flux"),
        (["transformer_blocks.59.attn.to_q"], "qwen-edit"),
        (
            ["transformer_blocks.7.attn.to_q", "single_transformer_blocks.47.attn.to_qkv_mlp_proj"],
            "flux2",
        ),
        (["transformer_blocks.0.attn.to_q", "single_transformer_blocks.2.attn.to_k"], "flux"),
        (
            ["single_transformer_blocks.7.attn.to_q", "single_transformer_blocks.20.attn.to_k"],
            "flux",
        ),
        (["transformer_blocks.4.attn.to_q", "single_transformer_blocks.19.attn.to_k"], "flux2"),
        (["blocks.3.cross_attn.q"], None),
    ],
)
def test_loras_tell_their_base(tmp_path: Path, modules: list[str], family: str | None) -> None:
    file = synthetic.write(tmp_path / "x.safetensors", synthetic.peft_lora(modules))
    assert inspect_file(file).family == family


@pytest.mark.parametrize(
    "ending",
    [
        ".lora_{A,B}.weight",
        ".lora_{A,B}.default.weight",
        ".lora_{down,up}.weight",
        ".lora.{down,up}.weight",
        ".lora_linear_layer.{down,up}.weight",
        "_lora.{down,up}.weight",
    ],
)
def test_what_is_read_as_a_lora_is_a_lora_to_inspect(tmp_path: Path, ending: str) -> None:
    before, halves, after = re.split("[{}]", ending)
    module = "transformer.transformer_blocks.0.attn.to_q"
    shapes = zip(halves.split(","), ((4, 24), (24, 4)), strict=True)
    weights = {f"{module}{before}{half}{after}": torch.ones(shape) for half, shape in shapes}
    file = synthetic.write(tmp_path / "x.safetensors", weights, None)
    assert list(read_lora(file).factors) == ["transformer_blocks.0.attn.to_q"]
    found = inspect_file(file)
    assert (found.kind, found.family, found.rank) == ("lora", "flux", 4)


def test_gguf_and_fp8(tmp_path: Path) -> None:
    file = synthetic.write_gguf(tmp_path / "flux1-kontext-Q8_0.gguf", FLUX, "flux")
    found = inspect_file(file)
    assert (found.family, found.types, found.node) == ("flux", "GGUF Q8_0", "Refiner from Model")
    assert found.parameters == sum(torch.Size(s).numel() for s in FLUX.values())
    scaled = {"single_blocks.0.linear1.scale_weight": torch.ones(1)}
    weights = {k: torch.zeros(2, 64, dtype=torch.float8_e4m3fn) for k in FLUX}
    found = inspect_file(synthetic.write(tmp_path / "fp8.safetensors", weights | scaled, None))
    assert found.types == "F8_E4M3 (scaled)"


def test_cut_off_and_foreign_files(tmp_path: Path) -> None:
    whole = synthetic.write(tmp_path / "lora.safetensors", synthetic.imagecritic_lora(double=1))
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half.*cut off: \d+ of \d+ bytes"):
        inspect_file(half)
    gguf = synthetic.write_gguf(tmp_path / "x.gguf", FLUX, "flux")
    with gguf.open("r+b") as f:
        f.truncate(20 << 20)
    with pytest.raises(ValueError, match=r"x\.gguf is cut off: 20971520 of \d+ bytes"):
        inspect_file(gguf)
    with gguf.open("r+b") as f:
        f.truncate(100)
    with pytest.raises(ValueError, match="GGUF but cut off"):
        inspect_file(gguf)
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match="neither safetensors nor GGUF"):
        inspect_file(page)
    with pytest.raises(ValueError, match="does not exist"):
        inspect_file(tmp_path / "nothing.safetensors")


def test_swapped_files_are_named(tmp_path: Path) -> None:
    lora = synthetic.write(tmp_path / "critic-lora.safetensors", synthetic.imagecritic_lora())
    qwen = synthetic.write(tmp_path / "refineany.safetensors", synthetic.refineanything_lora())
    clip = synthetic.header_only(tmp_path / "clip_l.safetensors", {"text_model.x": (4, 4)})
    flux2 = synthetic.header_only(tmp_path / "flux2.safetensors", FLUX2)
    for path, slot, family, says in (
        (
            lora,
            "detail_encoder",
            "flux",
            r"critic-lora.*is ImageCritic's LoRA.*goes to refiner_lora",
        ),
        (qwen, "refiner_lora", "flux", "refineany.*LoRA for Qwen-Image.*for FLUX.1-Kontext"),
        (lora, "refiner_lora", "flux2", "critic-lora.*Kontext.*for FLUX.2"),
        (clip, "t5xxl", "flux", "clip_l.*CLIP text encoder.*goes to clip_l"),
        (flux2, "diffusion_model", "flux", "flux2.*FLUX.2.*FLUX.1-Kontext was expected"),
        (clip, "vae", "flux", "clip_l.*a VAE"),
    ):
        with pytest.raises(ValueError, match=says):
            expect(path, slot, family)
    assert expect(lora, "refiner_lora", "flux").rank == 4


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = synthetic.write(tmp_path / "lora.safetensors", synthetic.imagecritic_lora(double=2))
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert "imagecritic" in said and "models/loras" in said and "rank      4" in said
    assert main(["inspect", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["slot"] == "refiner_lora"
    assert main(["inspect", str(tmp_path / "no.safetensors")]) == 2


def test_one_bad_file_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = synthetic.write(tmp_path / "lora.safetensors", synthetic.imagecritic_lora(double=2))
    page, pointer = tmp_path / "page.safetensors", tmp_path / "lfs.safetensors"
    page.write_text("<!DOCTYPE html><html>")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert main(["inspect", str(page), str(good), str(pointer)]) == 2
    said = capsys.readouterr()
    assert "imagecritic" in said.out
    assert "page.safetensors" in said.err and "Git LFS" in said.err and "2 of 3" in said.err
    assert main(["inspect", "--json", str(page), str(good)]) == 2
    entries = json.loads(capsys.readouterr().out)
    assert "error" in entries[0] and entries[1]["slot"] == "refiner_lora"


def test_models_that_comfyui_cannot_load_fit_no_recipe(tmp_path: Path) -> None:
    pig = inspect_file(synthetic.write_gguf(tmp_path / "pig.gguf", FLUX, "pig"))
    assert "'pig'" in pig.what and pig.recipes == ()
    weights = {k: torch.zeros(2, 64) for k in FLUX}
    state = {"single_blocks.0.linear1.weight.quant_state.bitsandbytes__nf4": torch.zeros(2)}
    nf4 = inspect_file(synthetic.write(tmp_path / "nf4.safetensors", weights | state, None))
    assert "bitsandbytes" in nf4.what and nf4.recipes == ()
    nunchaku = {
        "x_embedder.weight": torch.zeros(2, 64),
        "single_transformer_blocks.0.mlp_fc1.qweight": torch.zeros(2, 2, dtype=torch.int8),
        "transformer_blocks.0.qkv_proj.wscales": torch.zeros(2, 2),
    }
    svdq = inspect_file(synthetic.write(tmp_path / "svdq.safetensors", nunchaku, None))
    assert "FLUX.1" in svdq.what and "Nunchaku" in svdq.what and svdq.recipes == ()


_PAIR = {
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 4),
    "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(4, 2),
}


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (_PAIR | {"diffusion_model.img_in.set_weight": torch.ones(4, 4)}, "set_weight|other parts"),
        ({"lora_unet_double_blocks_0_img_mlp_0.a1.weight": torch.ones(4, 2)}, "GLoRA"),
        ({k: v.to(torch.int8) for k, v in _PAIR.items()}, "I8|int8"),
    ],
    ids=["whole weights", "GLoRA", "integers"],
)
def test_inspect_and_the_reader_refuse_the_same_loras(
    tmp_path: Path, state: dict[str, torch.Tensor], named: str
) -> None:
    file = synthetic.write(tmp_path / "x.safetensors", state, None)
    found = inspect_file(file)
    assert found.recipes == () and re.search(named, found.what)
    with pytest.raises(ValueError, match=named):
        read_lora(file)


def test_a_whole_number_is_an_alpha(tmp_path: Path) -> None:
    alpha = {"transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(4)}
    file = synthetic.write(tmp_path / "x.safetensors", _PAIR | alpha, None)
    assert inspect_file(file).recipes
    (factor,) = next(iter(read_lora(file).factors.values()))
    assert float((factor.b @ factor.a).mean()) * factor.scale == pytest.approx(4.0)


def test_kohyas_mlp_is_no_accelerator_and_broken_loras_are_named(tmp_path: Path) -> None:
    module = "lora_unet_double_blocks_0_img_mlp_0"
    sd = {
        f"{module}.lora_down.weight": torch.ones(2, 4),
        f"{module}.lora_up.weight": torch.ones(4, 2),
    }
    found = inspect_file(synthetic.write(tmp_path / "style.safetensors", sd, None))
    assert (found.family, found.slot) == ("flux", "refiner_lora")
    sd[f"{module}.lora_up.weight"] = torch.ones(4, 3)
    found = inspect_file(synthetic.write(tmp_path / "broken.safetensors", sd, None))
    assert "ranks 2 and 3" in found.what and found.recipes == ()


@pytest.mark.parametrize(
    ("double", "single", "width", "recipes", "says"),
    [
        ([18], [37], 3072, ("omnirefiner", "kontext"), "FLUX.1"),
        ([0], [2], 256, ("nano",), "nano"),
        ([0, 7], [], 256, (), r"1 of its 2 .*: transformer_blocks\.7\.attn"),
        ([19], [37], 3072, (), r"1 of its 2 .*: transformer_blocks\.19\.attn"),
        ([0], [0], 24, (), "24x24.*3072x3072"),
    ],
)
def test_a_lora_is_offered_for_the_models_that_it_fits_as_a_whole(
    tmp_path: Path,
    double: list[int],
    single: list[int],
    width: int,
    recipes: tuple[str, ...],
    says: str,
) -> None:
    modules = [f"transformer_blocks.{i}.attn.to_q" for i in double]
    modules += [f"single_transformer_blocks.{i}.attn.to_q" for i in single]
    file = synthetic.write(tmp_path / "x.safetensors", synthetic.peft_lora(modules, width))
    found = with_fit(inspect_file(file), NANO_WEIGHTS)
    assert found.recipes == recipes and re.search(says, found.what)
    assert (found.slot == "refiner_lora") == bool(recipes)


def test_the_reader_and_the_header_agree_on_what_a_lora_changes(tmp_path: Path) -> None:
    fused = {
        "lora_unet_double_blocks_0_img_attn_qkv": (4, 72, 24),
        "lora_unet_single_blocks_1_linear1": (4, 168, 24),
        "double_blocks.3.txt_mlp.0": (2, 96, 24),
        "transformer.proj_out": (2, 64, 24),
        "unknown.thing": (2, 5, 7),
    }
    sd = {}
    for module, (rank, rows, columns) in fused.items():
        sd[f"{module}.lora_down.weight"] = torch.ones(rank, columns)
        sd[f"{module}.lora_up.weight"] = torch.ones(rows, rank)
    file = synthetic.write(tmp_path / "x.safetensors", sd, None)
    factors = {k: f[0] for k, f in read_lora(file).factors.items()}
    read = {k: (len(f.b), f.a.shape[1]) for k, f in factors.items()}
    assert changed_shapes({k: tuple(v.shape) for k, v in sd.items()}) == read


def test_the_shapes_of_flux_are_those_of_its_class() -> None:
    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)
    own = {
        k.removesuffix(".weight"): tuple(v.shape)
        for k, v in flux.state_dict().items()
        if v.ndim == 2
    }
    assert flux1_shapes() == own
