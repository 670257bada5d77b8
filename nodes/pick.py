"""Pick Best: ranks the images of a batch by how well they show the detail of the reference."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.repair.pick_best import pick_best
from ..refiner_core.scoring.scorer import Scorer
from .layout import mask_to_core, to_core
from .types import SCORING, ScorerSocket


def _inputs() -> list[Any]:
    return [
        io.Image.Input("images", tooltip="The batch of images to choose from."),
        io.Image.Input(
            "reference",
            tooltip="The reference image that shows the correct detail, in any size. It is cropped to "
            "its mask and scaled to the region.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Mask of the detail in the images, in the same size: one mask for all images, or "
            "one for each image. If not connected, the whole images are compared.",
        ),
        io.Mask.Input(
            "reference_mask",
            optional=True,
            tooltip="Mask of the detail in the reference. It should cover the same surface as the "
            "mask of the images.",
        ),
        ScorerSocket.Input(
            "scorer",
            optional=True,
            tooltip="The scorer that compares the images. If not connected, MS-SSIM + edges is used, "
            "which needs no weights.",
        ),
        io.Int.Input(
            "keep",
            default=1,
            min=1,
            max=64,
            tooltip="Number of images to output, best first. It is limited to the number of images in "
            "the batch.",
        ),
        io.Boolean.Input(
            "align",
            default=True,
            tooltip="Aligns the reference with the perspective and lighting of each image before they "
            "are compared. Otherwise the reference is only cropped and scaled.",
        ),
    ]


class PickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_PickBest",
            display_name="Pick Best (OmniRefiner)",
            category=SCORING,
            description="Picks the images of a batch whose detail is closest to the reference.",
            search_aliases=[
                "best of n",
                "select image",
                "rank",
                "dreamsim",
                "choose",
                "sort batch",
            ],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(display_name="best", tooltip="The picked images, best first."),
                io.Int.Output(
                    display_name="index",
                    tooltip="Position of the best image in the batch, counted from 0.",
                ),
                io.String.Output(
                    display_name="report", tooltip="The distance of every image as JSON text."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        reference: Tensor,
        keep: int,
        align: bool,
        mask: Tensor | None = None,
        reference_mask: Tensor | None = None,
        scorer: Scorer | None = None,
    ) -> io.NodeOutput:
        found = pick_best(
            to_core(images).cpu(),
            to_core(reference).cpu(),
            mask_to_core(mask),
            mask_to_core(reference_mask),
            scorer=scorer,
            align=align,
        )
        report = {
            "scorer": found.scorer,
            "order": found.order,
            "distances": [round(d, 6) for d in found.distances],
        }
        chosen = found.order[:keep]
        return io.NodeOutput(images[chosen], chosen[0], json.dumps(report, indent=2))
