"""The repair in separate nodes, for sampling with KSampler or another pack's sampler."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.crop import crop, crop_mask, stitch, uncrop
from ..refiner_core.images.geometry import Extent
from ..refiner_core.images.masks import find_regions, whole_region
from ..refiner_core.recipes.recipe import RECIPES, get_recipe
from ..refiner_core.repair.drift_and_color import settle
from ..refiner_core.repair.model_inputs import lost, plan_views, prefill, reference_view
from .conditioning import reference_conditioning
from .layout import from_core, mask_from_core, mask_to_core, to_core
from .types import STEPS, RefineCrop, RefineCropSocket


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
            tooltip="Mask of the detail in the reference. If not connected, the whole image is used.",
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
            "was trained on, without stretching them. Stitch puts the repaired crop back.",
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
                    tooltip="The draft and the position of the crop, for Stitch.",
                ),
            ],
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
        image, chosen = to_core(draft).cpu(), get_recipe(recipe)
        size = Extent(image.shape[-1], image.shape[-2])
        given = mask_to_core(mask)
        region = whole_region(size)
        if given is not None:
            region = find_regions(given, grow_pixels=grow, split=False)[0]
        area = megapixels or None
        other, other_mask = to_core(reference).cpu(), mask_to_core(reference_mask)
        plan, own = plan_views((size, region.box), other, other_mask, chosen, context, area)
        seen, inside = crop(image, plan), crop_mask(region, plan)
        view, report = reference_view(other, other_mask, seen, inside, own, aligned=chosen.align)
        shown = prefill(seen, view, inside, chosen.reference_blend) if chosen.align else seen
        return io.NodeOutput(
            from_core(shown),
            from_core(view),
            mask_from_core(inside),
            RefineCrop(
                image,
                seen,
                view,
                region,
                plan,
                chosen.codec_residual if chosen.align else 0.0,
                {"crop": list(plan.box), "reference": report},
            ),
        )


class RefineConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefineConditioning",
            display_name="Refine Conditioning",
            category=STEPS,
            description="Adds the draft and the reference to the conditioning as reference latents, "
            "draft first, with the index method. Use it with any sampler at cfg 1 and denoise 1.",
            search_aliases=["reference latent", "kontext two images"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The conditioning of the encoded prompt."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("draft_crop", tooltip="The crop of the draft from Crop for Refine."),
                io.Image.Input(
                    "reference_crop", tooltip="The crop of the reference from Crop for Refine."
                ),
                io.Float.Input(
                    "guidance",
                    default=2.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="The guidance scale. Kontext refiners are trained with 2.5.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The conditioning with both images as reference latents.",
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="An empty latent of the size of the crop."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, positive: Any, vae: Any, draft_crop: Tensor, reference_crop: Tensor, guidance: float
    ) -> io.NodeOutput:
        latents = [vae.encode(i[..., :3]) for i in (draft_crop, reference_crop)]
        empty = {"samples": torch.zeros_like(latents[0])}
        return io.NodeOutput(reference_conditioning(positive, latents, guidance), empty)


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
                io.Combo.Input(
                    "blend",
                    options=["feather", "multiband"],
                    default="feather",
                    tooltip="How the repaired crop is blended into the draft: with a single soft edge "
                    "(feather), or with a wider edge for coarse tones than for fine detail "
                    "(multiband).",
                ),
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
        blend: Any,
        fix_drift: bool,
        color_match: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        c, result = refine_crop, to_core(image).cpu().float()
        if result.shape[-2:] != c.seen.shape[-2:]:
            raise ValueError(
                f"The image to stitch is {result.shape[-1]}x{result.shape[-2]}, but the crop is "
                f"{c.plan.target}. Connect the image that was sampled from this crop."
            )
        if vae is not None and c.remainder:
            coded = to_core(vae.decode(vae.encode(from_core(c.view)))).cpu()
            result = (result + c.remainder * lost(c.view, coded)).clamp(0, 1)
        settled, report = settle(
            result[:1], c.seen, c.region, c.plan, drift=fix_drift, color_match=color_match
        )
        patch = uncrop(settled, c.plan, c.region)
        out = stitch(c.image, patch, c.region, feather_pixels=feather, blend=blend)
        return io.NodeOutput(from_core(out), json.dumps({**c.report, **report}, indent=2))
