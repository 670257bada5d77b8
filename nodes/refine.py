"""Reference Refine: the whole repair in one node."""

from __future__ import annotations

import json
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.boxes import parse_boxes
from ..refiner_core.repair.pipeline import RefineResult, refine
from ..refiner_core.repair.request import RefineOptions, RefineRequest
from ..refiner_core.scoring.interface import Scorer
from .engine import OWN_SAMPLER, RECIPE_SCHEDULE, ComfyEngine
from .layout import from_core, mask_from_core, mask_to_core, to_core
from .live import LiveView
from .nano import load_nano_refiner
from .pictures import show_inputs, temp_picture
from .types import CATEGORY, Refiner, RefinerSocket, ScorerSocket, boxes_input

MOST_SHOWN = 64  # pictures of a batch that the page is sent
SWITCH = {"recipe": None, "on": True, "off": False}


def _common_size(crops: list[Tensor]) -> Tensor:
    """The crops of the first crop's size as one batch (regions may have other buckets)."""
    return torch.cat([c for c in crops if c.shape == crops[0].shape])


def _shown(inputs: dict[str, Any], request: RefineRequest, result: RefineResult) -> dict[str, Any]:
    """What the page draws: the pictures before and after, where each was repaired, the report."""
    pairs = []
    for i, after in enumerate(result.image[:MOST_SHOWN]):
        before = request.draft[min(i, len(request.draft) - 1)]
        regions = [r for r in result.report["regions"] if r["picture"] == i]
        pairs.append(
            {
                "before": temp_picture(before[None]), "after": temp_picture(after[None]),
                "regions": [{"crop": r["crop"], "region": r["region"]} for r in regions],
            }
        )  # fmt: skip
    return {"inputs": inputs, "pairs": pairs, "report": result.report}


class ReferenceRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_ReferenceRefine",
            display_name="Reference Refine",
            category=CATEGORY,
            description="Puts the true detail of the reference into the draft, inside the mask. "
            "Outside it every pixel keeps its exact value.",
            search_aliases=["omnirefiner", "repair", "inpaint", "detail", "restore", "logo",
                "fix logo", "repair logo", "text fix", "fix text", "lettering", "face detail"],
            inputs=[
                io.Image.Input("draft", tooltip="The picture to repair; a batch goes one by one."),
                RefinerSocket.Input("refiner", optional=True,
                    tooltip="From Load Refiner or Refiner from Model. Unconnected: nano, the small "
                    "model that comes with the pack."),
                io.Image.Input("reference", optional=True,
                    tooltip="A picture of the true detail: one for all drafts, or one each. Needed, "
                    "except by the recipe refineanything."),
                io.Mask.Input("mask", optional=True,
                    tooltip="What may change, in the draft, instead of boxes or to narrow them down. "
                    "Separate pieces are repaired one after the other."),
                io.Mask.Input("reference_mask", optional=True,
                    tooltip="The detail in the reference. Outline the same surface as in the draft."),
                io.Image.Input("reference_2", optional=True, tooltip="Another view of the detail."),
                io.Image.Input("reference_3", optional=True, tooltip="A third view of the detail."),
                io.String.Input("prompt", default="", multiline=True,
                    tooltip="Empty: the recipe's own. nano knows no text."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Noise seed; the same seed gives the same picture on any device."),
                io.Int.Input("steps", default=0, min=0, max=1000,
                    tooltip="Sampling steps; 0 = the recipe's (nano 4, Kontext 28)."),
                io.Float.Input("guidance", default=0.0, min=0.0, max=100.0, step=0.1,
                    advanced=True,
                    tooltip="Guidance embedding; 0 = the recipe's (Kontext 2.5)."),
                io.Combo.Input("sampler", options=[OWN_SAMPLER, *comfy.samplers.SAMPLER_NAMES],
                    default=OWN_SAMPLER, advanced=True,
                    tooltip="The pack's own or any of ComfyUI's."),
                io.Combo.Input("scheduler", options=[RECIPE_SCHEDULE, *comfy.samplers.SCHEDULER_NAMES],
                    default=RECIPE_SCHEDULE, advanced=True,
                    tooltip="recipe = as the weights were trained."),
                io.Float.Input("context", default=0.0, min=0.0, max=10.0, step=0.05,
                    advanced=True,
                    tooltip="Crop size over region size, 1 = no surroundings; 0 = the recipe's."),
                io.Float.Input("megapixels", default=0.0, min=0.0, max=16.0, step=0.005, round=0.001,
                    tooltip="Area the model works at, in 10^6 px; 0 = the recipe's.", advanced=True),
                io.Int.Input("grow", default=0, min=-1024, max=1024,
                    tooltip="Grow (or shrink) the mask, px."),
                io.Int.Input("feather", default=6, min=0, max=1024,
                    tooltip="Blend width inside the mask's edge, px. Never reaches outside."),
                io.Float.Input("model_mask", default=0.0, min=0.0, max=1.0, step=0.05, advanced=True,
                    tooltip="Hold sampling to the draft outside the region, 0 = free, 1 = firm."),
                io.Combo.Input("blend", options=["feather", "multiband"], default="feather",
                    tooltip="How the repair is blended in.", advanced=True),
                io.Float.Input("color_match", default=-1.0, min=-1.0, max=1.0, step=0.05, advanced=True,
                    tooltip="Take out the model's colour cast, measured outside the region, 0..1; "
                    "-1 = the recipe's (Kontext 1, nano 0)."),
                io.Combo.Input("fix_drift", options=list(SWITCH), default="recipe", advanced=True,
                    tooltip="Take out shift and zoom, measured outside the region; recipe = on for "
                    "Kontext, off for nano."),
                io.Combo.Input("align_reference", options=list(SWITCH), default="recipe", advanced=True,
                    tooltip="Bring the reference into the draft's pose and light first; recipe = "
                    "on for nano, off for Kontext."),
                io.Int.Input("candidates", default=1, min=1, max=64, optional=True,
                    tooltip="Begin so many repairs (seeds from seed on) and return the best; 1 = one "
                    "plain run. Each dropped early costs a part of a run."),
                io.Int.Input("keep", default=1, min=1, max=64, optional=True, advanced=True,
                    tooltip="How many candidates run to the end, 1 to candidates."),
                io.Int.Input("prune_at", default=-1, min=-1, max=1000, optional=True, advanced=True,
                    tooltip="Drop the worse half of the candidates every so many steps; 0 = never, "
                    "-1 = every quarter of the steps."),
                ScorerSocket.Input("scorer", optional=True,
                    tooltip="Tells candidates apart; unconnected: MS-SSIM + edges (no weights)."),
                boxes_input("Boxes around the details, drawn in the node: box 1 of the draft takes "
                    "its detail from box 1 of the reference. A mask narrows a box down."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            outputs=[
                io.Image.Output(display_name="image", tooltip="The repaired draft."),
                io.Image.Output(display_name="crop", tooltip="The repaired crop as the model made it."),
                io.Mask.Output(display_name="changed", tooltip="What was allowed to change."),
                io.String.Output(display_name="report", tooltip="What was done, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, draft: Tensor, prompt: str, seed: int, steps: int,
        guidance: float, sampler: str, scheduler: str, context: float, megapixels: float, grow: int,
        feather: int, model_mask: float, blend: Any, color_match: float, fix_drift: str,
        align_reference: str, refiner: Refiner | None = None, mask: Tensor | None = None,
        reference_mask: Tensor | None = None, reference: Tensor | None = None,
        reference_2: Tensor | None = None, reference_3: Tensor | None = None, boxes: str = "",
        candidates: int = 1, keep: int = 1, prune_at: int = -1, scorer: Scorer | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        # 0 stands for "the recipe's" in widgets, which cannot be empty.
        options = RefineOptions(
            prompt=prompt.strip() or None, seed=seed, steps=steps or None, guidance=guidance or None,
            context=context or None, megapixels=megapixels or None, grow=grow, feather=feather,
            model_mask=model_mask, blend=blend, drift=SWITCH[fix_drift],
            color_match=None if color_match < 0 else color_match, align=SWITCH[align_reference],
            candidates=candidates, keep=keep, prune_at=None if prune_at < 0 else prune_at,
        )  # fmt: skip
        views = [r for r in (reference, reference_2, reference_3) if r is not None]
        request = RefineRequest(
            to_core(draft).cpu(), tuple(to_core(v).cpu() for v in views), mask_to_core(mask),
            (mask_to_core(reference_mask),) if views else (), options, parse_boxes(boxes),
        )  # fmt: skip
        shown = show_inputs(cls, request.draft, request.references[0] if views else None)
        engine = ComfyEngine(refiner or load_nano_refiner(), sampler, scheduler)
        result = refine(engine, request, LiveView(cls, engine), scorer)
        return io.NodeOutput(
            from_core(result.image, draft),
            from_core(_common_size(result.crops)),
            mask_from_core(result.mask),
            json.dumps(result.report, indent=2),
            ui={"omnirefiner": [_shown(shown, request, result)]},
        )
