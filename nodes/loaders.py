"""Load Refiner and Refiner from Model."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..refiner_core.recipes import KONTEXT, OMNIREFINER, RECIPES, get_recipe
from .engine import check_flux, encode_prompt
from .nano import load_nano_refiner
from .types import CATEGORY, Refiner, RefinerSocket

NONE = "none"
NANO_CHOICE = "nano (embedded)"
_RECIPE_CHOICES = [NANO_CHOICE, OMNIREFINER.name, KONTEXT.name]
_TYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def _files(folder: str) -> list[str]:
    return [NONE, *folder_paths.get_filename_list(folder)]


def _path(folder: str, name: str) -> str:
    path = folder_paths.get_full_path_or_raise(folder, name)
    if os.path.splitext(path)[1].lower() in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{name} is a pickle, which can run code when it is read. Convert it to .safetensors."
        )
    return path


def _shared_model(path: str, options: dict[str, Any]) -> Any:
    """The model of `path` if another node has it loaded the same way: a clone shares its weights."""
    for loaded in mm.loaded_models():
        init = getattr(loaded, "cached_patcher_init", None)
        if init and init[0] is comfy.sd.load_diffusion_model and init[1][:2] == (path, options):
            return loaded.clone()
    return None


def load_diffusion_model(name: str, weight_dtype: str) -> Any:
    """A FLUX model from models/diffusion_models, shared with other nodes where ComfyUI can."""
    path = _path("diffusion_models", name)
    options: dict[str, Any] = {}
    if _TYPES[weight_dtype] is not None:
        options["dtype"] = _TYPES[weight_dtype]
    return _shared_model(path, options) or comfy.sd.load_diffusion_model(path, options)


def _apply_lora(model: Any, name: str, strength: float) -> Any:
    state = comfy.utils.load_torch_file(_path("loras", name), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, state, strength, 0)
    if not patched.patches or patched.patches.keys() == model.patches.keys():
        sample = ", ".join(list(state)[:3])
        raise ValueError(
            f"No key of the LoRA {name} fits this model; it is for another one. Its keys start with "
            f"{sample} ({len(state)} in all)."
        )
    return patched


class LoadRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadRefiner",
            display_name="Load Refiner",
            category=CATEGORY,
            description="Loads what a repair needs. The embedded nano needs no file; for "
            "FLUX.1-Kontext choose its files below.",
            search_aliases=["omnirefiner", "kontext refiner", "detail repair model"],
            inputs=[
                io.Combo.Input("recipe", options=_RECIPE_CHOICES, default=NANO_CHOICE,
                    tooltip="nano: small, embedded, no files. omnirefiner: Kontext with a refiner "
                    "LoRA. kontext: Kontext as it is, not trained for two images."),
                io.Combo.Input("diffusion_model", options=_files("diffusion_models"), default=NONE,
                    tooltip="FLUX.1-Kontext from models/diffusion_models; unused by nano."),
                io.Combo.Input("weight_dtype", options=list(_TYPES), default="default",
                    tooltip="How the model is kept in memory; fp8 halves it.", advanced=True),
                io.Combo.Input("clip_l", options=_files("text_encoders"), default=NONE,
                    tooltip="clip_l from models/text_encoders; unused by nano."),
                io.Combo.Input("t5xxl", options=_files("text_encoders"), default=NONE,
                    tooltip="t5xxl from models/text_encoders; unused by nano."),
                io.Combo.Input("vae", options=_files("vae"), default=NONE,
                    tooltip="FLUX autoencoder (ae) from models/vae; unused by nano."),
                io.Combo.Input("refiner_lora", options=_files("loras"), default=NONE,
                    tooltip="Refiner LoRA from models/loras, for the omnirefiner recipe."),
                io.Float.Input("lora_strength", default=1.0, min=-4.0, max=4.0, step=0.05,
                    tooltip="Strength of the LoRA; 1 = as trained."),
            ],
            outputs=[RefinerSocket.Output(display_name="refiner")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, recipe: str, diffusion_model: str, weight_dtype: str, clip_l: str, t5xxl: str,
        vae: str, refiner_lora: str, lora_strength: float,
    ) -> io.NodeOutput:  # fmt: skip
        if recipe == NANO_CHOICE:
            refiner = load_nano_refiner()
        else:
            refiner = cls._load_kontext(recipe, diffusion_model, weight_dtype, clip_l, t5xxl, vae)
        if refiner_lora != NONE:
            refiner.model = _apply_lora(refiner.model, refiner_lora, lora_strength)
            refiner.name += f" + {refiner_lora}:{lora_strength:g}"
        return io.NodeOutput(refiner)

    @staticmethod
    def _load_kontext(
        recipe: str, diffusion_model: str, weight_dtype: str, clip_l: str, t5xxl: str, vae: str
    ) -> Refiner:
        chosen = {
            "diffusion_model": diffusion_model, "clip_l": clip_l, "t5xxl": t5xxl, "vae": vae,
        }  # fmt: skip
        missing = [name for name, value in chosen.items() if value == NONE]
        if missing:
            raise ValueError(
                f"The recipe {recipe} needs {', '.join(missing)}: choose the files, or the recipe "
                f"'{NANO_CHOICE}', which needs none."
            )
        model = load_diffusion_model(diffusion_model, weight_dtype)
        check_flux(model, diffusion_model)
        paths = [_path("text_encoders", n) for n in (clip_l, t5xxl)]
        clip = comfy.sd.load_clip(
            paths, folder_paths.get_folder_paths("embeddings"), comfy.sd.CLIPType.FLUX
        )
        autoencoder = comfy.sd.VAE(
            sd=comfy.utils.load_torch_file(_path("vae", vae), safe_load=True)
        )
        return Refiner(get_recipe(recipe), model, autoencoder, clip, name=diffusion_model)


class RefinerFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefinerFromModel",
            display_name="Refiner from Model",
            category=CATEGORY,
            description="Makes a refiner of models that are in the graph already: GGUF, other "
            "LoRAs, torch.compile. Nothing is loaded twice.",
            search_aliases=["gguf refiner", "kontext model to refiner"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1-Kontext, as any loader gives it."),
                io.Vae.Input("vae", tooltip="The FLUX autoencoder."),
                io.Combo.Input("recipe", options=list(RECIPES), default=OMNIREFINER.name,
                    tooltip="How the weights were trained and so have to be run."),
                io.Clip.Input("clip", optional=True,
                    tooltip="Text encoders for the prompt on Reference Refine."),
                io.Conditioning.Input("conditioning", optional=True,
                    tooltip="Ready text conditioning instead of clip; the prompt is then unused."),
            ],
            outputs=[RefinerSocket.Output(display_name="refiner")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, vae: Any, recipe: str, clip: Any = None, conditioning: Any = None
    ) -> io.NodeOutput:
        check_flux(model, "The connected model")
        if clip is None and conditioning is None:
            raise ValueError("Connect clip (to encode the prompt) or conditioning (ready-made).")
        refiner = Refiner(get_recipe(recipe), model, vae, clip, conditioning, "connected model")
        return io.NodeOutput(refiner)


class RefinerParts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefinerParts",
            display_name="Refiner Parts",
            category=CATEGORY,
            description="The model, autoencoder and encoded prompt of a refiner, for graphs that "
            "sample with KSampler or another pack's sampler.",
            search_aliases=["unpack refiner", "refiner to model"],
            inputs=[
                RefinerSocket.Input("refiner", tooltip="From Load Refiner or Refiner from Model."),
                io.String.Input("prompt", default="", multiline=True,
                    tooltip="Empty: the recipe's own. nano knows no text."),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Vae.Output(display_name="vae"),
                io.Conditioning.Output(display_name="positive"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, refiner: Refiner, prompt: str) -> io.NodeOutput:
        text = encode_prompt(refiner, refiner.recipe.text(prompt.strip() or None))
        return io.NodeOutput(refiner.model, refiner.vae, text)
