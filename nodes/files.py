"""The files that Load Refiner is given: where they lie, and which of them are wrong or missing."""

from __future__ import annotations

import os
from collections.abc import Mapping

import folder_paths

from ..refiner_core.recipes.recipe import Recipe
from ..refiner_core.weights.inspection import expect

NONE = "none"
NANO_CHOICE = "nano (embedded)"
# Folder under models and what belongs there, by the input's name.
_SLOTS = {
    "diffusion_model": ("diffusion_models", "the recipe's model"),
    "clip_l": ("text_encoders", "FLUX.1's CLIP text encoder, clip_l.safetensors"),
    "t5xxl": ("text_encoders", "FLUX.1's T5 text encoder, t5xxl_fp16 or t5xxl_fp8_e4m3fn_scaled"),
    "text_encoder": ("text_encoders", "the model's text encoder"),
    "vae": ("vae", "the model's autoencoder"),
    "refiner_lora": ("loras", "the recipe's LoRA"),
    "detail_encoder": ("clip_vision", "ImageCritic's detail_encoder.safetensors"),
    "accelerator_lora": (
        "loras",
        "an accelerator (Lightning for Qwen-Image-Edit-2511, Turbo or Hyper for FLUX.1); with none the "
        "recipe takes its own steps and CFG",
    ),
}
# The same where it depends on the recipe's family.
_OF_FAMILY = {
    (
        "diffusion_model",
        "flux",
    ): "FLUX.1-Kontext-dev, flux1-dev-kontext_fp8_scaled or the bf16 file",
    ("diffusion_model", "qwen-edit"): "Qwen-Image-Edit-2511, qwen_image_edit_2511_fp8mixed",
    ("diffusion_model", "flux2"): "FLUX.2 [klein] or [dev]",
    ("text_encoder", "qwen-edit"): "Qwen2.5-VL, qwen_2.5_vl_7b_fp8_scaled",
    ("text_encoder", "flux2"): "qwen_3_4b for FLUX.2 [klein] 4B, qwen_3_8b for 9B, "
    "mistral_3_small_flux2 for [dev]",
    ("vae", "flux"): "FLUX.1's autoencoder, ae",
    ("vae", "qwen-edit"): "Qwen-Image's autoencoder, qwen_image_vae",
    ("vae", "flux2"): "FLUX.2's autoencoder, flux2-vae",
}


def _belongs(slot: str, family: str | None) -> str:
    return _OF_FAMILY.get((slot, family or ""), _SLOTS[slot][1])


def choices(folder: str) -> list[str]:
    """None, and the files of one of ComfyUI's model folders."""
    return [NONE, *folder_paths.get_filename_list(folder)]


def file_path(folder: str, name: str) -> str:
    """The path of a chosen file.

    Raises:
        ValueError: a pickle.
        FileNotFoundError: it is not there.
    """
    path = folder_paths.get_full_path_or_raise(folder, name)
    if os.path.splitext(path)[1].lower() in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{name} is a pickle, which can run code when it is read. Convert it to .safetensors."
        )
    return path


def check_there(files: Mapping[str, str], family: str) -> None:
    """Refuse files that a workflow names and this ComfyUI lacks, by the input's name.

    Raises:
        ValueError: which file, where it was looked for and what belongs there.
    """
    for slot, name in files.items():
        folder = _SLOTS[slot][0]
        if name != NONE and not folder_paths.get_full_path(folder, name):
            raise ValueError(
                f"{slot}: {name} is not in models/{folder}. Expected there: "
                f"{_belongs(slot, family)}. Put the file there and press R, or choose another."
            )


def check_files(recipe: Recipe, files: Mapping[str, str]) -> None:
    """Refuse missing, cut off and swapped files before anything large is read.

    Raises:
        ValueError: which file, what it is and what was expected.
    """
    missing = [slot for slot, name in files.items() if name == NONE]
    if missing:
        wanted = "; ".join(f"{slot} ({_belongs(slot, recipe.family)})" for slot in missing)
        raise ValueError(
            f"The recipe {recipe.name} needs {wanted}: choose the files, or the recipe "
            f"'{NANO_CHOICE}', which needs none."
        )
    for slot, name in files.items():
        path = file_path(_SLOTS[slot][0], name)
        if path.lower().endswith((".safetensors", ".sft", ".gguf")):
            found = expect(path, slot, recipe.family)
            twin = "flux2-klein" if recipe.guidance is None else "flux2-dev"
            if recipe.family == "flux2" and found.recipes and twin not in found.recipes:
                raise ValueError(
                    f"{slot}: {name} is {found.what}, which goes with {found.recipes[0]}, not with "
                    f"{recipe.name}."
                )
