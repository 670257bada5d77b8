"""Mask Builder: makes the mask of the region to repair."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..refiner_core.images.boxes import format_boxes, parse_boxes
from ..refiner_core.images.geometry import Extent
from ..refiner_core.repair.mask_building import MaskOptions, build_mask, grown_boxes, reference_mask
from .layout import mask_from_core, segs_to_core, to_core, usable_mask_to_core
from .pictures import show_inputs, show_text, temp_mask
from .types import CATEGORY, SegsSocket, boxes_input


def _image_inputs() -> list[Any]:
    return [
        io.Image.Input("image", tooltip="The draft that the mask is made for."),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="A mask to start from, for example one painted in the mask editor.",
        ),
        io.Image.Input(
            "compare_with",
            optional=True,
            tooltip="A second image of the same scene. Areas where the two images differ are added "
            "to the mask.",
        ),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="The reference image that shows the correct detail. The second box of each pair "
            "is drawn on it.",
        ),
    ]


def _mask_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "threshold",
            default=0.12,
            min=0.01,
            max=0.99,
            step=0.01,
            tooltip="Smallest difference to compare_with that is added to the mask, as a fraction of "
            "the full brightness range.",
        ),
        io.Boolean.Input(
            "align",
            default=True,
            tooltip="Aligns compare_with with the perspective and lighting of the image before they "
            "are compared.",
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-1024,
            max=1024,
            tooltip="Number of pixels to grow the mask and the boxes by. Negative values shrink them.",
        ),
        io.Boolean.Input(
            "fill_holes", default=True, tooltip="Fills holes that the mask encloses completely."
        ),
        io.Int.Input(
            "smallest",
            default=16,
            min=1,
            max=1 << 24,
            tooltip="Smallest area that is kept, in pixels. Smaller areas are removed from the mask.",
        ),
        io.Boolean.Input(
            "invert",
            default=False,
            tooltip="Inverts the mask as the last step. No boxes are output in that case.",
        ),
    ]


def _painted(
    mask: Tensor | None, segs: Any, image: Tensor
) -> tuple[Tensor | None, tuple[str, ...]]:
    """All masks of the batch and all segments as one mask 1 1 H W, and notes; None if there is none.

    Args:
        image: B 3 H W.
    """
    given, notes = usable_mask_to_core(mask, image)
    height, width = image.shape[-2:]
    parts = [] if given is None else [given.amax(0, keepdim=True)]
    if segs is not None:
        parts.append(segs_to_core(segs, width, height))
        if not segs[1]:
            notes += ("the SEGS are empty: the detector found nothing",)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(
            f"The mask is {parts[0].shape[-1]}x{parts[0].shape[-2]} but the image is "
            f"{width}x{height}. Resize the mask first."
        )
    return (torch.cat(parts).amax(0, keepdim=True) if parts else None), notes


class MaskBuilder(io.ComfyNode):
    # Sends the mask to the page even if the result comes from ComfyUI's cache. As an entry of the
    # schema it would be an error in versions of ComfyUI that do not know it.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_MaskBuilder",
            display_name="Mask Builder",
            category=CATEGORY,
            description="Makes the mask of the region to repair. Combines boxes drawn on the draft and "
            "the reference, a painted mask and the difference to another image, then grows, fills and "
            "cleans the result.",
            search_aliases=[
                "inpaint mask",
                "detail",
                "region",
                "box mask",
                "mask from difference",
                "segs to mask",
                "grow mask",
                "clean mask",
            ],
            inputs=[
                *_image_inputs(),
                *_mask_inputs(),
                boxes_input(
                    "Boxes drawn in the node around the details. Box 1 of the image belongs to box 1 "
                    "of the reference, box 2 to box 2."
                ),
                SegsSocket.Input(
                    "segs",
                    optional=True,
                    tooltip="Detections of other packs, such as those of ComfyUI Impact Pack. The "
                    "masks of all segments are added to the mask.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask of the region to repair. White areas are repaired.",
                ),
                io.Mask.Output(
                    display_name="reference_mask",
                    tooltip="Mask of the boxes drawn on the reference, or nothing if there are none.",
                ),
                io.String.Output(
                    display_name="boxes",
                    tooltip="The pairs of boxes, for Reference Refine, which then repairs every "
                    "region from its own part of the reference.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        threshold: float,
        align: bool,
        grow: int,
        fill_holes: bool,
        smallest: int,
        invert: bool,
        mask: Tensor | None = None,
        compare_with: Tensor | None = None,
        reference: Tensor | None = None,
        boxes: str = "",
        segs: Any = None,
    ) -> io.NodeOutput:
        picture = to_core(image).cpu()[:1]
        painted, notes = _painted(mask, segs, picture)
        other = None if compare_with is None else to_core(compare_with).cpu()[:1]
        detail = other if reference is None else to_core(reference).cpu()[:1]
        shown = show_inputs(cls, picture, detail)
        pairs = parse_boxes(boxes)
        options = MaskOptions(threshold, align, grow, fill_holes, smallest, invert)
        show_text(cls, "\n".join(notes))
        built = build_mask(picture, painted, other, pairs, options)
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
