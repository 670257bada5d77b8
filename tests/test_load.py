from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from refiner_core.load import load_engine, pick_dtype
from refiner_core.models import text as text_module
from refiner_core.models.devices import pick_device
from refiner_core.models.kontext import Conditioning, velocity
from refiner_core.models.vae import load_vae, vae_to_diffusers
from refiner_core.nano import NANO_WEIGHTS
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import KONTEXT, NANO, OMNIREFINER
from refiner_core.sampling import draw_noise
from refiner_core.weights.keys import diffusers_to_bfl
from refiner_core.weights.lora import save_lora
from tests.jobs import job_of
from tests.tiny_kontext import LETTERS, write_kontext


@pytest.fixture(scope="session")
def kontext_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kontext(tmp_path_factory.mktemp("kontext"))


def vae_to_bfl(sd: dict[str, Tensor]) -> dict[str, Tensor]:
    """ae.safetensors' names, written down independently of the code under test."""
    pairs = [
        ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block"),
        *((f"down_blocks.{i}", f"down.{i}") for i in range(4)),
        *((f"up_blocks.{i}", f"up.{3 - i}") for i in range(4)),
    ]  # fmt: skip
    out: dict[str, Tensor] = {}
    for key, tensor in sd.items():
        name = key
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    return out


@pytest.fixture(scope="session")
def comfy_models(kontext_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as single files in ComfyUI's model folders, without tokenizers."""
    models = tmp_path_factory.mktemp("models")

    def put(sd: dict[str, Tensor], name: str) -> None:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone().contiguous() for k, v in sd.items()}, models / name)

    def part(name: str) -> dict[str, Tensor]:
        return load_file(next((kontext_folder / name).glob("*.safetensors")))

    put(diffusers_to_bfl(part("transformer")), "diffusion_models/flux/kontext.safetensors")
    clip = {
        f"text_model.{k.removeprefix('text_model.')}": v for k, v in part("text_encoder").items()
    }
    put(clip, "text_encoders/clip_l.safetensors")
    t5 = part("text_encoder_2")
    t5 = {"encoder.embed_tokens.weight": t5["shared.weight"], **t5}
    put({**t5, "decoder.block.0.x.weight": torch.zeros(2)}, "clip/t5xxl_fp16.safetensors")
    put(vae_to_bfl(part("vae")), "vae/ae.safetensors")
    return models


def conditioning(text: Tensor, pooled: Tensor) -> Conditioning:
    return Conditioning(
        (draw_noise((1, 16, 4, 6), 1), draw_noise((1, 16, 6, 4), 2)), (1, 2), text, pooled, 2.5
    )


def test_folder_and_single_files_are_the_same_engine(
    kontext_folder: Path, comfy_models: Path
) -> None:
    folder = load_engine(kontext_folder, device="cpu")
    file = load_engine(
        comfy_models / "diffusion_models" / "flux" / "kontext.safetensors",
        device="cpu",
        tokenizers=kontext_folder,
    )
    assert folder.recipe is file.recipe is KONTEXT
    assert file.source["t5"].endswith("clip/t5xxl_fp16.safetensors")
    x = draw_noise((1, 16, 4, 6), 0)
    found: list[Tensor] = []
    with torch.no_grad():
        for engine in (folder, file):
            text, pooled = engine.text("fix the logo", 12)
            assert text.shape == (1, 12, 32)
            assert pooled.shape == (1, 64)
            assert engine.text("fix the logo", 12)[0] is text
            assert not torch.equal(engine.text("fix the face", 12)[1], pooled)
            found.append(velocity(engine.model, x, 0.5, conditioning(text, pooled)))
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latent = folder.encode(image)
    assert latent.shape == (1, 16, 4, 6)
    # the single file's group norms have as many groups as its narrowest level allows
    torch.testing.assert_close(latent, file.encode(image), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folder.decode(latent), file.decode(latent), rtol=1e-5, atol=1e-5)
    assert folder.decode(latent).shape == image.shape


def test_text_matches_transformers_itself(kontext_folder: Path) -> None:
    engine = load_engine(kontext_folder, device="cpu")
    text, pooled = engine.text("logo", 9)
    clip = CLIPTextModel.from_pretrained(kontext_folder / "text_encoder")
    t5 = T5EncoderModel.from_pretrained(kontext_folder / "text_encoder_2")
    ids = [52, *(LETTERS.index(c) for c in "log"), 26 + LETTERS.index("o")]
    with torch.no_grad():
        wanted = clip(torch.tensor([[*ids, *[53] * (77 - len(ids))]])).pooler_output
        assert torch.allclose(pooled, wanted, atol=1e-6)
        tokens = [3, *(4 + LETTERS.index(c) for c in "logo"), 1, 0, 0, 0]
        assert torch.allclose(text, t5(torch.tensor([tokens])).last_hidden_state, atol=1e-6)


def test_vae_matches_diffusers_itself(kontext_folder: Path, comfy_models: Path) -> None:
    theirs = AutoencoderKL.from_pretrained(kontext_folder / "vae")
    sd = theirs.state_dict()
    back = vae_to_diffusers(vae_to_bfl(sd))
    assert back.keys() == sd.keys()
    assert all(torch.equal(back[k], sd[k]) for k in sd)
    codec = load_vae(comfy_models / "vae" / "ae.safetensors")
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (theirs.encode(image * 2 - 1).latent_dist.mode() - 0.1159) * 0.3611
    assert torch.allclose(codec.encode(image), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="multiples of 8, got 20x16"):
        codec.encode(image[..., :20])


def lora_file(folder: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    name = "transformer_blocks.0.attn.to_q"
    pair = (torch.randn(2, 128, generator=g), torch.randn(128, 2, generator=g))
    save_lora(folder / "lora.safetensors", {name: pair})
    return folder / "lora.safetensors"


def test_lora_picks_the_recipe_and_changes_the_model(kontext_folder: Path, tmp_path: Path) -> None:
    file = lora_file(tmp_path)
    plain = load_engine(kontext_folder, device="cpu")
    engine = load_engine(kontext_folder, loras=[f"{file}:0.5"], device="cpu")
    assert engine.recipe is OMNIREFINER
    assert engine.source["lora 1"] == "lora.safetensors at 0.5: 1 weights"
    before, after = (e.model.transformer_blocks[0].attn.to_q.weight for e in (plain, engine))
    assert not torch.equal(before, after)
    twice = load_engine(kontext_folder, loras=[(file, 0.25), (file, 0.25)], device="cpu")
    assert torch.allclose(twice.model.transformer_blocks[0].attn.to_q.weight, after, atol=1e-6)
    named = load_engine(kontext_folder, loras=[str(file)], recipe="kontext", device="cpu")
    assert named.recipe is KONTEXT


def test_nano_takes_a_lora_and_a_path(tmp_path: Path) -> None:
    engine = load_engine("nano", device="cpu")
    weight = engine.model.transformer_blocks[0].attn.to_q.weight
    a, b = torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1)
    save_lora(tmp_path / "l.safetensors", {"transformer_blocks.0.attn.to_q": (a, b)})
    changed = load_engine("nano", loras=[(tmp_path / "l.safetensors", 2.0)], device="cpu")
    assert torch.allclose(changed.model.transformer_blocks[0].attn.to_q.weight, weight + 2)
    copy = shutil.copy(NANO_WEIGHTS, tmp_path / "mine.safetensors")
    assert load_engine(copy, device="cpu").recipe.name == "nano"
    with pytest.raises(ValueError, match="LoRA for another model"):
        load_engine("nano", loras=[str(lora_file(tmp_path))], device="cpu")


def test_nano_takes_a_recipe_of_the_users(tmp_path: Path) -> None:
    """The embedded nano and one from a file run by the recipe that was named for them."""
    file = tmp_path / "mine.json"
    file.write_text('{"name": "mine", "based_on": "nano", "steps": 7, "context": 2.0}')
    expected = replace(NANO, name="mine", title="mine", steps=7, context=2.0)
    for refiner in ("nano", NANO_WEIGHTS):
        assert load_engine(refiner, recipe=str(file), device="cpu").recipe == expected


def test_nano_takes_no_detail_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nano .*detail encoder"):
        load_engine("nano", detail_encoder=tmp_path / "detail.safetensors", device="cpu")


@pytest.mark.parametrize(
    "change", [{"guidance": 2.5}, {"family": "flux2"}, {"conditioning": "vision"}]
)
def test_nano_refuses_recipes_that_it_cannot_run(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        load_nano(recipe=replace(NANO, name="mine", **change))


@pytest.mark.parametrize("recipe", ["kontext", "omnirefiner"])
def test_recipe_must_fit_the_weights(recipe: str, kontext_folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"{recipe} works on latents of 8 px"):
        load_engine("nano", recipe=recipe, device="cpu")
    with pytest.raises(ValueError, match="nano works on latents of 4 px"):
        load_engine(kontext_folder, recipe="nano", device="cpu")
    with pytest.raises(ValueError, match="no recipe 'other'"):
        load_engine(kontext_folder, recipe="other", device="cpu")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text_encoders/clip_l.safetensors", r"No CLIP text encoder .*--clip-l"),
        ("clip/t5xxl_fp16.safetensors", r"No T5 text encoder .*text_encoders or .*clip.*--t5"),
        ("vae/ae.safetensors", r"No VAE .*--vae"),
    ],
)
def test_missing_parts_are_named(
    comfy_models: Path, kontext_folder: Path, tmp_path: Path, part: str, message: str
) -> None:
    models = Path(shutil.copytree(comfy_models, tmp_path / "models"))
    moved = (models / part).rename(tmp_path / "elsewhere.safetensors")
    file = models / "diffusion_models" / "flux" / "kontext.safetensors"
    with pytest.raises(ValueError, match=message):
        load_engine(file, device="cpu", tokenizers=kontext_folder)
    option = {"text": "clip_l", "clip": "t5", "vae/": "vae"}[part[:4]]
    options: dict[str, Path] = {option: moved}
    engine = load_engine(file, device="cpu", tokenizers=kontext_folder, **options)  # type: ignore[arg-type]
    assert str(moved) in engine.source.values()
    with pytest.raises(ValueError, match=r"gone\.safetensors .* does not exist"):
        load_engine(
            file, device="cpu", tokenizers=kontext_folder, **{option: Path("gone.safetensors")}
        )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("clip_l", "vae/ae.safetensors", "not a CLIP text encoder"),
        ("t5", "text_encoders/clip_l.safetensors", "not a T5 text encoder"),
        ("vae", "clip/t5xxl_fp16.safetensors", r"Take FLUX's ae\.safetensors"),
    ],
)
def test_mixed_up_files_are_told(
    comfy_models: Path, kontext_folder: Path, option: str, name: str, message: str
) -> None:
    options: dict[str, Path] = {option: comfy_models / name}
    with pytest.raises(ValueError, match=message):
        load_engine(kontext_folder, device="cpu", **options).text("x", 4)  # type: ignore[arg-type]


def test_missing_tokenizers_are_told_before_anything_is_read(
    comfy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = comfy_models / "diffusion_models" / "flux" / "kontext.safetensors"
    monkeypatch.setattr(text_module, "comfyui_folders", lambda _: iter(()))  # a machine without
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"No CLIP tokenizer.*--tokenizers FOLDER"):
        load_engine(file, device="cpu")
    with pytest.raises(ValueError, match="tokenizer folder .* does not exist"):
        load_engine(file, device="cpu", tokenizers=tmp_path / "none")


@pytest.mark.parametrize("refiner", ["gone.safetensors", "model.ckpt"])
def test_bad_refiner(refiner: str) -> None:
    with pytest.raises(ValueError, match=r"does not exist|pickle"):
        load_engine(refiner, device="cpu")


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")
    for bad in ("gpu", "cuda:x", "cpu:", ""):
        with pytest.raises(ValueError, match="auto, cpu, cuda"):
            pick_device(bad)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA GPU"):
            pick_device("cuda")
    assert pick_dtype(torch.device("cuda"), 10) == torch.bfloat16
    assert pick_dtype(torch.device("cpu"), 10) == torch.float32
    assert pick_dtype(torch.device("cpu"), 12_000_000_000) == torch.bfloat16


def test_engine_samples(kontext_folder: Path) -> None:
    from refiner_core.images.geometry import Extent

    engine = load_engine(kontext_folder, device="cpu")
    engine.recipe = replace(engine.recipe, text_tokens=8)
    sigmas = engine.recipe.sigmas(Extent(48, 32), 2)
    references = conditioning(*engine.text("x", 8)).references
    seen: list[int] = []
    with torch.no_grad():
        out = engine.sample(
            job_of(references, sigmas, prompt="fix", guidance=2.5),
            lambda i, steps, x0: seen.append(i),
        )
    assert out.shape == references[0].shape
    assert seen == [1, 2]
