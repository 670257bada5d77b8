"""Builds the core engine from what the user names: "nano", a file or a folder, and LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .models.core_engine import CoreEngine
from .models.detail_encoder import load_detail_encoder
from .models.devices import pick_device
from .nano import nano_file, nano_recipe
from .nano.nano_engine import load_nano
from .recipes.recipe import IMAGECRITIC, KONTEXT, OMNIREFINER, Attention, Recipe
from .recipes.recipe_files import find_recipe
from .weights.imagecritic_keys import is_imagecritic
from .weights.imagecritic_lora import merge_imagecritic, read_imagecritic_lora
from .weights.inspection import check_attention, expect, trained_attention
from .weights.lora import apply_lora, parse_lora_argument, read_lora
from .weights.safetensors_io import check_weights_path, read_header
from .weights.transformer import count_parameters, load_transformer, transformer_folder

if TYPE_CHECKING:
    from .models.flux_transformer import Transformer

LoraArgument = str | tuple[str | Path, float]
_MODEL_FOLDERS = ("diffusion_models", "unet", "checkpoints")
_TEXT_FOLDERS = ("text_encoders", "clip")
# Usual file names in ComfyUI's folders, best first.
_CLIP_NAMES = ("clip_l.safetensors", "*clip_l*.safetensors")
_T5_NAMES = (
    "t5xxl_fp16.safetensors",
    "t5xxl_fp8_e4m3fn_scaled.safetensors",
    "t5xxl*.safetensors",
    "*t5*xxl*.safetensors",
)
_VAE_NAMES = ("ae.safetensors", "flux_vae.safetensors", "*flux*vae*.safetensors", "ae*.safetensors")
_LARGE = 2_000_000_000


def pick_dtype(device: torch.device, parameters: int) -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, unless the model is too large for that."""
    large = device.type == "cuda" or parameters >= _LARGE
    return torch.bfloat16 if large else torch.float32


def load_engine(
    refiner: str | Path,
    *,
    loras: Sequence[LoraArgument] = (),
    device: str = "auto",
    recipe: str | None = None,
    clip_l: str | Path | None = None,
    t5: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizers: str | Path | None = None,
    detail_encoder: str | Path | None = None,
) -> CoreEngine:
    """An engine that runs on torch alone.

    Args:
        refiner: "nano", a diffusers folder, a single FLUX file in BFL's or diffusers' layout, or a
            nano that the user trained.
        loras: `FILE:STRENGTH` or (file, strength), merged in this order.
        device: auto, cpu, cuda or cuda:N.
        recipe: a recipe's name or file; by default omnirefiner with a LoRA and kontext without, and
            imagecritic with its LoRA.
        clip_l, t5, vae: files or folders; by default those of the diffusers folder, or of the
            ComfyUI model folders around the single file.
        tokenizers: a folder with `tokenizer` and `tokenizer_2`; by default those of the diffusers
            folder, of an installed ComfyUI or of Hugging Face's cache.
        detail_encoder: the file that the recipe imagecritic needs.

    Raises:
        ValueError: anything named is missing, broken or does not fit together.
    """
    where = pick_device(device)
    pairs = [parse_lora_argument(a) if isinstance(a, str) else (Path(a[0]), a[1]) for a in loras]
    for file, _ in pairs:
        check_weights_path(file, "LoRA")
    nano = nano_file(refiner)
    if recipe is None and nano is not None:
        chosen = nano_recipe(nano)
    else:
        chosen = find_recipe(recipe or _usual_recipe(pairs))
    chosen = _with_attention(chosen, [file for file, _ in pairs], nano, recipe is not None)
    _check_supported(chosen, detail_encoder)
    if nano is not None:
        engine = load_nano(where, nano, chosen)
    else:
        parts = _find_parts(Path(refiner).expanduser(), clip_l, t5, vae)
        engine = _flux_engine(parts, chosen, where, tokenizers)
    for number, (file, strength) in enumerate(pairs):
        did = _merge(engine.model, file, strength)
        engine.source[f"lora {number + 1}"] = f"{file.name} at {strength:g}: {did}"
    if detail_encoder is not None:
        encoder, loading = load_detail_encoder(detail_encoder)
        engine.detail = encoder.to(where)
        engine.source["detail encoder"] = f"{Path(detail_encoder).name} ({loading})"
    return engine


def _with_attention(
    recipe: Recipe, loras: Sequence[Path], nano: Path | None, given: bool
) -> Recipe:
    """The recipe with the attention that the files were trained with, unless the user gave it.

    Raises:
        ValueError: a LoRA was trained with another attention than the recipe's or another LoRA's.
    """
    files = loras if nano is None else [*loras, nano]  # a LoRA may have been trained otherwise
    trained = {f: trained_attention(read_header(f, "weight file")[1]) for f in files}
    known = [a for a in trained.values() if a is not None]
    if known and not given:
        attention: Attention = "one way" if known[0] == "one way" else "both ways"
        recipe = replace(recipe, attention=attention)
    for file in loras:
        check_attention(file.name, trained[file], recipe.name, recipe.attention)
    return recipe


def _usual_recipe(loras: Sequence[tuple[Path, float]]) -> str:
    """The recipe that follows from the LoRAs."""
    if any(is_imagecritic(read_header(file, "LoRA")[0]) for file, _ in loras):
        return IMAGECRITIC.name
    return OMNIREFINER.name if loras else KONTEXT.name


def _check_supported(recipe: Recipe, detail_encoder: str | Path | None) -> None:
    """Refuse a recipe that only ComfyUI can run or that lacks a file, before anything large is read."""
    if recipe.family != "flux":
        raise ValueError(
            f"The recipe {recipe.name} is for {recipe.family}, which the command line cannot run: "
            "use Load Refiner in ComfyUI."
        )
    if (recipe.conditioning == "detail") != (detail_encoder is not None):
        needs = "needs" if detail_encoder is None else "takes no"
        raise ValueError(
            f"The recipe {recipe.name} {needs} detail encoder (--detail-encoder FILE)."
        )
    if detail_encoder is not None:
        expect(detail_encoder, "detail_encoder")


def _merge(model: Transformer, file: Path, strength: float) -> str:
    """Merge one LoRA file of either kind. Returns what it changed, for the report."""
    if is_imagecritic(read_header(file, "LoRA")[0]):
        return f"{merge_imagecritic(model, read_imagecritic_lora(file), strength)} modules"
    lora = read_lora(file)
    count = apply_lora(model, lora, strength)
    note = f"; {len(lora.skipped)} text encoder keys not applied" if lora.skipped else ""
    return f"{count} weights{note}"


class _Parts:
    """Where the parts of a FLUX are: the transformer, its text encoders, its autoencoder."""

    def __init__(self, model: Path, clip: Path, t5: Path, vae: Path, around: Path) -> None:
        self.model, self.clip, self.t5, self.vae, self.around = model, clip, t5, vae, around


def _flux_engine(
    parts: _Parts, recipe: Recipe, device: torch.device, tokenizers: str | Path | None
) -> CoreEngine:
    # They import transformers and diffusers, for which the nano would wait.
    from .models.text import FluxText, comfyui_folders
    from .models.vae import load_vae

    roots = [*_given_folder(tokenizers), parts.around, *comfyui_folders(parts.model)]
    text = FluxText(parts.clip, parts.t5, roots, device)
    codec = load_vae(parts.vae, device)
    _check_recipe(recipe, codec.factor)
    weights = transformer_folder(parts.model) if parts.model.is_dir() else parts.model
    dtype = pick_dtype(device, count_parameters(weights))
    model = load_transformer(parts.model, dtype, device)
    source = {
        "weights": str(parts.model),
        "clip": str(parts.clip),
        "t5": str(parts.t5),
        "vae": str(parts.vae),
    }
    return CoreEngine(
        recipe,
        model,
        codec,
        text,
        device,
        source,
        encoders=(codec, text),
        release_text=text.release,
    )


def _given_folder(folder: str | Path | None) -> list[Path]:
    if folder is None:
        return []
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"The tokenizer folder {path} does not exist.")
    return [path]


def _check_recipe(recipe: Recipe, factor: int) -> None:
    if recipe.latent_factor != factor:
        raise ValueError(
            f"The recipe {recipe.name} works on latents of {recipe.latent_factor} px, but this "
            f"model's are {factor} px. Leave the recipe out to get the one that fits."
        )


def _find_parts(
    refiner: Path, clip_l: str | Path | None, t5: str | Path | None, vae: str | Path | None
) -> _Parts:
    given = [None if p is None else Path(p).expanduser() for p in (clip_l, t5, vae)]
    if refiner.is_dir():
        transformer_folder(refiner)
        homes = [refiner / name for name in ("text_encoder", "text_encoder_2", "vae")]
        looked = [(h,) for h in homes]
        usual = [h if h.is_dir() else None for h in homes]
        around = refiner
    else:
        models = _models_folder(refiner)
        text = tuple(models / name for name in _TEXT_FOLDERS)
        looked = [text, text, (models / "vae",)]
        names = (_CLIP_NAMES, _T5_NAMES, _VAE_NAMES)
        usual = [_first(f, n) for f, n in zip(looked, names, strict=True)]
        around = models
    options = (("CLIP text encoder", "--clip-l"), ("T5 text encoder", "--t5"), ("VAE", "--vae"))
    chosen: list[Path] = []
    for own, other, folders, (what, option) in zip(given, usual, looked, options, strict=True):
        path = other if own is None else own
        if path is None:
            places = " or ".join(str(f) for f in folders)
            raise ValueError(f"No {what} for {refiner.name} in {places}. Name it with {option}.")
        if not path.exists():
            raise ValueError(f"The {what} {path} ({option}) does not exist.")
        chosen.append(path)
    return _Parts(refiner, chosen[0], chosen[1], chosen[2], around)


def _models_folder(file: Path) -> Path:
    """ComfyUI's `models` folder, when the file is somewhere in it; else the file's own folder."""
    for parent in file.resolve().parents:
        if parent.name in _MODEL_FOLDERS:
            return parent.parent
    return file.resolve().parent


def _first(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    for name in names:
        for folder in folders:
            files = sorted(folder.rglob(name)) if folder.is_dir() else []
            if files:
                return files[0]
    return None
