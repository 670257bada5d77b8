"""The nodes. The only code of the pack that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .example import ExampleCase
from .loaders import LoadRefiner, RefinerFromModel, RefinerParts
from .masking import MaskBuilder
from .refine import ReferenceRefine
from .steps import CropForRefine, RefineConditioning, Stitch


class OmniRefinerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadRefiner,
            RefinerFromModel,
            RefinerParts,
            ReferenceRefine,
            MaskBuilder,
            CropForRefine,
            RefineConditioning,
            Stitch,
            ExampleCase,
        ]
