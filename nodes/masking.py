"""Mask Builder: says what is to be repaired."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..refiner_core.difference import difference_mask
from ..refiner_core.masks import find_regions
from .layout import mask_from_core, mask_to_core, to_core
from .types import CATEGORY


def _box_mask(like: Tensor, x: float, y: float, width: float, height: float) -> Tensor:
    """A rectangle in relative coordinates as a mask 1 1 H W."""
    h, w = like.shape[-2:]
    mask = torch.zeros(1, 1, h, w)
    mask[..., round(y * h) : round((y + height) * h), round(x * w) : round((x + width) * w)] = 1
    return mask


class MaskBuilder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        fraction = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.005, "round": 0.0001}
        return io.Schema(
            node_id="OmniRefiner_MaskBuilder",
            display_name="Mask Builder",
            category=CATEGORY,
            description="Builds a mask of a painted one, a box, and the difference to another "
            "picture, then grows, fills and cleans it. Parts that are given are added up.",
            search_aliases=["mask from difference", "grow mask", "box mask", "clean mask"],
            inputs=[
                io.Image.Input("image", tooltip="The picture the mask belongs to."),
                io.Mask.Input("mask", optional=True, tooltip="A painted mask to start from."),
                io.Image.Input("compare_with", optional=True,
                    tooltip="The reference or a second picture: what differs becomes the mask."),
                io.Float.Input("box_x", tooltip="Left edge of a box, 0..1 of the width.", **fraction),
                io.Float.Input("box_y", tooltip="Top edge of a box, 0..1 of the height.", **fraction),
                io.Float.Input("box_width", tooltip="0 = no box; 1 = the whole width.", **fraction),
                io.Float.Input("box_height", tooltip="0 = no box; 1 = the whole height.", **fraction),
                io.Float.Input("threshold", default=0.12, min=0.01, max=0.99, step=0.01,
                    tooltip="Difference that counts, 0..1 of full scale."),
                io.Boolean.Input("align", default=True,
                    tooltip="Match pose and light of compare_with before comparing."),
                io.Int.Input("grow", default=0, min=-1024, max=1024, tooltip="Grow or shrink, px."),
                io.Boolean.Input("fill_holes", default=True, tooltip="Close enclosed holes."),
                io.Int.Input("smallest", default=16, min=1, max=1 << 24,
                    tooltip="Pieces of fewer pixels are dropped."),
                io.Boolean.Input("invert", default=False, tooltip="Swap inside and outside, last."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="White = repair.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: Tensor, box_x: float, box_y: float, box_width: float, box_height: float,
        threshold: float, align: bool, grow: int, fill_holes: bool, smallest: int, invert: bool,
        mask: Tensor | None = None, compare_with: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        picture = to_core(image).cpu()[:1]
        total = torch.zeros(1, 1, *picture.shape[-2:])
        given = mask_to_core(mask)
        if given is not None:
            if given.shape[-2:] != total.shape[-2:]:
                raise ValueError(
                    f"The mask is {given.shape[-1]}x{given.shape[-2]} but the image is "
                    f"{total.shape[-1]}x{total.shape[-2]}. Resize the mask first."
                )
            total = torch.maximum(total, given[:1])
        if box_width > 0 and box_height > 0:
            total = torch.maximum(total, _box_mask(picture, box_x, box_y, box_width, box_height))
        if compare_with is not None:
            other = to_core(compare_with).cpu()[:1]
            found = difference_mask(picture, other, threshold=threshold, aligned=align)
            total = torch.maximum(total, found)
        out = torch.zeros_like(total)
        for region in find_regions(total, grow_pixels=grow, holes=fill_holes, smallest=smallest):
            b = region.box
            out[..., b.y0 : b.y1, b.x0 : b.x1] = torch.maximum(
                out[..., b.y0 : b.y1, b.x0 : b.x1], region.mask
            )
        result = mask_from_core(1 - out if invert else out)
        return io.NodeOutput(result, ui=ui.PreviewMask(result, cls=cls))
