"""The files that Load Refiner is given: where they lie, and which of them are wrong or missing."""

from __future__ import annotations

import os
from collections.abc import Mapping

import folder_paths

from ..refiner_core.recipes import Recipe
from ..refiner_core.weights.inspection import expect

NONE = "none"
NANO_CHOICE = "nano (embedded)"
# Folder under models and what belongs there, by the input's name.
_SLOTS = {
    "diffusion_model": ("diffusion_models", "the recipe's model"),
    "clip_l": ("text_encoders", "FLUX.1's CLIP text encoder, clip_l.safetensors"),
    "t5xxl": ("text_encoders", "FLUX.1's T5 text encoder, t5xxl_fp16 or t5xxl_fp8_e4m3fn_scaled"),
    "text_encoder": ("text_encoders", "Qwen2.5-VL for refineanything, FLUX.2's own for flux2"),
    "vae": ("vae", "the model's autoencoder"),
    "refiner_lora": ("loras", "the recipe's LoRA"),
    "detail_encoder": ("clip_vision", "ImageCritic's detail_encoder.safetensors"),
    "accelerator_lora": (
        "loras",
        "an accelerator (Lightning for Qwen-Image-Edit-2511, Turbo or Hyper for FLUX.1); with none the "
        "recipe takes its own steps and CFG",
    ),
}


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


def lost_file(chosen: Mapping[str, object]) -> str | None:
    """What is wrong with the first chosen file that is not there, by the input's name, else None."""
    for slot, (folder, what) in _SLOTS.items():
        name = chosen.get(slot)
        if isinstance(name, str) and name != NONE and not folder_paths.get_full_path(folder, name):
            return (
                f"{slot}: {name} is not in models/{folder}. Expected there: {what}. Put the file "
                f"there and press R, or choose another."
            )
    return None


def check_files(recipe: Recipe, files: Mapping[str, str]) -> None:
    """Refuse missing, cut off and swapped files before anything large is read.

    Raises:
        ValueError: which file, what it is and what was expected.
    """
    missing = [slot for slot, name in files.items() if name == NONE]
    if missing:
        wanted = "; ".join(f"{slot} ({_SLOTS[slot][1]})" for slot in missing)
        raise ValueError(
            f"The recipe {recipe.name} needs {wanted}: choose the files, or the recipe "
            f"'{NANO_CHOICE}', which needs none."
        )
    for slot, name in files.items():
        path = file_path(_SLOTS[slot][0], name)
        if path.lower().endswith((".safetensors", ".sft", ".gguf")):
            expect(path, slot, recipe.family)
