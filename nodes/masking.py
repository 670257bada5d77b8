"""Mask Builder: says what is to be repaired."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..refiner_core.images.boxes import format_boxes, parse_boxes
from ..refiner_core.images.geometry import Extent
from ..refiner_core.repair.mask_building import MaskOptions, build_mask, grown_boxes, reference_mask
from .layout import mask_from_core, mask_to_core, to_core
from .pictures import show_inputs, temp_mask
from .types import CATEGORY, boxes_input


class MaskBuilder(io.ComfyNode):
    # A run answered from ComfyUI's cache tells the page of the mask all the same. A schema's entry of
    # this name would be an error in a ComfyUI that does not know it yet.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_MaskBuilder",
            display_name="Mask Builder",
            category=CATEGORY,
            description="Point at the details: draw boxes on draft and reference, add a painted mask "
            "and the difference to another picture, grow, fill and clean. What is given adds up.",
            search_aliases=["inpaint mask", "detail", "region", "box mask", "mask from difference",
                "grow mask", "clean mask"],
            inputs=[
                io.Image.Input("image", tooltip="The picture the mask belongs to: the draft."),
                io.Mask.Input("mask", optional=True, tooltip="A painted mask to start from."),
                io.Image.Input("compare_with", optional=True,
                    tooltip="A second picture of the same thing: what differs becomes the mask."),
                io.Image.Input("reference", optional=True,
                    tooltip="The picture of the true detail, to draw the paired boxes on."),
                io.Float.Input("threshold", default=0.12, min=0.01, max=0.99, step=0.01,
                    tooltip="Difference to compare_with that counts, 0..1 of full scale."),
                io.Boolean.Input("align", default=True,
                    tooltip="Match pose and light of compare_with before comparing."),
                io.Int.Input("grow", default=0, min=-1024, max=1024,
                    tooltip="Grow (or shrink, below 0) mask and boxes, px."),
                io.Boolean.Input("fill_holes", default=True, tooltip="Close enclosed holes."),
                io.Int.Input("smallest", default=16, min=1, max=1 << 24,
                    tooltip="Pieces of fewer pixels are dropped."),
                io.Boolean.Input("invert", default=False,
                    tooltip="Swap inside and outside, last; then no boxes are passed on."),
                boxes_input("Boxes around the details, drawn in the node; box 1 of the image goes "
                    "with box 1 of the reference."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="White = repair."),
                io.Mask.Output(display_name="reference_mask",
                    tooltip="The boxes on the reference; nothing without them."),
                io.String.Output(display_name="boxes",
                    tooltip="The pairs of boxes, for Reference Refine: each region gets its own "
                    "part of the reference."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: Tensor, threshold: float, align: bool, grow: int, fill_holes: bool,
        smallest: int, invert: bool, mask: Tensor | None = None,
        compare_with: Tensor | None = None, reference: Tensor | None = None, boxes: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        picture, given = to_core(image).cpu()[:1], mask_to_core(mask)
        other = None if compare_with is None else to_core(compare_with).cpu()[:1]
        detail = other if reference is None else to_core(reference).cpu()[:1]
        shown = show_inputs(cls, picture, detail)
        pairs = parse_boxes(boxes)
        options = MaskOptions(threshold, align, grow, fill_holes, smallest, invert)
        built = build_mask(picture, None if given is None else given[:1], other, pairs, options)
        of_reference = None
        if reference is not None:
            of_reference = reference_mask(pairs, Extent(reference.shape[2], reference.shape[1]))
        grown = grown_boxes(pairs, Extent(image.shape[2], image.shape[1]), grow)
        result = mask_from_core(built)
        return io.NodeOutput(
            result,
            None if of_reference is None else mask_from_core(of_reference),
            "" if invert else format_boxes(grown),
            ui={
                **ui.PreviewMask(result, cls=cls).as_dict(),
                "omnirefiner": [{"inputs": shown, "mask": temp_mask(built)}],
            },
        )
