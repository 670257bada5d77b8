"""Reference Refine: the whole repair in one node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.boxes import parse_boxes
from ..refiner_core.images.geometry import Box, Extent
from ..refiner_core.models.devices import return_freed_memory
from ..refiner_core.repair.marking import normalize_request
from ..refiner_core.repair.pipeline import RefineResult, refine
from ..refiner_core.repair.request import (
    Paste,
    RefineOptions,
    RefineRequest,
    check,
    unite_masks,
    unmarked_size,
)
from ..refiner_core.scoring.scorer import Scorer
from .engine import OWN_SAMPLER, RECIPE_SCHEDULE, ComfyEngine
from .layout import from_core, mask_from_core, mask_to_core, to_core
from .live import LiveView
from .loaded_files import read_references
from .nano import load_nano_refiner
from .pictures import show_inputs, show_text, temp_pair
from .preferences import remember
from .types import (
    BLEND,
    CATEGORY,
    Refiner,
    RefinerSocket,
    ScorerSocket,
    blend_input,
    boxes_input,
)

MOST_SHOWN = 64  # images of a batch that are sent to the page
TOGETHER, SEPARATE = "together", "separate"
SWITCH = {"recipe": None, "on": True, "off": False}


def _common_size(crops: list[Tensor]) -> Tensor:
    """The crops that have the size of the first one, as a batch (sizes differ between regions)."""
    return torch.cat([c for c in crops if c.shape == crops[0].shape])


def _shown(inputs: dict[str, Any], request: RefineRequest, result: RefineResult) -> dict[str, Any]:
    """What the page shows: images before and after, their repaired regions and the report."""
    pairs = []
    for i, after in enumerate(result.image[:MOST_SHOWN]):
        before = request.draft[min(i, len(request.draft) - 1)]
        regions = [r for r in result.report["regions"] if r["picture"] == i]
        changed = [Box(*r.get("pasted", r["region"])) for r in regions]
        shown = [{"crop": r["crop"], "region": r["region"]} for r in regions]
        pairs.append({**temp_pair(before[None], after[None], changed), "regions": shown})
    return {"inputs": inputs, "pairs": pairs, "report": result.report}


def _unchanged(draft: Tensor, inputs: dict[str, Any], notes: Sequence[str]) -> io.NodeOutput:
    """The draft as it came, to draw boxes on, in place of a repair for which nothing is marked."""
    note = "Nothing is marked, so the draft was passed on unchanged."
    report = {"note": note, "notes": list(notes), "regions": []}
    return io.NodeOutput(
        draft,
        draft,
        torch.zeros(draft.shape[:3]),
        json.dumps(report, indent=2),
        ui={"omnirefiner": [{"inputs": inputs, "unmarked": True}]},
    )


def _image_inputs() -> list[Any]:
    return [
        io.Image.Input(
            "draft",
            tooltip="The image to repair. Images of a batch are repaired one after another.",
        ),
        RefinerSocket.Input(
            "refiner",
            optional=True,
            tooltip="The refiner from Load Refiner or Refiner from Model. If not connected, nano is "
            "used, the small refiner that ships with the pack.",
        ),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="The reference image that shows the correct detail: one image for all drafts, or "
            "one for each draft. All recipes except refineanything need a reference.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="The region of the draft that may change. Use it instead of boxes, or together "
            "with boxes to limit them to its shape. Separate areas are repaired one after another.",
        ),
        io.Mask.Input(
            "reference_mask",
            optional=True,
            tooltip="Mask of the detail in the reference. It should cover the same surface as the "
            "mask of the draft. If neither a mask nor a box marks it, the detail is searched for in the "
            "whole reference.",
        ),
        io.Image.Input(
            "reference_2",
            optional=True,
            tooltip="A second image of the detail, for example from another angle.",
        ),
        io.Image.Input("reference_3", optional=True, tooltip="A third image of the detail."),
    ]


def _sampling_inputs() -> list[Any]:
    return [
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            tooltip="Text that describes the repair. If empty, the recipe's own prompt is used. nano "
            "ignores it.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The random seed used for creating the noise. The noise is the same on every "
            "device.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="The number of sampling steps. 0 uses the recipe's value (4 for nano, 28 for "
            "Kontext).",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="The guidance scale. For refineanything this is the CFG scale. 0 uses the "
            "recipe's value (2.5 for Kontext).",
        ),
        io.Combo.Input(
            "sampler",
            options=[OWN_SAMPLER, *comfy.samplers.SAMPLER_NAMES],
            default=OWN_SAMPLER,
            advanced=True,
            tooltip="The algorithm used when sampling: the pack's own Euler sampler or any of "
            "ComfyUI's samplers.",
        ),
        io.Combo.Input(
            "scheduler",
            options=[RECIPE_SCHEDULE, *comfy.samplers.SCHEDULER_NAMES],
            default=RECIPE_SCHEDULE,
            advanced=True,
            tooltip="The noise schedule. The option recipe is the schedule that the weights were "
            "trained with.",
        ),
    ]


def _region_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "context",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.05,
            advanced=True,
            tooltip="Size of the crop relative to the size of the region. 1 means no surroundings. 0 "
            "uses the recipe's value.",
        ),
        io.Float.Input(
            "megapixels",
            default=0.0,
            min=0.0,
            max=16.0,
            step=0.005,
            round=0.001,
            tooltip="Size at which the model processes the crop, in megapixels. 0 uses the recipe's "
            "value.",
            advanced=True,
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-1024,
            max=1024,
            tooltip="Number of pixels to grow the region by. Negative values shrink it.",
        ),
        io.Int.Input(
            "feather",
            default=6,
            min=0,
            max=1024,
            tooltip="Width of the soft edge inside the region, in pixels. Pixels outside the region "
            "are never changed.",
        ),
        io.Float.Input(
            "model_mask",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="How strongly sampling is held to the draft outside the region. 0 does not hold "
            "it at all, 1 holds it completely.",
        ),
        blend_input(advanced=True),
    ]


def _correction_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "color_match",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="How much of the model's color shift is removed, from 0 to 1. The shift is "
            "measured outside the region. -1 uses the recipe's value (1 for Kontext, 0 for nano).",
        ),
        io.Combo.Input(
            "fix_drift",
            options=list(SWITCH),
            default="recipe",
            advanced=True,
            tooltip="Removes the small shift and zoom that edit models add. They are measured outside "
            "the region. The option recipe turns this on for Kontext and off for nano.",
        ),
        io.Combo.Input(
            "align_reference",
            options=list(SWITCH),
            default="recipe",
            advanced=True,
            tooltip="Aligns the reference with the perspective and lighting of the draft before "
            "sampling. The option recipe turns this on for nano and off for Kontext, and leaves the "
            "draft as it is where nano does not find the detail. The option on repairs it even then.",
        ),
    ]


def _candidate_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "candidates",
            default=1,
            min=1,
            max=64,
            optional=True,
            tooltip="Number of candidates to sample, with consecutive seeds that start at seed. The "
            "best one by the scorer is kept.",
        ),
        io.Int.Input(
            "keep",
            default=1,
            min=1,
            max=64,
            optional=True,
            advanced=True,
            tooltip="Number of candidates that are sampled to the last step. The others are dropped "
            "earlier, which saves time.",
        ),
        io.Int.Input(
            "prune_at",
            default=-1,
            min=-1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Number of steps after which the worse half of the candidates is dropped, again "
            "and again. 0 never drops any. -1 uses a quarter of the steps.",
        ),
        ScorerSocket.Input(
            "scorer",
            optional=True,
            tooltip="The scorer that compares the candidates. If not connected, MS-SSIM + edges is "
            "used, which needs no weights.",
        ),
    ]


def _later_inputs() -> list[Any]:
    """Inputs of later versions, at the end, so that saved workflows keep their values."""
    return [
        io.Combo.Input(
            "mask_batch",
            options=[TOGETHER, SEPARATE],
            default=TOGETHER,
            optional=True,
            advanced=True,
            tooltip="What several masks mean for a single draft. together: all of them are "
            "repaired in one image. separate: each mask makes an image of its own.",
        ),
        io.Combo.Input(
            "paste",
            options=list(get_args(Paste)),
            default="region",
            optional=True,
            advanced=True,
            tooltip="What of the repaired crop is pasted into the draft: the region, or the whole "
            "crop, including the surroundings that the model saw. Connect paste_mask to choose "
            "it yourself.",
        ),
        io.Mask.Input(
            "paste_mask",
            optional=True,
            tooltip="What of the repaired crop is pasted into the draft, apart from the mask of "
            "the region that is repaired. It may be smaller or larger than the region, but "
            "only what lies in the crop is pasted.",
        ),
    ]


def _options(
    prompt: str,
    steps: int,
    guidance: float,
    context: float,
    megapixels: float,
    color_match: float,
    fix_drift: str,
    align_reference: str,
    blend: str,
    prune_at: int = -1,
    **same: Any,
) -> RefineOptions:
    """The settings of the widgets. Where 0 or -1 stands for the recipe's value, the core takes None.

    `same` holds the settings that mean the same in both: seed, grow, feather and others.
    """
    return RefineOptions(
        prompt=prompt.strip() or None,
        steps=steps or None,
        guidance=guidance or None,
        context=context or None,
        megapixels=megapixels or None,
        color_match=None if color_match < 0 else color_match,
        drift=SWITCH[fix_drift],
        align=SWITCH[align_reference],
        blend=BLEND[blend],
        prune_at=None if prune_at < 0 else prune_at,
        **same,
    )


class ReferenceRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_ReferenceRefine",
            display_name="Reference Refine",
            category=CATEGORY,
            description="Repairs a detail of the draft with the correct detail from the reference. "
            "Only the marked region changes: every pixel outside it keeps its exact value.",
            search_aliases=[
                "refine",
                "omni",
                "omnirefiner",
                "fix detail",
                "detail fix",
                "detailer",
                "repair",
                "restore",
                "inpaint",
                "fix logo",
                "fix text",
                "lettering",
                "face detail",
                "detail",
                "logo",
                "label",
                "product",
                "brand",
                "reference inpaint",
            ],
            inputs=[
                *_image_inputs(),
                *_sampling_inputs(),
                *_region_inputs(),
                *_correction_inputs(),
                *_candidate_inputs(),
                boxes_input(
                    "Boxes drawn in the node around the details. Box 1 of the draft is repaired from "
                    "box 1 of the reference, box 2 from box 2. A connected mask limits the boxes to "
                    "its shape."
                ),
                *_later_inputs(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
            outputs=[
                io.Image.Output(display_name="image", tooltip="The repaired draft."),
                io.Image.Output(
                    display_name="crop", tooltip="The repaired crop as the model generated it."
                ),
                io.Mask.Output(
                    display_name="changed",
                    tooltip="Mask of the pixels that were allowed to change.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Report of the repair as JSON text."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        draft: Tensor,
        sampler: str,
        scheduler: str,
        refiner: Refiner | None = None,
        mask: Tensor | None = None,
        reference_mask: Tensor | None = None,
        reference: Tensor | None = None,
        reference_2: Tensor | None = None,
        reference_3: Tensor | None = None,
        boxes: str = "",
        scorer: Scorer | None = None,
        mask_batch: str = TOGETHER,
        paste_mask: Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        views = {"reference": reference, "reference_2": reference_2, "reference_3": reference_3}
        references, masks, notes = read_references(cls, views, reference_mask)
        request = RefineRequest(
            to_core(draft).cpu(),
            references,
            mask_to_core(mask),
            masks,
            _options(**settings),
            parse_boxes(boxes),
            notes,
            mask_to_core(paste_mask),
        )
        request = normalize_request(request)
        if mask_batch == TOGETHER:
            request = unite_masks(request)
        shown = show_inputs(cls, request.draft, request.references[0] if references else None)
        engine = ComfyEngine(refiner or load_nano_refiner(), sampler, scheduler)
        check(request)
        size = Extent(draft.shape[2], draft.shape[1])
        if unmarked_size(request, size, engine.recipe.buckets) is not None:
            show_text(cls, "\n".join(request.notes))  # for example that a connected mask is empty
            return _unchanged(draft, shown, request.notes)
        result = refine(engine, request, LiveView(cls, engine), scorer)
        remember(cls, request, result)
        show_text(cls, "\n".join(result.report["notes"]))
        return_freed_memory()
        return io.NodeOutput(
            from_core(result.image, draft),
            from_core(_common_size(result.crops)),
            mask_from_core(result.mask),
            json.dumps(result.report, indent=2),
            ui={"omnirefiner": [_shown(shown, request, result)]},
        )
