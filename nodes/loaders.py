"""Load Refiner, Refiner from Model and Refiner Parts."""

from __future__ import annotations

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
from ..refiner_core.weights.inspection import check_attention, expect
from .adapters import apply_imagecritic
from .conditioning import DetailPatcher, encode_prompt
from .engine import check_model, sampling_model
from .files import (
    NANO_CHOICE,
    NONE,
    RECIPE_FOLDER,
    check_files,
    check_there,
    choices,
    file_path,
    register_recipe_folder,
)
from .lora import apply_lora
from .nano import load_nano_refiner
from .one_way import Caches, one_way_alone
from .tiles import tiled
from .types import CATEGORY, STEPS, Refiner, RefinerSocket

_CLIP_TYPES = {
    "flux": comfy.sd.CLIPType.FLUX,
    "qwen-edit": comfy.sd.CLIPType.QWEN_IMAGE,
    "flux2": getattr(comfy.sd.CLIPType, "FLUX2", None),  # missing in the oldest ComfyUI we support
}
_TYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


register_recipe_folder()


def recipe_choices() -> list[str]:
    """The pack's recipes and the recipe files in models/omnirefiner_recipes."""
    return [*RECIPES, *folder_paths.get_filename_list(RECIPE_FOLDER)]


def chosen_recipe(name: str) -> Recipe:
    """The recipe that a combo box names.

    Raises:
        ValueError: the user's recipe file is not valid.
    """
    if name.lower().endswith(SUFFIXES):
        return read_recipe(folder_paths.get_full_path_or_raise(RECIPE_FOLDER, name))
    return get_recipe(name)


def _shared_model(path: str, options: dict[str, Any]) -> Any:
    """A clone of the model if another node has loaded `path` with the same options, else None.

    The clone shares the weights. It is made of the model as it came from the file, without LoRAs that
    the other node has applied.
    """
    for loaded in mm.loaded_models():
        init = getattr(loaded, "cached_patcher_init", None)
        if init and init[0] is comfy.sd.load_diffusion_model and init[1][:2] == (path, options):
            while loaded.parent is not None:
                loaded = loaded.parent
            return loaded.clone()
    return None


def load_diffusion_model(name: str, weight_dtype: str) -> Any:
    """A model from models/diffusion_models, shared with other nodes where possible."""
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
    check_attention(name, found.attention, recipe.name, recipe.attention)
    critic = found.recipes == ("imagecritic",)
    if critic != (recipe.conditioning == "detail" and slot == "refiner_lora"):
        fix = "Choose ImageCritic's own LoRA, and apply others before Refiner from Model."
        if critic:
            fix = f"It belongs in refiner_lora with the recipe {found.recipes[0]}."
        raise ValueError(
            f"{slot}: {name} is {found.what}, which does not fit the recipe {recipe.name}. {fix}"
        )
    if critic:
        return apply_imagecritic(model, read_imagecritic_lora(path), strength)
    return apply_lora(model, path, strength, recipe.family)


def inputs_of(recipe: Recipe) -> list[str]:
    """Names of the inputs of Load Refiner that a recipe uses."""
    lora = ["refiner_lora", "lora_strength"]
    if recipe.name == NANO.name:
        return lora
    loaded = ["diffusion_model", "weight_dtype", "vae", *lora]
    encoders = ["clip_l", "t5xxl"] if recipe.family == "flux" else ["text_encoder"]
    detail = ["detail_encoder", "detail_loading"] if recipe.conditioning == "detail" else []
    fast = ["accelerator_lora", "accelerator_strength"] if recipe.distilled else []
    return [*loaded, *encoders, *detail, *fast]


def _file_input(name: str, folder: str, tooltip: str, optional: bool = False) -> Any:
    return io.Combo.Input(
        name, options=choices(folder), default=NONE, optional=optional, tooltip=tooltip
    )


def _model_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "recipe",
            options=[NANO_CHOICE, *(n for n in recipe_choices() if n != NANO.name)],
            default=NANO_CHOICE,
            tooltip="The recipe says which model is used and how it is run. nano ships with the pack "
            "and needs no files. omnirefiner is FLUX.1 Kontext with a refiner LoRA. imagecritic is "
            "Kontext with ImageCritic's LoRA and detail encoder. kontext is Kontext without a LoRA, "
            "as a baseline. refineanything is Qwen-Image-Edit-2511 with RefineAnything's LoRA. "
            "flux2-klein and flux2-dev are FLUX.2. Recipe files in models/omnirefiner_recipes are "
            "listed as well.",
        ),
        _file_input(
            "diffusion_model",
            "diffusion_models",
            "The diffusion model of the recipe in models/diffusion_models: FLUX.1 Kontext, "
            "Qwen-Image-Edit-2511 or FLUX.2. nano does not use it.",
        ),
        io.Combo.Input(
            "weight_dtype",
            options=list(_TYPES),
            default="default",
            tooltip="The data type of the diffusion model's weights in memory. fp8 needs half the "
            "memory of a 16-bit model.",
        ),
        _file_input(
            "clip_l",
            "text_encoders",
            "The text encoder clip_l in models/text_encoders, for the Kontext recipes. nano does not "
            "use it.",
        ),
        _file_input(
            "t5xxl",
            "text_encoders",
            "The text encoder t5xxl in models/text_encoders, for the Kontext recipes. nano does not "
            "use it.",
        ),
        _file_input(
            "vae",
            "vae",
            "The VAE of the model in models/vae: ae, qwen_image_vae or flux2-vae. nano does not use "
            "it.",
        ),
        _file_input(
            "refiner_lora",
            "loras",
            "The refiner LoRA in models/loras: one trained for this recipe, ImageCritic's LoRA or "
            "RefineAnything's LoRA.",
        ),
        io.Float.Input(
            "lora_strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            tooltip="How strongly the refiner LoRA modifies the model. 1 is the strength it was "
            "trained with. This value can be negative.",
        ),
    ]


def _optional_model_inputs() -> list[Any]:
    return [
        _file_input(
            "text_encoder",
            "text_encoders",
            "The text encoder in models/text_encoders: Qwen2.5-VL for refineanything, Qwen3 for "
            "flux2-klein, Mistral for flux2-dev. Other recipes do not use it.",
            optional=True,
        ),
        _file_input(
            "detail_encoder",
            "clip_vision",
            "ImageCritic's detail encoder in models/clip_vision. Only the recipe imagecritic uses it.",
            optional=True,
        ),
        io.Combo.Input(
            "detail_loading",
            options=["auto", "assign", "add"],
            default="auto",
            optional=True,
            tooltip="How the weights of the detail encoder are loaded. assign uses them as they are. "
            "add adds them to randomly initialized weights (seed 0), as the published code does. auto "
            "decides by looking at the file.",
        ),
        _file_input(
            "accelerator_lora",
            "loras",
            "A LoRA that reduces the number of steps: Lightning for refineanything, FLUX.1 Turbo or "
            "Hyper for the Kontext recipes. It sets CFG to 1 and the steps to the number in its file "
            "name, or to 8 if the name has none.",
            optional=True,
        ),
        io.Float.Input(
            "accelerator_strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.005,
            optional=True,
            tooltip="How strongly the accelerator LoRA modifies the model. Its authors recommend 1 "
            "for Lightning and Turbo, and 0.125 for Hyper.",
        ),
    ]


class LoadRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadRefiner",
            display_name="Load Refiner",
            category=CATEGORY,
            description="Loads the model, text encoders, VAE and LoRA of a recipe as one refiner. "
            "nano ships with the pack and needs no files.",
            search_aliases=["omnirefiner", "kontext refiner", "detail repair model"],
            inputs=[*_model_inputs(), *_optional_model_inputs()],
            outputs=[
                RefinerSocket.Output(
                    display_name="refiner", tooltip="The refiner, for Reference Refine."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        diffusion_model: str = NONE,
        clip_l: str = NONE,
        t5xxl: str = NONE,
        vae: str = NONE,
        refiner_lora: str = NONE,
        text_encoder: str = NONE,
        detail_encoder: str = NONE,
        accelerator_lora: str = NONE,
    ) -> bool:
        """Accept missing files: an error here marks every input, one in `execute` names the file."""
        return True

    @classmethod
    def execute(
        cls,
        recipe: str,
        diffusion_model: str,
        weight_dtype: str,
        clip_l: str,
        t5xxl: str,
        vae: str,
        refiner_lora: str,
        lora_strength: float,
        text_encoder: str = NONE,
        detail_encoder: str = NONE,
        detail_loading: str = "auto",
        accelerator_lora: str = NONE,
        accelerator_strength: float = 1.0,
    ) -> io.NodeOutput:
        if recipe == NANO_CHOICE:
            check_there({"refiner_lora": refiner_lora}, NANO.family)
            return io.NodeOutput(_with_lora(load_nano_refiner(), refiner_lora, lora_strength))
        plan = chosen_recipe(recipe)
        encoders = {"clip_l": clip_l, "t5xxl": t5xxl}
        if plan.family != "flux":
            encoders = {"text_encoder": text_encoder}
        files = {"diffusion_model": diffusion_model, **encoders, "vae": vae}
        if plan.conditioning == "detail":
            files |= {"refiner_lora": refiner_lora, "detail_encoder": detail_encoder}
        loras = {"refiner_lora": refiner_lora, "accelerator_lora": accelerator_lora}
        check_there(files | loras, plan.family)
        check_files(plan, files)
        refiner = _load_parts(plan, files, list(encoders.values()), weight_dtype)
        if plan.conditioning == "detail":
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
        folder_paths.get_folder_paths("embeddings"),
        _CLIP_TYPES[recipe.family],
    )
    state = comfy.utils.load_torch_file(file_path("vae", files["vae"]), safe_load=True)
    return Refiner(recipe, model, comfy.sd.VAE(sd=state), clip, name=files["diffusion_model"])


def _accelerated(refiner: Refiner, lora: str, strength: float) -> Refiner:
    """The refiner with an accelerator LoRA, which sets its steps and CFG.

    It is applied before the refiner LoRA, because ImageCritic's acts on the outputs of the layers and
    so has to see the other LoRAs.
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


def _connected_inputs() -> list[Any]:
    return [
        io.Model.Input(
            "model",
            tooltip="The diffusion model of the recipe (FLUX.1 Kontext, Qwen-Image-Edit-2511 or "
            "FLUX.2) from any loader.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of the model."),
        io.Combo.Input(
            "recipe",
            options=recipe_choices(),
            default=OMNIREFINER.name,
            tooltip="The recipe that the weights were trained for. It says how the model is run.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="The text encoder, which encodes the prompt of Reference Refine.",
        ),
        io.Conditioning.Input(
            "conditioning",
            optional=True,
            tooltip="Conditioning to use instead of a text encoder. The prompt of Reference Refine "
            "is then ignored.",
        ),
        _file_input(
            "refiner_lora",
            "loras",
            "ImageCritic's LoRA, which ComfyUI's LoRA loaders cannot read. Other LoRAs can also be "
            "applied to the model before this node.",
            optional=True,
        ),
        io.Float.Input(
            "lora_strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            optional=True,
            tooltip="How strongly the LoRA modifies the model. 1 is the strength it was trained "
            "with. This value can be negative.",
        ),
        _file_input(
            "detail_encoder",
            "clip_vision",
            "ImageCritic's detail encoder in models/clip_vision. Only the recipe imagecritic uses it.",
            optional=True,
        ),
    ]


class RefinerFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefinerFromModel",
            display_name="Refiner from Model",
            category=STEPS,
            description="Makes a refiner from a model, VAE and text encoder that the workflow has "
            "loaded already, for example a GGUF model, a model with other LoRAs or a compiled model. "
            "Nothing is loaded twice.",
            search_aliases=["gguf refiner", "kontext model to refiner"],
            inputs=_connected_inputs(),
            outputs=[
                RefinerSocket.Output(
                    display_name="refiner", tooltip="The refiner, for Reference Refine."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        recipe: str,
        clip: Any = None,
        conditioning: Any = None,
        refiner_lora: str = NONE,
        lora_strength: float = 1.0,
        detail_encoder: str = NONE,
    ) -> io.NodeOutput:
        plan = chosen_recipe(recipe)
        check_model(model, plan, "The connected model")
        if clip is None and conditioning is None:
            raise ValueError(
                "Connect either clip, to encode the prompt, or conditioning that is already encoded."
            )
        refiner = Refiner(plan, model, vae, clip, conditioning, "connected model")
        if plan.conditioning == "detail":
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
            description="Outputs the model, the VAE and the encoded prompt of a refiner, for "
            "workflows that sample with KSampler or with another pack's sampler.",
            search_aliases=["unpack refiner", "refiner to model"],
            inputs=[
                RefinerSocket.Input(
                    "refiner", tooltip="The refiner from Load Refiner or Refiner from Model."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="Text that describes the repair. If empty, the recipe's own prompt is "
                    "used. nano ignores it.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model."),
                io.Vae.Output(display_name="vae", tooltip="The VAE of the model."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The conditioning of the encoded prompt."
                ),
            ],
        )

    @classmethod
    def execute(cls, refiner: Refiner, prompt: str) -> io.NodeOutput:
        text = encode_prompt(refiner, refiner.recipe.text(prompt.strip() or None))
        model = sampling_model(refiner)
        recipe = refiner.recipe
        caches = Caches()
        if recipe.attention == "one way":
            model = one_way_alone(model, caches)
        if recipe.tile:
            model = tiled(model, recipe.tile // recipe.latent_factor, caches)
        return io.NodeOutput(model, refiner.vae, text)
