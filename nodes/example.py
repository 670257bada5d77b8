"""Example Case: the demo's pictures, so that a template runs with nothing to download."""

from __future__ import annotations

from comfy_api.latest import io

from ..refiner_core.commands.demo import CASES, load_case
from ..refiner_core.images import to_float
from .layout import from_core, mask_from_core
from .types import CATEGORY


class ExampleCase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = ["logo", "pattern", "word"]
        return io.Schema(
            node_id="OmniRefiner_ExampleCase",
            display_name="Example Case",
            category=CATEGORY,
            description="A broken draft, its reference and both masks, from the pack itself. "
            "Replace it by Load Image nodes for your own pictures.",
            search_aliases=["omnirefiner demo", "sample images"],
            inputs=[
                io.Combo.Input("case", options=names, default="logo", tooltip="Which example.")
            ],
            outputs=[
                io.Image.Output(display_name="draft"),
                io.Image.Output(display_name="reference"),
                io.Mask.Output(display_name="mask"),
                io.Mask.Output(display_name="reference_mask"),
                io.Image.Output(display_name="target", tooltip="What it should look like."),
            ],
        )

    @classmethod
    def execute(cls, case: str) -> io.NodeOutput:
        c = load_case(CASES / case)
        return io.NodeOutput(
            from_core(to_float(c.draft)), from_core(to_float(c.reference)), mask_from_core(c.mask),
            mask_from_core(c.reference_mask), from_core(to_float(c.target)),
        )  # fmt: skip
