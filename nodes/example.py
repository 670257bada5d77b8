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
    """One of `NAMES`; the last is two cases side by side: two details in one draft."""
    if name != TWO:
        return load_case(CASES / name)
    left, right = (load_case(CASES / n) for n in ("logo", "pattern"))
    joined = (
        _beside(getattr(left, part), getattr(right, part))
        for part in ("draft", "reference", "target", "mask", "reference_mask")
    )
    return Case(TWO, *joined)


def _beside(left: Tensor, right: Tensor) -> Tensor:
    """Two pictures side by side; a lower one is continued by black."""
    height = max(left.shape[-2], right.shape[-2])
    return torch.cat([F.pad(t, (0, 0, 0, height - t.shape[-2])) for t in (left, right)], -1)


class ExampleCase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_ExampleCase",
            display_name="Example Case (OmniRefiner)",
            category=CATEGORY,
            description="A broken draft, its reference and both masks, from the pack itself. "
            "Replace it by Load Image nodes for your own pictures.",
            search_aliases=["omnirefiner demo", "sample images"],
            inputs=[
                io.Combo.Input("case", options=NAMES, default="logo", tooltip="Which example.")
            ],
            outputs=[
                io.Image.Output(display_name="draft", tooltip="The picture with the wrong detail."),
                io.Image.Output(display_name="reference", tooltip="The true detail."),
                io.Mask.Output(display_name="mask", tooltip="Where it is in the draft."),
                io.Mask.Output(display_name="reference_mask", tooltip="Where in the reference."),
                io.Image.Output(display_name="target", tooltip="What it should look like."),
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
