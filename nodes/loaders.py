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

from ..refiner_core.models.detail_encoder import load_detail_encoder
from ..refiner_core.recipes.recipe import (
    NANO,
    OMNIREFINER,
    RECIPES,
    Recipe,
    get_recipe,
    lightning_steps,
)
from ..refiner_core.recipes.recipe_files import SUFFIXES, read_recipe
from ..refiner_core.weights.imagecritic_lora import read_imagecritic_lora
from ..refiner_core.weights.inspection import expect
from .adapters import apply_imagecritic
from .conditioning import DetailPatcher, encode_prompt
from .engine import check_model
from .files import NANO_CHOICE, NONE, check_files, check_there, choices, file_path
from .nano import load_nano_refiner
from .types import CATEGORY, STEPS, Refiner, RefinerSocket

RECIPE_FOLDER = "omnirefiner_recipes"
_CLIP_TYPES = {
    "flux": comfy.sd.CLIPType.FLUX,
    "qwen-edit": comfy.sd.CLIPType.QWEN_IMAGE,
    "flux2": getattr(comfy.sd.CLIPType, "FLUX2", None),  # younger than our oldest ComfyUI
}
_TYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def _register_folder() -> None:
    if RECIPE_FOLDER not in folder_paths.folder_names_and_paths:
        place = os.path.join(folder_paths.models_dir, RECIPE_FOLDER)
        folder_paths.folder_names_and_paths[RECIPE_FOLDER] = ([place], set(SUFFIXES))


_register_folder()


def recipe_choices() -> list[str]:
    """The pack's recipes, and the user's own files in models/omnirefiner_recipes."""
    return [*RECIPES, *folder_paths.get_filename_list(RECIPE_FOLDER)]


def chosen_recipe(name: str) -> Recipe:
    """A choice as a recipe.

    Raises:
        ValueError: the user's file is not valid.
    """
    if name.lower().endswith(SUFFIXES):
        return read_recipe(folder_paths.get_full_path_or_raise(RECIPE_FOLDER, name))
    return get_recipe(name)


def _shared_model(path: str, options: dict[str, Any]) -> Any:
    """The model of `path` if another node has it loaded the same way: a clone shares its weights.

    What is loaded may carry that node's LoRAs; the clone is of the model as it came from the file.
    """
    for loaded in mm.loaded_models():
        init = getattr(loaded, "cached_patcher_init", None)
        if init and init[0] is comfy.sd.load_diffusion_model and init[1][:2] == (path, options):
            while loaded.parent is not None:
                loaded = loaded.parent
            return loaded.clone()
    return None


def load_diffusion_model(name: str, weight_dtype: str) -> Any:
    """A FLUX model from models/diffusion_models, shared with other nodes where ComfyUI can."""
    path = file_path("diffusion_models", name)
    options: dict[str, Any] = {}
    if _TYPES[weight_dtype] is not None:
        options["dtype"] = _TYPES[weight_dtype]
    return _shared_model(path, options) or comfy.sd.load_diffusion_model(path, options)


def _apply_lora(
    model: Any, name: str, strength: float, recipe: Recipe, slot: str = "refiner_lora"
) -> Any:
    path = file_path("loras", name)
    found = expect(path, slot, recipe.family)
    critic = found.recipes == ("imagecritic",)
    if critic != (recipe.sight == "detail" and slot == "refiner_lora"):
        fix = f"It goes to refiner_lora of {found.recipes[0]}." if critic else (
            "The recipe takes ImageCritic's own LoRA there; others go between ComfyUI's loader and "
            "Refiner from Model."
        )  # fmt: skip
        raise ValueError(
            f"{slot}: {name} is {found.what}, which the recipe {recipe.name} cannot take here. {fix}"
        )
    if critic:
        return apply_imagecritic(model, read_imagecritic_lora(path), strength)
    state = comfy.utils.load_torch_file(path, safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, state, strength, 0)
    if _patch_count(patched) == _patch_count(model):
        sample = ", ".join(list(state)[:3])
        raise ValueError(
            f"No key of the LoRA {name} fits this model; it is for another one. Its keys start with "
            f"{sample} ({len(state)} in all)."
        )
    return patched


def _patch_count(model: Any) -> int:
    return sum(len(patches) for patches in model.patches.values())


def inputs_of(recipe: Recipe) -> list[str]:
    """The inputs of Load Refiner that a recipe reads."""
    lora = ["refiner_lora", "lora_strength"]
    if recipe.name == NANO.name:
        return lora
    loaded = ["diffusion_model", "weight_dtype", "vae", *lora]
    encoders = ["clip_l", "t5xxl"] if recipe.family == "flux" else ["text_encoder"]
    detail = ["detail_encoder", "detail_loading"] if recipe.sight == "detail" else []
    fast = ["accelerator_lora", "accelerator_strength"] if recipe.fast else []
    return [*loaded, *encoders, *detail, *fast]


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
                io.Combo.Input("recipe",
                    options=[NANO_CHOICE, *(n for n in recipe_choices() if n != NANO.name)],
                    default=NANO_CHOICE,
                    tooltip="nano: small, embedded, no files. omnirefiner: Kontext with a refiner "
                    "LoRA. imagecritic: Kontext with ImageCritic's LoRA and detail encoder. "
                    "refineanything: Qwen-Image-Edit-2511 with its LoRA. kontext: Kontext as it is, "
                    "not trained for two images. Files of your own: models/omnirefiner_recipes."),
                io.Combo.Input("diffusion_model", options=choices("diffusion_models"), default=NONE,
                    tooltip="The recipe's model from models/diffusion_models: FLUX.1-Kontext, "
                    "Qwen-Image-Edit-2511 or FLUX.2; unused by nano."),
                io.Combo.Input("weight_dtype", options=list(_TYPES), default="default",
                    tooltip="How the model is kept in memory; fp8 halves it."),
                io.Combo.Input("clip_l", options=choices("text_encoders"), default=NONE,
                    tooltip="clip_l from models/text_encoders; unused by nano."),
                io.Combo.Input("t5xxl", options=choices("text_encoders"), default=NONE,
                    tooltip="t5xxl from models/text_encoders; unused by nano."),
                io.Combo.Input("vae", options=choices("vae"), default=NONE,
                    tooltip="The model's autoencoder from models/vae: ae, qwen_image_vae or flux2-vae; "
                    "unused by nano."),
                io.Combo.Input("refiner_lora", options=choices("loras"), default=NONE,
                    tooltip="The refiner's LoRA from models/loras: Kontext's, ImageCritic's or "
                    "RefineAnything's."),
                io.Float.Input("lora_strength", default=1.0, min=-4.0, max=4.0, step=0.05,
                    tooltip="Strength of the LoRA; 1 = as trained."),
                io.Combo.Input("text_encoder", options=choices("text_encoders"), default=NONE,
                    optional=True,
                    tooltip="Qwen2.5-VL for refineanything, Qwen3 or Mistral for flux2; else unused."),
                io.Combo.Input("detail_encoder", options=choices("clip_vision"), default=NONE,
                    optional=True,
                    tooltip="ImageCritic's detail_encoder from models/clip_vision; else unused."),
                io.Combo.Input("detail_loading", options=["auto", "assign", "add"], default="auto",
                    optional=True,
                    tooltip="assign takes the detail encoder's weights, add adds them to random ones "
                    "as published (seed 0); auto looks at the file."),
                io.Combo.Input("accelerator_lora", options=choices("loras"), default=NONE,
                    optional=True,
                    tooltip="For fewer steps: Lightning for refineanything, Turbo or Hyper of FLUX.1 "
                    "for Kontext. Sets the steps that its file name says, else 8, and CFG 1."),
                io.Float.Input("accelerator_strength", default=1.0, min=0.0, max=2.0, step=0.005,
                    optional=True,
                    tooltip="Strength of the accelerator, as its maker says: Lightning and Turbo 1, "
                    "Hyper-FLUX 0.125."),
            ],
            outputs=[RefinerSocket.Output(display_name="refiner")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, diffusion_model: str = NONE, clip_l: str = NONE, t5xxl: str = NONE, vae: str = NONE,
        refiner_lora: str = NONE, text_encoder: str = NONE, detail_encoder: str = NONE,
        accelerator_lora: str = NONE,
    ) -> bool:  # fmt: skip
        """Let lost files pass: what is wrong here is marked at every input, `execute` tells of one."""
        return True

    @classmethod
    def execute(
        cls, recipe: str, diffusion_model: str, weight_dtype: str, clip_l: str, t5xxl: str,
        vae: str, refiner_lora: str, lora_strength: float, text_encoder: str = NONE,
        detail_encoder: str = NONE, detail_loading: str = "auto", accelerator_lora: str = NONE,
        accelerator_strength: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        if recipe == NANO_CHOICE:
            check_there({"refiner_lora": refiner_lora}, NANO.family)
            return io.NodeOutput(_with_lora(load_nano_refiner(), refiner_lora, lora_strength))
        plan = chosen_recipe(recipe)
        encoders = {"clip_l": clip_l, "t5xxl": t5xxl}
        if plan.family != "flux":
            encoders = {"text_encoder": text_encoder}
        files = {"diffusion_model": diffusion_model, **encoders, "vae": vae}
        if plan.sight == "detail":
            files |= {"refiner_lora": refiner_lora, "detail_encoder": detail_encoder}
        loras = {"refiner_lora": refiner_lora, "accelerator_lora": accelerator_lora}
        check_there(files | loras, plan.family)
        check_files(plan, files)
        refiner = _load_parts(plan, files, list(encoders.values()), weight_dtype)
        if plan.sight == "detail":
            refiner.detail = _detail_patcher(detail_encoder, detail_loading)
        refiner = _accelerated(refiner, accelerator_lora, accelerator_strength)
        return io.NodeOutput(_with_lora(refiner, refiner_lora, lora_strength))


def _detail_patcher(name: str, loading: str = "auto") -> DetailPatcher:
    encoder, _ = load_detail_encoder(
        file_path("clip_vision", name),
        None if loading == "auto" else loading,  # pyright: ignore[reportArgumentType]
    )
    return DetailPatcher(encoder)


def _load_parts(
    recipe: Recipe, files: dict[str, str], encoders: list[str], weight_dtype: str
) -> Refiner:
    model = load_diffusion_model(files["diffusion_model"], weight_dtype)
    check_model(model, recipe, files["diffusion_model"])
    clip = comfy.sd.load_clip(
        [file_path("text_encoders", n) for n in encoders],
        folder_paths.get_folder_paths("embeddings"), _CLIP_TYPES[recipe.family],
    )  # fmt: skip
    state = comfy.utils.load_torch_file(file_path("vae", files["vae"]), safe_load=True)
    return Refiner(recipe, model, comfy.sd.VAE(sd=state), clip, name=files["diffusion_model"])


def _accelerated(refiner: Refiner, lora: str, strength: float) -> Refiner:
    """The refiner with an accelerator, which sets its steps and CFG.

    It goes before the refiner's LoRA: ImageCritic's acts on what the layers return, others included.
    """
    if lora != NONE:
        recipe = refiner.recipe.accelerated(lightning_steps(lora))
        slot = "accelerator_lora"
        refiner.model = _apply_lora(refiner.model, lora, strength, recipe, slot)
        refiner.recipe = recipe
        refiner.name += f" + {lora}:{strength:g}"
    return refiner


def _with_lora(refiner: Refiner, lora: str, strength: float) -> Refiner:
    if lora != NONE:
        refiner.model = _apply_lora(refiner.model, lora, strength, refiner.recipe)
        refiner.name += f" + {lora}:{strength:g}"
    return refiner


class RefinerFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefinerFromModel",
            display_name="Refiner from Model",
            category=STEPS,
            description="Makes a refiner of models that are in the graph already: GGUF, other "
            "LoRAs, torch.compile. Nothing is loaded twice.",
            search_aliases=["gguf refiner", "kontext model to refiner"],
            inputs=[
                io.Model.Input("model", tooltip="The recipe's model (FLUX.1-Kontext, "
                    "Qwen-Image-Edit-2511 or FLUX.2), as any loader gives it."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.Combo.Input("recipe", options=recipe_choices(), default=OMNIREFINER.name,
                    tooltip="How the weights were trained and so have to be run."),
                io.Clip.Input("clip", optional=True,
                    tooltip="Text encoders for the prompt on Reference Refine."),
                io.Conditioning.Input("conditioning", optional=True,
                    tooltip="Ready text conditioning instead of clip; the prompt is then unused."),
                io.Combo.Input("refiner_lora", options=choices("loras"), default=NONE, optional=True,
                    tooltip="ImageCritic's LoRA, whose names ComfyUI's loaders do not know; other "
                    "LoRAs may also come with the model."),
                io.Float.Input("lora_strength", default=1.0, min=-4.0, max=4.0, step=0.05,
                    optional=True, tooltip="Strength of that LoRA; 1 = as trained."),
                io.Combo.Input("detail_encoder", options=choices("clip_vision"), default=NONE,
                    optional=True, tooltip="ImageCritic's, from models/clip_vision; else unused."),
            ],
            outputs=[RefinerSocket.Output(display_name="refiner")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, vae: Any, recipe: str, clip: Any = None, conditioning: Any = None,
        refiner_lora: str = NONE, lora_strength: float = 1.0, detail_encoder: str = NONE,
    ) -> io.NodeOutput:  # fmt: skip
        plan = chosen_recipe(recipe)
        check_model(model, plan, "The connected model")
        if clip is None and conditioning is None:
            raise ValueError("Connect clip (to encode the prompt) or conditioning (ready-made).")
        refiner = Refiner(plan, model, vae, clip, conditioning, "connected model")
        if plan.sight == "detail":
            check_files(plan, {"refiner_lora": refiner_lora, "detail_encoder": detail_encoder})
            refiner.detail = _detail_patcher(detail_encoder)
        return io.NodeOutput(_with_lora(refiner, refiner_lora, lora_strength))


class RefinerParts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefinerParts",
            display_name="Refiner Parts",
            category=STEPS,
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
