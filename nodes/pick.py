"""Pick Best: ranks pictures made elsewhere by how well they show the reference's detail."""

from __future__ import annotations

import json

from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.repair.pick_best import pick_best
from ..refiner_core.scoring.interface import Scorer
from .layout import mask_to_core, to_core
from .types import SCORING, ScorerSocket


class PickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_PickBest",
            display_name="Pick Best",
            category=SCORING,
            description="Out of a batch, the pictures whose detail is nearest to the reference's.",
            search_aliases=["best of n", "select image", "rank", "dreamsim", "choose", "sort batch"],
            inputs=[
                io.Image.Input("images", tooltip="The batch to choose from, all of one size."),
                io.Image.Input("reference",
                    tooltip="The true detail, one picture of any size; it is cropped to its mask and "
                    "scaled to the region, never the other way round."),
                io.Mask.Input("mask", optional=True,
                    tooltip="The detail in the images (one mask, or one each), of the images' size. "
                    "Unconnected: whole pictures."),
                io.Mask.Input("reference_mask", optional=True,
                    tooltip="The detail in the reference, of its size. Outline the same surface."),
                ScorerSocket.Input("scorer", optional=True,
                    tooltip="What tells pictures apart; unconnected: MS-SSIM + edges (no weights)."),
                io.Int.Input("keep", default=1, min=1, max=64,
                    tooltip="How many pictures to return, best first; at most as many as there are."),
                io.Boolean.Input("align", default=True,
                    tooltip="Bring the reference into each picture's pose and light before comparing; "
                    "off: it is only cropped and scaled."),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best pictures, best first."),
                io.Int.Output(display_name="index", tooltip="The best one's number in the batch, from 0."),
                io.String.Output(display_name="report", tooltip="Every picture's distance, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: Tensor, reference: Tensor, keep: int, align: bool, mask: Tensor | None = None,
        reference_mask: Tensor | None = None, scorer: Scorer | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        found = pick_best(
            to_core(images).cpu(), to_core(reference).cpu(), mask_to_core(mask),
            mask_to_core(reference_mask), scorer=scorer, align=align,
        )  # fmt: skip
        report = {
            "scorer": found.scorer, "order": found.order,
            "distances": [round(d, 6) for d in found.distances],
        }  # fmt: skip
        chosen = found.order[:keep]
        return io.NodeOutput(images[chosen], chosen[0], json.dumps(report, indent=2))
