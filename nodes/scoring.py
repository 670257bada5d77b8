"""DreamSim Score and Load Scorer."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..refiner_core.scoring.comparison import SIZE_POLICIES, SizePolicy, compare, draw_heat
from ..refiner_core.scoring.dreamsim import DreamSim, DreamSimScorer
from ..refiner_core.scoring.dreamsim_files import load_dreamsim
from ..refiner_core.scoring.dreamsim_release import release_url
from ..refiner_core.scoring.interface import MapScorer
from ..refiner_core.scoring.structural import StructuralScorer
from .layout import from_core, mask_to_core, to_core
from .types import SCORING, ScorerSocket

FOLDER = "dreamsim"
NO_FILE = "DreamSim (no file in models/dreamsim yet)"
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
_PICTURE_BYTES = 25 << 20  # activations a picture in float32, measured for the ensemble


def register_folder() -> None:
    """Make models/dreamsim known, beside any that extra_model_paths.yaml names."""
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, own)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors", ".sft"})


register_folder()


class ManagedDreamSim(DreamSimScorer):
    """DreamSim whose weights ComfyUI moves: to the device when it scores, away when others need room."""

    def __init__(self, patcher: Any) -> None:
        super().__init__(patcher.model)
        self.patcher = patcher

    def _load(self) -> None:
        # Plain torch modules cannot be loaded in part.
        mm.load_models_gpu(
            [self.patcher], memory_required=self.chunk * _PICTURE_BYTES, force_full_load=True
        )

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        self._load()
        return super().distance(a, b, mask)

    def heatmap(self, a: Tensor, b: Tensor) -> Tensor:
        self._load()
        return super().heatmap(a, b)


def _missing(name: str) -> str:
    return (
        f"There is no DreamSim file {name!r} in {' or '.join(folder_paths.get_folder_paths(FOLDER))}. "
        f"Download {release_url('ensemble')} and DINO's weights (the converter names them), run "
        "`omnirefiner convert dreamsim dreamsim_ensemble_checkpoint.zip "
        "dreamsim_ensemble.safetensors --dtype fp16 --backbone dino_vitbase16_pretrain.pth`, and put "
        f"the result there. Or choose {StructuralScorer.name!r}, which needs no file."
    )


def _choices() -> list[str]:
    return [StructuralScorer.name, *(folder_paths.get_filename_list(FOLDER) or [NO_FILE])]


def _patcher(path: str, dtype: torch.dtype) -> Any:
    """The file's network under model management, shared with nodes that have it loaded."""
    for loaded in mm.loaded_models():
        if isinstance(loaded.model, DreamSim) and loaded.model.source == (path, dtype):
            return loaded.clone()
    model = load_dreamsim(path, mm.unet_offload_device(), dtype)
    # Looked up here: ComfyUI replaces the class when it starts.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, mm.get_torch_device(), mm.unet_offload_device())


def load_scorer(name: str, precision: str) -> MapScorer:
    """The scorer a combo names.

    Raises:
        ValueError: a DreamSim file that is not there; says how to get it.
    """
    if name == StructuralScorer.name:
        return StructuralScorer()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(_missing(name))
    return ManagedDreamSim(_patcher(path, _PRECISIONS[precision]))


def _scorer_inputs() -> list[Any]:
    return [
        io.Combo.Input("metric", options=_choices(), default=StructuralScorer.name,
            tooltip="A DreamSim file from models/dreamsim, or the score that needs no weights."),
        io.Combo.Input("precision", options=list(_PRECISIONS), default="float32", advanced=True,
            tooltip="float16 halves DreamSim's memory and moves its numbers by about 0.001."),
    ]  # fmt: skip


def _known(metric: str) -> bool | str:
    found = metric == StructuralScorer.name or folder_paths.get_full_path(FOLDER, metric)
    return True if found else _missing(metric)


class LoadScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadScorer",
            display_name="Load Scorer",
            category=SCORING,
            description="What compares pictures: DreamSim from models/dreamsim, or structure and "
            "edges, which need no weights. For DreamSim Score and for choosing among candidates.",
            search_aliases=["load dreamsim", "perceptual metric"],
            inputs=_scorer_inputs(),
            outputs=[ScorerSocket.Output(display_name="scorer")],
        )

    @classmethod
    def validate_inputs(cls, metric: str) -> bool | str:
        return _known(metric)

    @classmethod
    def execute(cls, metric: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(load_scorer(metric, precision))


class DreamSimScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_DreamSimScore",
            display_name="DreamSim Score",
            category=SCORING,
            description="How far apart pictures are, and where; 0 = the same. Batches are compared "
            "pair by pair, or one with all.",
            search_aliases=["dreamsim", "image similarity", "compare images", "perceptual distance"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image_a", tooltip="A picture, or a batch."),
                io.Image.Input("image_b", tooltip="What it is compared with: one, or as many."),
                io.Mask.Input("mask", optional=True,
                    tooltip="Only this counts, in image_a's frame. Without it the whole pictures."),
                *_scorer_inputs(),
                io.Combo.Input("sizes", options=list(SIZE_POLICIES), default="refuse",
                    tooltip="If the sizes differ. refuse: stop with an error. stretch: image_b is "
                    "resized to image_a's size (whole pictures for DreamSim: each squeezed to its "
                    "square, as DreamSim does anyway). crop: image_b is scaled to cover image_a and "
                    "cut centrally."),
                io.Float.Input("heat_scale", default=0.0, min=0.0, max=2.0, step=0.01, advanced=True,
                    tooltip="Local distance drawn hottest, 0..2; 0 = each picture's own largest."),
                ScorerSocket.Input("scorer", optional=True,
                    tooltip="From Load Scorer, instead of metric: keeps the weights between runs."),
                io.String.Input("name", default="", optional=True, force_input=True,
                    tooltip="Written in front of the text, such as Load Folder's name."),
            ],
            outputs=[
                io.Float.Output(display_name="distance", tooltip="The mean over the pairs, 0 = same."),
                io.Float.Output(display_name="similarity", tooltip="1 - distance."),
                io.Image.Output(display_name="heatmap", tooltip="Where they differ, over image_a."),
                io.String.Output(display_name="text", tooltip="The numbers as a line."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, metric: str) -> bool | str:
        return _known(metric)

    @classmethod
    def execute(
        cls, image_a: Tensor, image_b: Tensor, metric: str, precision: str, sizes: SizePolicy,
        heat_scale: float, mask: Tensor | None = None, scorer: MapScorer | None = None,
        name: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        bar = comfy.utils.ProgressBar(max(len(image_a), len(image_b)))

        def progress(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            mm.throw_exception_if_processing_interrupted()

        a, b = to_core(image_a).cpu(), to_core(image_b).cpu()
        result = compare(
            scorer or load_scorer(metric, precision), a, b, mask_to_core(mask),
            sizes=sizes, heatmap=True, progress=progress,
        )  # fmt: skip
        assert result.heat is not None
        drawn = from_core(draw_heat(a, result.heat, heat_scale))
        text = " · ".join(part for part in (name, result.summary()) if part)
        shown = ui.PreviewImage(drawn[:4], cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(result.distance, 1 - result.distance, drawn, text, ui=shown)
