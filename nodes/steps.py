"""The repair in separate nodes, for sampling with KSampler or another pack's sampler."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.geometry import Extent
from ..refiner_core.models.devices import return_freed_memory
from ..refiner_core.recipes.recipe import OMNIREFINER, RECIPES, Recipe, get_recipe
from ..refiner_core.repair.finish_region import correct_region, stitch_region
from ..refiner_core.repair.locate_detail import locate_details
from ..refiner_core.repair.marking import normalize_request
from ..refiner_core.repair.prepare_region import plan_region, prepare_region
from ..refiner_core.repair.region import shown_pictures
from ..refiner_core.repair.request import (
    RefineOptions,
    RefineRequest,
    RegionTask,
    check,
    single_region,
    unite_masks,
)
from ..refiner_core.repair.sampling_inputs import clean_inputs, sampling_job
from .conditioning import EncodedText, condition, encode_text
from .engine import check_layout, decode_latent, encode_image
from .layout import from_core, mask_from_core, mask_to_core, to_core
from .loaded_files import read_references
from .types import (
    BLEND,
    STEPS,
    RefineCrop,
    RefineCropSocket,
    Refiner,
    RefinerSocket,
    blend_input,
)


def _crop_inputs() -> list[Any]:
    return [
        io.Image.Input("draft", tooltip="The image to repair. Batches are not supported."),
        io.Image.Input(
            "reference",
            tooltip="The reference image that shows the correct detail. Batches are not supported.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Mask of the detail in the draft. If not connected, the whole image is the "
            "region.",
        ),
        io.Mask.Input(
            "reference_mask",
            optional=True,
            tooltip="Mask of the detail in the reference. If not connected, the detail is searched for "
            "in the whole reference.",
        ),
        io.Combo.Input(
            "recipe",
            options=list(RECIPES),
            default="omnirefiner",
            tooltip="The recipe of the refiner that will repair the crop. It says which sizes the "
            "model was trained on.",
        ),
        io.Float.Input(
            "context",
            default=1.5,
            min=1.0,
            max=10.0,
            step=0.05,
            tooltip="Size of the crop relative to the size of the region. 1 means no surroundings.",
        ),
        io.Float.Input(
            "megapixels",
            default=0.0,
            min=0.0,
            max=16.0,
            step=0.005,
            round=0.001,
            tooltip="Size of the crop in megapixels. 0 uses the recipe's value.",
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-1024,
            max=1024,
            tooltip="Number of pixels to grow the mask by. Negative values shrink it.",
        ),
    ]


class CropForRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_CropForRefine",
            display_name="Crop for Refine",
            category=STEPS,
            description="Crops the region of the draft and of the reference to a size that the model "
            "was trained on, without stretching them. Stitch (OmniRefiner) puts the repaired crop back.",
            search_aliases=["inpaint crop", "kontext crop", "bucket crop"],
            inputs=_crop_inputs(),
            outputs=[
                io.Image.Output(display_name="draft_crop", tooltip="The crop of the draft."),
                io.Image.Output(
                    display_name="reference_crop", tooltip="The crop of the reference."
                ),
                io.Mask.Output(
                    display_name="crop_mask", tooltip="Mask of the region within the crop."
                ),
                RefineCropSocket.Output(
                    display_name="refine_crop",
                    tooltip="The draft and the position of the crop, for Stitch (OmniRefiner).",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        draft: Tensor,
        reference: Tensor,
        recipe: str,
        context: float,
        megapixels: float,
        grow: int,
        mask: Tensor | None = None,
        reference_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        if len(draft) != 1 or len(reference) != 1:
            raise ValueError(
                f"Crop for Refine needs exactly one draft and one reference, got {len(draft)} and "
                f"{len(reference)}. Use Reference Refine for batches."
            )
        chosen = get_recipe(recipe)
        options = RefineOptions(context=context, megapixels=megapixels or None, grow=grow)
        references, masks, notes = read_references(cls, {"reference": reference}, reference_mask)
        request = normalize_request(
            RefineRequest(
                to_core(draft).cpu(), references, mask_to_core(mask), masks, options, notes=notes
            )
        )
        request = unite_masks(request)
        check(request)
        image = request.draft
        size = Extent(image.shape[-1], image.shape[-2])
        region = single_region(request.mask, size, grow)
        task = RegionTask(region, request.references, request.reference_masks)
        task = locate_details(image, task, chosen, options)
        planned = plan_region(task, size, chosen, options)
        prepared = prepare_region(image, planned, chosen, options)
        return io.NodeOutput(
            from_core(dict(shown_pictures(prepared))["draft"]),
            from_core(prepared.references[0].crop),
            mask_from_core(prepared.mask),
            RefineCrop(image, prepared, draft, request.notes),
        )


def _conditioning_inputs() -> list[Any]:
    return [
        io.Conditioning.Input("positive", tooltip="The conditioning of the encoded prompt."),
        io.Vae.Input("vae", tooltip="The VAE of the model."),
        io.Image.Input("draft_crop", tooltip="The crop of the draft from Crop for Refine."),
        io.Image.Input("reference_crop", tooltip="The crop of the reference from Crop for Refine."),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="The guidance scale. 0 uses the recipe's value.",
        ),
        RefineCropSocket.Input(
            "refine_crop",
            optional=True,
            tooltip="The crop from Crop for Refine. Its recipe decides the order and the "
            "layout of the images. If not connected, omnirefiner is assumed.",
        ),
        RefinerSocket.Input(
            "refiner",
            optional=True,
            tooltip="The refiner. Needed by recipes that encode the prompt together with the "
            "images, which are imagecritic and refineanything.",
        ),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            optional=True,
            tooltip="The prompt for those recipes, which do not use positive. If empty, the "
            "recipe's own prompt is used.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="The number of steps of sigmas. 0 uses the recipe's value.",
        ),
    ]


class RefineConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefineConditioning",
            display_name="Refine Conditioning",
            category=STEPS,
            description="Adds the draft and the reference to the conditioning as reference latents, "
            "in the order and layout of the recipe. Use it with any sampler at denoise 1.",
            search_aliases=["reference latent", "kontext two images"],
            inputs=_conditioning_inputs(),
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The conditioning with both images as reference latents.",
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="An empty latent of the size of the crop."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative conditioning of recipes that use CFG. For other recipes it "
                    "is the same as positive.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The noise schedule of the recipe, for SamplerCustom.",
                ),
                io.Float.Output(display_name="cfg", tooltip="The CFG scale of the recipe."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        vae: Any,
        draft_crop: Tensor,
        reference_crop: Tensor,
        guidance: float,
        refine_crop: RefineCrop | None = None,
        refiner: Refiner | None = None,
        prompt: str = "",
        steps: int = 0,
    ) -> io.NodeOutput:
        recipe = _recipe_of(refine_crop, refiner)
        given = {"draft": to_core(draft_crop), "reference": to_core(reference_crop)}
        pictures = _pictures(recipe, given, refine_crop)
        inputs = clean_inputs(pictures, recipe, lambda image: encode_image(vae, image))
        options = RefineOptions(
            prompt=prompt.strip() or None, guidance=guidance or None, steps=steps or None
        )
        size = Extent(draft_crop.shape[2], draft_crop.shape[1])
        job = sampling_job(recipe, size, inputs, options)
        text = EncodedText(positive)
        if refiner is not None and recipe.conditioning != "text":
            text = encode_text(refiner, job)
        conditioned, negative = condition(text, job, recipe.layout)
        if refiner is not None:
            check_layout(refiner, conditioned)
        empty = {"samples": torch.zeros_like(job.draft)}
        return io.NodeOutput(conditioned, empty, negative or conditioned, job.sigmas, job.cfg)


def _recipe_of(crop: RefineCrop | None, refiner: Refiner | None) -> Recipe:
    """The crop's recipe, with the steps and CFG of the refiner's accelerator LoRA.

    Raises:
        ValueError: the refiner's is another one, or it is missing where the prompt needs it.
    """
    recipe = OMNIREFINER if crop is None else crop.prepared.recipe
    if refiner is not None:
        if refiner.recipe.name != recipe.name:
            raise ValueError(
                f"The refiner has the recipe {refiner.recipe.name}, but the crop is made for "
                f"{recipe.name}. Choose the same recipe in Crop for Refine, and connect its "
                "refine_crop."
            )
        return refiner.recipe
    if recipe.conditioning != "text":
        raise ValueError(
            f"The recipe {recipe.name} encodes the prompt together with the images. Connect its "
            "refiner to Refine Conditioning."
        )
    return recipe


def _pictures(
    recipe: Recipe, given: dict[str, Tensor], crop: RefineCrop | None
) -> list[tuple[str, Tensor]]:
    """The connected images in the recipe's order, with what else the recipe shows the model.

    Raises:
        ValueError: an image does not have the size of the crop.
    """
    if crop is None:
        return [(role, given[role]) for role in recipe.order]
    pictures = shown_pictures(crop.prepared)
    for role, picture in pictures:
        if role in given and given[role].shape[-2:] != picture.shape[-2:]:
            h, w = given[role].shape[-2:]
            raise ValueError(
                f"{role}_crop is {w}x{h}, but the crop of refine_crop is "
                f"{picture.shape[-1]}x{picture.shape[-2]}. Connect the outputs of the same Crop for "
                "Refine."
            )
    return [(role, given.get(role, picture)) for role, picture in pictures]


class Stitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_Stitch",
            display_name="Stitch (OmniRefiner)",
            category=STEPS,
            description="Stitches a repaired crop back into the draft. Drift and color shift are "
            "corrected, and every pixel outside the mask keeps its exact value.",
            search_aliases=["inpaint stitch", "uncrop", "paste back"],
            inputs=[
                RefineCropSocket.Input("refine_crop", tooltip="The crop from Crop for Refine."),
                io.Image.Input(
                    "image", tooltip="The repaired crop, in the size that Crop for Refine gave it."
                ),
                io.Int.Input(
                    "feather",
                    default=6,
                    min=0,
                    max=1024,
                    tooltip="Width of the soft edge inside the mask, in pixels.",
                ),
                blend_input(),
                io.Boolean.Input(
                    "fix_drift",
                    default=True,
                    tooltip="Removes the small shift and zoom that edit models add. They are measured "
                    "outside the mask.",
                ),
                io.Float.Input(
                    "color_match",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the model's color shift is removed, from 0 to 1. The shift "
                    "is measured outside the mask.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only for nano: connect its VAE to restore the fine detail of the "
                    "reference that this VAE cannot encode.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The repaired draft."),
                io.String.Output(
                    display_name="report", tooltip="Report of the repair as JSON text."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        refine_crop: RefineCrop,
        image: Tensor,
        feather: int,
        blend: str,
        fix_drift: bool,
        color_match: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        prepared, result = refine_crop.prepared, to_core(image).cpu().float()
        if len(result) != 1 or result.shape[-2:] != prepared.draft.shape[-2:]:
            raise ValueError(
                f"{len(result)} image(s) of {result.shape[-1]}x{result.shape[-2]} are connected, but "
                f"the crop is one of {prepared.plan.target}. Connect the image that was sampled from "
                "this crop."
            )
        # Where the recipe's output is too poor to measure drift and color on, neither is corrected.
        usual = prepared.recipe.correct_drift_and_color
        options = RefineOptions(
            feather=feather,
            blend=BLEND[blend],
            drift=fix_drift and usual,
            color_match=color_match if usual else 0.0,
        )
        coded = None
        if vae is not None and prepared.blend.residual:
            coded = decode_latent(vae, encode_image(vae, prepared.references[0].crop))
        result, corrections = correct_region(prepared, result, options, coded)
        out = refine_crop.image.clone()
        stitch_region(out, prepared, result, options)
        report = prepared.report | corrections | {"notes": list(refine_crop.notes)}
        return_freed_memory()
        return io.NodeOutput(from_core(out, refine_crop.source), json.dumps(report, indent=2))
