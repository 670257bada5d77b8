"""The files chosen in Load Refiner: where they are, and which of them are missing or wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping

import folder_paths

from ..refiner_core.recipes.recipe import Recipe
from ..refiner_core.recipes.recipe_files import SUFFIXES
from ..refiner_core.weights.inspection import expect

RECIPE_FOLDER = "omnirefiner_recipes"
NONE = "none"
NANO_CHOICE = "nano (embedded)"
# The folder in models and what belongs there, by the name of the input.
_SLOTS = {
    "diffusion_model": ("diffusion_models", "the diffusion model of the recipe"),
    "clip_l": ("text_encoders", "the CLIP-L text encoder of FLUX.1, clip_l.safetensors"),
    "t5xxl": (
        "text_encoders",
        "the T5 text encoder of FLUX.1, t5xxl_fp16 or t5xxl_fp8_e4m3fn_scaled",
    ),
    "text_encoder": ("text_encoders", "the text encoder of the model"),
    "vae": ("vae", "the VAE of the model"),
    "refiner_lora": ("loras", "the LoRA of the recipe"),
    "detail_encoder": ("clip_vision", "ImageCritic's detail_encoder.safetensors"),
    "accelerator_lora": (
        "loras",
        "an accelerator LoRA (Lightning for Qwen-Image-Edit-2511, Turbo or Hyper for FLUX.1), or none "
        "to use the steps and CFG of the recipe",
    ),
}
# What belongs there where that depends on the family of the recipe.
_OF_FAMILY = {
    ("diffusion_model", "flux"): "FLUX.1 Kontext [dev], for example flux1-dev-kontext_fp8_scaled",
    (
        "diffusion_model",
        "qwen-edit",
    ): "Qwen-Image-Edit-2511, for example qwen_image_edit_2511_fp8mixed",
    ("diffusion_model", "flux2"): "FLUX.2 [klein] or [dev]",
    ("text_encoder", "qwen-edit"): "Qwen2.5-VL, for example qwen_2.5_vl_7b_fp8_scaled",
    ("text_encoder", "flux2"): "qwen_3_4b for FLUX.2 [klein] 4B, qwen_3_8b for 9B, "
    "mistral_3_small_flux2 for [dev]",
    ("vae", "flux"): "the VAE of FLUX.1, ae.safetensors",
    ("vae", "qwen-edit"): "the VAE of Qwen-Image, qwen_image_vae.safetensors",
    ("vae", "flux2"): "the VAE of FLUX.2, flux2-vae.safetensors",
}


def _belongs(slot: str, family: str | None) -> str:
    return _OF_FAMILY.get((slot, family or ""), _SLOTS[slot][1])


def register_recipe_folder() -> None:
    """Add models/omnirefiner_recipes to ComfyUI's folders, beside those of extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(
        RECIPE_FOLDER, os.path.join(folder_paths.models_dir, RECIPE_FOLDER), is_default=True
    )
    # A folder from extra_model_paths.yaml would offer files with any suffix.
    folders, _ = folder_paths.folder_names_and_paths[RECIPE_FOLDER]
    folder_paths.folder_names_and_paths[RECIPE_FOLDER] = (folders, set(SUFFIXES))


def choices(folder: str) -> list[str]:
    """The option none, and the files in one of ComfyUI's model folders."""
    return [NONE, *folder_paths.get_filename_list(folder)]


def file_path(folder: str, name: str) -> str:
    """The path of a chosen file.

    Raises:
        ValueError: the file is a pickle.
        FileNotFoundError: the file does not exist.
    """
    path = folder_paths.get_full_path_or_raise(folder, name)
    if os.path.splitext(path)[1].lower() in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{name} is a pickle file, which can run code when it is loaded. Use a .safetensors file."
        )
    return path


def check_there(files: Mapping[str, str], family: str) -> None:
    """Refuse files that the workflow names and that do not exist here.

    Raises:
        ValueError: names the input, the file, the folder and what belongs there.
    """
    for slot, name in files.items():
        folder = _SLOTS[slot][0]
        if name != NONE and not folder_paths.get_full_path(folder, name):
            raise ValueError(
                f"{slot}: {name} was not found in models/{folder}. This input takes "
                f"{_belongs(slot, family)}. Put the file there and press R, or choose another file."
            )


def check_files(recipe: Recipe, files: Mapping[str, str]) -> None:
    """Refuse missing, truncated and swapped files before anything large is read.

    Raises:
        ValueError: names the file, what it is and what was expected.
    """
    missing = [slot for slot, name in files.items() if name == NONE]
    if missing:
        wanted = "; ".join(f"{slot} ({_belongs(slot, recipe.family)})" for slot in missing)
        raise ValueError(
            f"The recipe {recipe.name} needs a file for: {wanted}. Choose these files, or the recipe "
            f"'{NANO_CHOICE}', which needs no files."
        )
    for slot, name in files.items():
        path = file_path(_SLOTS[slot][0], name)
        if path.lower().endswith((".safetensors", ".sft", ".gguf")):
            found = expect(path, slot, recipe.family)
            twin = "flux2-klein" if recipe.guidance is None else "flux2-dev"
            if recipe.family == "flux2" and found.recipes and twin not in found.recipes:
                raise ValueError(
                    f"{slot}: {name} is {found.what}. It belongs to the recipe {found.recipes[0]}, not "
                    f"to {recipe.name}."
                )
