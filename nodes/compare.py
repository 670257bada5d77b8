"""Compare: two images in one view, at their true pixel scale."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.masks import bounds
from .layout import mask_to_core, to_core
from .pictures import temp_picture
from .types import CATEGORY

MOST_SHOWN = 64  # images of a batch that are sent to the page


def _at(batch: Tensor, i: int) -> Tensor:
    return batch[min(i, len(batch) - 1)][None]


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_Compare",
            display_name="Compare (OmniRefiner)",
            category=CATEGORY,
            description="Compares two images with a slider, pixel by pixel, with zoom and an optional "
            "overlay such as a heatmap.",
            search_aliases=["image compare", "before after", "slider", "difference", "ab"],
            inputs=[
                io.Image.Input(
                    "a", tooltip="The image on the left: one, or as many as there are in b."
                ),
                io.Image.Input(
                    "b", tooltip="The image on the right: one, or as many as there are in a."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Mask of the area to outline, in the size of image a: one mask, or one "
                    "for each image.",
                ),
                io.Image.Input(
                    "overlay",
                    optional=True,
                    tooltip="An image shown over both with adjustable opacity, for example the "
                    "heatmap of DreamSim Score.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, a: Tensor, b: Tensor, mask: Tensor | None = None, overlay: Tensor | None = None
    ) -> io.NodeOutput:
        n = max(len(a), len(b))
        if any(len(x) not in (1, n) for x in (a, b)):
            raise ValueError(
                f"Compare got {len(a)} images for a and {len(b)} for b. Connect the same number of "
                "images to both, or a single image to one of them."
            )
        first, second, core_mask = to_core(a), to_core(b), mask_to_core(mask)
        third = None if overlay is None else to_core(overlay)
        pairs: list[dict[str, Any]] = []
        for i in range(min(n, MOST_SHOWN)):
            pair = {"before": temp_picture(_at(first, i)), "after": temp_picture(_at(second, i))}
            if third is not None:
                pair["overlay"] = temp_picture(_at(third, i))
            box = None if core_mask is None else bounds(_at(core_mask, i))
            regions = [] if box is None else [{"crop": list(box), "region": list(box)}]
            pairs.append({**pair, "regions": regions})
        return io.NodeOutput(ui={"omnirefiner": [{"pairs": pairs}]})
