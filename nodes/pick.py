"""Pick Best: ranks the images of a batch by how well they show the detail of the reference."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.repair.pick_best import pick_best
from ..refiner_core.scoring.scorer import Scorer
from .layout import mask_to_core, opaque_to_core
from .loaded_files import read_references
from .pictures import show_text
from .types import SCORING, ScorerSocket


def _inputs() -> list[Any]:
    return [
        io.Image.Input(
            "images",
            tooltip="The images to choose from: a batch, or the list from Load Folder "
            "(OmniRefiner). Their sizes can differ.",
        ),
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
            tooltip="Number of images to output, best first. It is limited to the number of images.",
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
            description="Picks the images of a batch or a folder whose detail is closest to the "
            "reference.",
            search_aliases=[
                "best of n",
                "select image",
                "rank",
                "dreamsim",
                "choose",
                "sort batch",
            ],
            inputs=_inputs(),
            is_input_list=True,
            outputs=[
                io.Image.Output(
                    display_name="best",
                    is_output_list=True,
                    tooltip="The picked images, best first: a batch if they have one size, "
                    "otherwise a list.",
                ),
                io.Int.Output(
                    display_name="index",
                    tooltip="Position of the best image among all images, counted from 0.",
                ),
                io.String.Output(
                    display_name="report", tooltip="The distance of every image as JSON text."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        reference: list[Tensor],
        keep: list[int],
        align: list[bool],
        mask: list[Tensor] | None = None,
        reference_mask: list[Tensor] | None = None,
        scorer: list[Scorer] | None = None,
    ) -> io.NodeOutput:
        singles = [image for batch in images for image in batch.split(1)]
        given = _only(reference_mask, "reference mask") if reference_mask else None
        (view,), (detail,), notes = read_references(
            cls, {"reference": _only(reference, "reference")}, given
        )
        ranking = pick_best(
            [opaque_to_core(image) for image in singles],
            view,
            _masks(mask),
            detail,
            scorer=scorer[0] if scorer else None,
            align=align[0],
        )
        report: dict[str, Any] = {
            "scorer": ranking.scorer,
            "order": ranking.order,
            "distances": [round(d, 6) for d in ranking.distances],
            "notes": [*notes, *ranking.notes],
        }
        show_text(cls, "\n".join(report["notes"]))
        chosen = ranking.order[: keep[0]]
        best = [singles[i] for i in chosen]
        if len({image.shape for image in best}) == 1:
            best = [torch.cat(best)]
        return io.NodeOutput(best, chosen[0], json.dumps(report, indent=2))


def _only(values: list[Tensor], name: str) -> Tensor:
    """The single value of an input that is connected to a list."""
    if len(values) != 1:
        raise ValueError(
            f"Pick Best compares all images with one {name}, got a list of {len(values)}. Connect a "
            "node that outputs a single one."
        )
    return values[0]


def _masks(values: list[Tensor] | None) -> list[Tensor]:
    """Every mask of a list of batches, 1 1 H W each."""
    masks = [mask_to_core(value) for value in values or []]
    return [one for mask in masks if mask is not None for one in mask.split(1)]
