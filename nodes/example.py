"""Example Case: the images of the demo, so that templates run without a download."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..refiner_core.images.demo_cases import CASES, Case, load_case
from ..refiner_core.images.tensors import to_float
from .layout import from_core, mask_from_core
from .types import CATEGORY

TWO = "logo and pattern"
NAMES = ["logo", "pattern", "word", TWO]


def example_case(name: str) -> Case:
    """One of `NAMES`. The last one is two cases side by side: a draft with two details."""
    if name != TWO:
        return load_case(CASES / name)
    left, right = (load_case(CASES / n) for n in ("logo", "pattern"))
    joined = (
        _beside(getattr(left, part), getattr(right, part))
        for part in ("draft", "reference", "target", "mask", "reference_mask")
    )
    return Case(TWO, *joined)


def _beside(left: Tensor, right: Tensor) -> Tensor:
    """Two images side by side, the lower one padded with black."""
    height = max(left.shape[-2], right.shape[-2])
    return torch.cat([F.pad(t, (0, 0, 0, height - t.shape[-2])) for t in (left, right)], -1)


class ExampleCase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_ExampleCase",
            display_name="Example Case (OmniRefiner)",
            category=CATEGORY,
            description="Outputs an example that ships with the pack: a draft with a wrong detail, "
            "its reference and the masks of both. Replace it with Load Image nodes to use your own "
            "images.",
            search_aliases=["omnirefiner demo", "sample images"],
            inputs=[
                io.Combo.Input(
                    "case", options=NAMES, default="logo", tooltip="The example to output."
                )
            ],
            outputs=[
                io.Image.Output(display_name="draft", tooltip="The image with the wrong detail."),
                io.Image.Output(
                    display_name="reference", tooltip="The image that shows the correct detail."
                ),
                io.Mask.Output(display_name="mask", tooltip="Mask of the detail in the draft."),
                io.Mask.Output(
                    display_name="reference_mask", tooltip="Mask of the detail in the reference."
                ),
                io.Image.Output(
                    display_name="target",
                    tooltip="The draft as it should look after the repair, for comparison.",
                ),
            ],
        )

    @classmethod
    def execute(cls, case: str) -> io.NodeOutput:
        c = example_case(case)
        return io.NodeOutput(
            from_core(to_float(c.draft)),
            from_core(to_float(c.reference)),
            mask_from_core(c.mask),
            mask_from_core(c.reference_mask),
            from_core(to_float(c.target)),
        )
