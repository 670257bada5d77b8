"""The repair taken apart, so that KSampler or another pack's sampler can do the middle."""

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


class CropForRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_CropForRefine",
            display_name="Crop for Refine",
            category=STEPS,
            description="Cuts draft and reference to what an edit model wants: a bucket's exact "
            "size, never stretched. Stitch puts the result back.",
            search_aliases=["inpaint crop", "kontext crop", "bucket crop"],
            inputs=[
                io.Image.Input("draft", tooltip="One picture."),
                io.Image.Input("reference", tooltip="One picture of the true detail."),
                io.Mask.Input("mask", optional=True, tooltip="The detail in the draft."),
                io.Mask.Input("reference_mask", optional=True, tooltip="The detail in the reference."),
                io.Combo.Input("recipe", options=list(RECIPES), default="omnirefiner",
                    tooltip="Whose resolutions to use."),
                io.Float.Input("context", default=1.5, min=1.0, max=10.0, step=0.05,
                    tooltip="Crop size over region size, 1 = no surroundings."),
                io.Float.Input("megapixels", default=0.0, min=0.0, max=16.0, step=0.005, round=0.001,
                    tooltip="Area of the crop in 10^6 px; 0 = the recipe's."),
                io.Int.Input("grow", default=0, min=-1024, max=1024, tooltip="Grow the mask, px."),
            ],
            outputs=[
                io.Image.Output(display_name="draft_crop"),
                io.Image.Output(display_name="reference_crop"),
                io.Mask.Output(display_name="crop_mask", tooltip="The region in the crop."),
                RefineCropSocket.Output(display_name="refine_crop", tooltip="For Stitch."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, draft: Tensor, reference: Tensor, recipe: str, context: float, megapixels: float,
        grow: int, mask: Tensor | None = None, reference_mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if len(draft) != 1 or len(reference) != 1:
            raise ValueError(
                f"Crop for Refine takes one draft and one reference, got {len(draft)} and "
                f"{len(reference)}. Reference Refine takes batches."
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
        shown = prefill(seen, view, inside, chosen.prefill) if chosen.align else seen
        return io.NodeOutput(
            from_core(shown), from_core(view), mask_from_core(inside),
            RefineCrop(
                image, seen, view, region, plan, chosen.remainder if chosen.align else 0.0,
                {"crop": list(plan.box), "reference": report},
            ),
        )  # fmt: skip


class RefineConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_RefineConditioning",
            display_name="Refine Conditioning",
            category=STEPS,
            description="Lays draft and reference out for the model: positions by index, draft 1, "
            "reference 2. Feed any sampler with it, cfg 1, denoise 1.",
            search_aliases=["reference latent", "kontext two images"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Vae.Input("vae", tooltip="The FLUX autoencoder."),
                io.Image.Input("draft_crop", tooltip="From Crop for Refine."),
                io.Image.Input("reference_crop", tooltip="From Crop for Refine."),
                io.Float.Input("guidance", default=2.5, min=0.0, max=100.0, step=0.1,
                    tooltip="Guidance embedding, 2.5 for refiners."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Latent.Output(display_name="latent", tooltip="Empty, of the crop's size."),
            ],
        )  # fmt: skip

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
            display_name="Stitch",
            category=STEPS,
            description="Puts a repaired crop back: drift and colour cast taken out, blended inside "
            "the mask, every pixel outside exactly as it was.",
            search_aliases=["inpaint stitch", "uncrop", "paste back"],
            inputs=[
                RefineCropSocket.Input("refine_crop", tooltip="From Crop for Refine."),
                io.Image.Input("image", tooltip="The repaired crop."),
                io.Int.Input("feather", default=6, min=0, max=1024,
                    tooltip="Blend width inside the mask's edge, px."),
                io.Combo.Input("blend", options=["feather", "multiband"], default="feather",
                    tooltip="How the repair is blended in."),
                io.Boolean.Input("fix_drift", default=True, tooltip="Take out shift and zoom."),
                io.Float.Input("color_match", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="Take out the colour cast, 0..1."),
                io.Vae.Input("vae", optional=True,
                    tooltip="nano's codec loses fine print: with it, what it loses is given back."),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(display_name="report", tooltip="What was done, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, refine_crop: RefineCrop, image: Tensor, feather: int, blend: Any, fix_drift: bool,
        color_match: float, vae: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        c, result = refine_crop, to_core(image).cpu().float()
        if result.shape[-2:] != c.seen.shape[-2:]:
            raise ValueError(
                f"The image to stitch is {result.shape[-1]}x{result.shape[-2]} but the crop was "
                f"{c.plan.target}. Pass on what the sampler made of this very crop."
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
