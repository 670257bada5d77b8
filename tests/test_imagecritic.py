"""ImageCritic in the core: its LoRA, its trigger words and its detail encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_core.load import load_engine
from refiner_core.models.detail_encoder import (
    DetailEncoder,
    fill_triggers,
    load_detail_encoder,
    random_weights,
)
from refiner_core.models.kontext import Conditioning, velocity
from refiner_core.models.text import comfyui_folders, load_tokenizers
from refiner_core.models.triggers import tokenize_triggers
from refiner_core.recipes.recipe import (
    FLUX2_KLEIN,
    IMAGECRITIC,
    KONTEXT,
    REFINEANYTHING,
    lightning_steps,
)
from refiner_core.sampling import draw_noise
from refiner_core.weights.imagecritic_lora import merge_imagecritic, read_imagecritic_lora
from tests.synthetic import zero_text

from . import synthetic


def tiny_flux(double: int = 2, single: int = 2) -> FluxTransformer2DModel:
    model = FluxTransformer2DModel(
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
    )
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    return model.eval().requires_grad_(False)


def hooked(model: FluxTransformer2DModel, sd: dict[str, Tensor], strength: float) -> None:
    """The published computation, at run time: to_q, to_k, to_v beside, proj after the output."""

    def extra(module: nn.Module, name: str, after: bool) -> None:
        down, up = (sd[f"{name}.{half}.weight"] for half in ("down", "up"))

        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return out + strength * F.linear(F.linear(out if after else args[0], down), up)

        module.register_forward_hook(hook)

    for block in ("transformer_blocks", "single_transformer_blocks"):
        for i, layer in enumerate(getattr(model, block)):
            name = f"{block}.{i}.attn.processor"
            for part in "qkv":
                extra(getattr(layer.attn, f"to_{part}"), f"{name}.{part}_loras.0", after=False)
            if block == "transformer_blocks":
                extra(layer.attn.to_out[0], f"{name}.proj_loras.0", after=True)


def conditioning(model: FluxTransformer2DModel) -> Conditioning:
    text, pooled = zero_text(model)
    references = (draw_noise((1, 16, 8, 12), 1), draw_noise((1, 16, 8, 12), 2))
    return Conditioning(references, (1, 2), text + 0.3, pooled + 0.1, 3.5)


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_merged_lora_equals_the_published_computation(tmp_path: Path, strength: float) -> None:
    sd = {k: 10 * v for k, v in synthetic.imagecritic_lora(double=2, single=2).items()}
    file = synthetic.write(tmp_path / "lora.safetensors", sd, None)
    model = tiny_flux()
    other = copy.deepcopy(model)
    plain = velocity(model, draw_noise((1, 16, 8, 12), 0), 0.7, conditioning(model))
    hooked(other, sd, strength)
    theirs = velocity(other, draw_noise((1, 16, 8, 12), 0), 0.7, conditioning(other))
    assert merge_imagecritic(model, read_imagecritic_lora(file), strength) == 2 * 4 + 2 * 3
    ours = velocity(model, draw_noise((1, 16, 8, 12), 0), 0.7, conditioning(model))
    assert float((ours - theirs).abs().max()) < 1e-3 < 0.1 < float((ours - plain).abs().max())


def test_lora_of_another_model(tmp_path: Path) -> None:
    deep = synthetic.write(tmp_path / "a.safetensors", synthetic.imagecritic_lora())
    with pytest.raises(ValueError, match=r"a\.safetensors acts on 256 outputs of .*has nothing"):
        merge_imagecritic(tiny_flux(), read_imagecritic_lora(deep))
    wide = synthetic.imagecritic_lora(width=128, double=1, single=1)
    file = synthetic.write(tmp_path / "b.safetensors", wide)
    with pytest.raises(ValueError, match=r"128 outputs .*has 256 outputs"):
        merge_imagecritic(tiny_flux(), read_imagecritic_lora(file))
    half = synthetic.imagecritic_lora(double=1, single=0)
    del half["transformer_blocks.0.attn.processor.k_loras.0.up.weight"]
    with pytest.raises(ValueError, match="lacks up of transformer_blocks.0.attn.k_loras"):
        read_imagecritic_lora(synthetic.write(tmp_path / "c.safetensors", half))


@pytest.fixture(scope="module")
def t5_tokenizer() -> Any:
    roots = list(comfyui_folders())
    if not roots:
        pytest.skip("no T5 tokenizer: no ComfyUI found (COMFYUI_PATH), which carries one")
    return load_tokenizers(roots)[1]


def test_triggers_are_t5s_own_rows(t5_tokenizer: Any) -> None:
    before = t5_tokenizer("IMG1").input_ids
    prompt = IMAGECRITIC.text(None, "product")
    found = tokenize_triggers(t5_tokenizer, prompt, ("IMG1", "IMG2"), 512)
    assert [found.ids[i] for i in found.positions] == [32100, 32101]
    assert found.positions == (4, 18) and len(found.ids) == 512
    assert t5_tokenizer("IMG1").input_ids == before, "the user's tokenizer stays as it was"
    twice = tokenize_triggers(t5_tokenizer, f"{prompt} as IMG1", ("IMG1", "IMG2"), 512)
    assert twice.positions == (4, 18), "the first occurrence counts"


@pytest.mark.parametrize("prompt", ["fix the logo", "IMG1 only", "word " * 600 + "IMG1 IMG2"])
def test_a_missing_trigger_is_an_error(t5_tokenizer: Any, prompt: str) -> None:
    with pytest.raises(ValueError, match="must hold IMG1 and IMG2"):
        tokenize_triggers(t5_tokenizer, prompt, ("IMG1", "IMG2"), 512)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    return synthetic.write(
        folder / "e.safetensors", synthetic.detail_encoder(depth=2, text=96), None
    )


def test_the_file_tells_how_it_is_loaded(encoder_file: Path, tmp_path: Path) -> None:
    whole, loading = load_detail_encoder(encoder_file)
    assert loading == "assign"
    sd = synthetic.detail_encoder(depth=2, text=96)
    state = whole.state_dict()
    assert all(torch.equal(state[k], v) for k, v in sd.items())
    start = random_weights(whole, seed=0)
    delta = {k: v - start[k] for k, v in sd.items()}
    added, loading = load_detail_encoder(synthetic.write(tmp_path / "d.safetensors", delta, None))
    assert loading == "add"
    for k, v in added.state_dict().items():
        torch.testing.assert_close(v, sd[k], atol=1e-6, rtol=0)
    # As the published code treats whole weights: norms become 1 + file.
    forced, _ = load_detail_encoder(encoder_file, "add")
    key = "vision_model.pre_layrnorm.weight"
    torch.testing.assert_close(forced.state_dict()[key], 1 + sd[key])
    again, _ = load_detail_encoder(encoder_file, "add")
    assert all(
        torch.equal(a, b)
        for a, b in zip(forced.state_dict().values(), again.state_dict().values(), strict=True)
    ), "the same seed, the same weights"


def test_both_pictures_reach_their_own_token(encoder_file: Path) -> None:
    encoder: DetailEncoder = load_detail_encoder(encoder_file)[0]
    text = torch.randn(1, 20, 96, generator=torch.Generator().manual_seed(0))
    a, b = (torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    out = fill_triggers(encoder, text, (4, 18), (a, b))
    changed = (out != text).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [4, 18]
    other = fill_triggers(encoder, text, (4, 18), (b, b))
    assert not torch.equal(other[:, 4], out[:, 4]) and torch.equal(other[:, 18], out[:, 18])


def test_a_lora_in_the_encoders_place(tmp_path: Path) -> None:
    lora = synthetic.write(tmp_path / "lora.safetensors", synthetic.imagecritic_lora(double=1))
    with pytest.raises(ValueError, match="is no detail encoder"):
        load_detail_encoder(lora)
    sd = synthetic.detail_encoder(depth=2, text=96)
    del sd["fuse_module.mlp2.fc2.bias"]
    with pytest.raises(ValueError, match=r"does not fit: 1 of .*mlp2\.fc2\.bias"):
        load_detail_encoder(synthetic.write(tmp_path / "x.safetensors", sd))


def test_the_command_line_says_what_lacks(tmp_path: Path) -> None:
    lora = synthetic.write(tmp_path / "lora.safetensors", synthetic.imagecritic_lora())
    for name in ("flux", "qwen"):
        synthetic.header_only(tmp_path / f"{name}.safetensors", {"x": (2, 2)})
    with pytest.raises(ValueError, match=r"imagecritic needs detail encoder \(--detail-encoder"):
        load_engine(tmp_path / "flux.safetensors", loras=[(lora, 1.0)])
    with pytest.raises(ValueError, match="refineanything is for qwen-edit.*ComfyUI"):
        load_engine(tmp_path / "qwen.safetensors", recipe="refineanything")


def test_recipes_as_published() -> None:
    assert IMAGECRITIC.order == ("reference", "draft") and IMAGECRITIC.indices == (1, 2)
    assert (IMAGECRITIC.steps, IMAGECRITIC.guidance, IMAGECRITIC.cfg) == (28, 3.5, 1.0)
    # Under CFG the published pipeline looks for the trigger words in the negative prompt.
    assert IMAGECRITIC.resolve_guidance(7.0) == (7.0, 1.0), "guidance is the embedding's, never CFG"
    assert REFINEANYTHING.order == ("draft", "reference", "mask")
    assert (REFINEANYTHING.steps, REFINEANYTHING.cfg) == (28, 4.0)
    quick = REFINEANYTHING.accelerated(lightning_steps("X-Lightning-4steps-V1.0-bf16.safetensors"))
    assert (quick.steps, quick.cfg) == (4, 1.0) and REFINEANYTHING.accelerated().steps == 8
    turbo = IMAGECRITIC.accelerated(lightning_steps("FLUX.1-Turbo-Alpha.safetensors"))
    assert (turbo.steps, turbo.cfg, turbo.guidance) == (8, 1.0, 3.5)
    assert (
        KONTEXT.accelerated(lightning_steps("Hyper-FLUX.1-dev-16steps-lora.safetensors")).steps
        == 16
    )
    with pytest.raises(ValueError, match="flux2-klein takes no accelerator"):
        FLUX2_KLEIN.accelerated()
    text = "<SPECIAL_REGION> refine the text 'A' [12, 3, 40,50] now"
    assert REFINEANYTHING.text(text) == "refine the text 'A' now"
    assert REFINEANYTHING.text(None, "LOGO") == "Refine the LOGO."
    with pytest.raises(ValueError, match="2 references.*imagecritic takes 1"):
        IMAGECRITIC.check_references(2)
