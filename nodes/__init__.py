"""The nodes, and the only code of the pack that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .compare import Compare
from .example import ExampleCase
from .folder import LoadFolder
from .loaders import LoadRefiner, RefinerFromModel, RefinerParts
from .masking import MaskBuilder
from .pick import PickBest
from .refine import ReferenceRefine
from .routes import add_routes
from .scoring import DreamSimScore, LoadScorer
from .steps import CropForRefine, RefineConditioning, Stitch
from .training import TrainRefiner


class OmniRefinerExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadRefiner,
            RefinerFromModel,
            RefinerParts,
            ReferenceRefine,
            PickBest,
            MaskBuilder,
            CropForRefine,
            RefineConditioning,
            Stitch,
            Compare,
            ExampleCase,
            LoadFolder,
            DreamSimScore,
            LoadScorer,
            TrainRefiner,
        ]
