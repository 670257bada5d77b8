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
                    "b",
                    optional=True,
                    tooltip="The image on the right: one, or as many as there are in a. If not "
                    "connected, the previous run is compared.",
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
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="Image b unchanged, or image a if b is not connected.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        a: Tensor,
        b: Tensor | None = None,
        mask: Tensor | None = None,
        overlay: Tensor | None = None,
    ) -> io.NodeOutput:
        n = len(a) if b is None else max(len(a), len(b))
        if b is not None and any(len(x) not in (1, n) for x in (a, b)):
            raise ValueError(
                f"Compare got {len(a)} images for a and {len(b)} for b. Connect the same number of "
                "images to both, or a single image to one of them."
            )
        # Without `after` the page compares with what the node sent it in the previous run.
        named = {"before": a, "after": b, "overlay": overlay}
        images = {key: to_core(image) for key, image in named.items() if image is not None}
        outlined = mask_to_core(mask)
        pairs: list[dict[str, Any]] = []
        for i in range(min(n, MOST_SHOWN)):
            pair: dict[str, Any] = {k: temp_picture(_at(x, i)) for k, x in images.items()}
            box = None if outlined is None else bounds(_at(outlined, i))
            regions = [] if box is None else [{"crop": list(box), "region": list(box)}]
            pairs.append({**pair, "regions": regions})
        return io.NodeOutput(a if b is None else b, ui={"omnirefiner": [{"pairs": pairs}]})
