"""DreamSim Score and Load Scorer."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..refiner_core.scoring.comparison import SIZE_POLICIES, SizePolicy, compare
from ..refiner_core.scoring.dreamsim import DreamSim
from ..refiner_core.scoring.dreamsim_files import load_dreamsim
from ..refiner_core.scoring.dreamsim_release import release_url
from ..refiner_core.scoring.dreamsim_scorer import DreamSimScorer
from ..refiner_core.scoring.heatmap import draw_heat
from ..refiner_core.scoring.scorer import MapScorer
from ..refiner_core.scoring.structural import StructuralScorer
from ..refiner_core.scoring.text import TextScorer
from .layout import from_core, opaque_to_core, usable_mask_to_core
from .loaded_files import with_alpha
from .pictures import show_text
from .types import SCORING, ScorerSocket

FOLDER = "dreamsim"
NO_FILE = "DreamSim (no file in models/dreamsim yet)"
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
_PICTURE_BYTES = 25 << 20  # activations per image in float32, measured for the ensemble


def register_folder() -> None:
    """Register models/dreamsim in addition to the folders in extra_model_paths.yaml."""
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, own)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors", ".sft"})


register_folder()


class ManagedDreamSim(DreamSimScorer):
    """DreamSim managed by ComfyUI: loaded to the device to score, unloaded when memory is needed."""

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
        f"The DreamSim file {name!r} was not found in "
        f"{' or '.join(folder_paths.get_folder_paths(FOLDER))}. Choose {StructuralScorer.name!r}, "
        f"which needs no file, or download {release_url('ensemble')} and the weights of DINO, run "
        "`omnirefiner convert dreamsim dreamsim_ensemble_checkpoint.zip "
        "dreamsim_ensemble.safetensors --dtype fp16 --backbone dino_vitbase16_pretrain.pth`, and move "
        "the converted file to that folder. The help page of DreamSim Score explains every step."
    )


def _choices() -> list[str]:
    names = [StructuralScorer.name, *(folder_paths.get_filename_list(FOLDER) or [NO_FILE])]
    return [*names, TextScorer.name] if find_spec("rapidocr") else names


def _patcher(path: str, dtype: torch.dtype) -> Any:
    """The model of the file, managed by ComfyUI and shared with nodes that have loaded it."""
    for loaded in mm.loaded_models():
        if isinstance(loaded.model, DreamSim) and loaded.model.source == (path, dtype):
            return loaded.clone()
    model = load_dreamsim(path, mm.unet_offload_device(), dtype)
    # Looked up here: ComfyUI replaces the class when it starts.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, mm.get_torch_device(), mm.unet_offload_device())


def load_scorer(name: str, precision: str) -> MapScorer:
    """The scorer that a combo box names.

    Raises:
        ValueError: the DreamSim file does not exist. Says how to get it.
        ModuleNotFoundError: the text scorer is chosen and RapidOCR is not installed.
    """
    if name == StructuralScorer.name:
        return StructuralScorer()
    if name == TextScorer.name:
        return TextScorer()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(_missing(name))
    return ManagedDreamSim(_patcher(path, _PRECISIONS[precision]))


def _scorer_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "metric",
            options=_choices(),
            default=StructuralScorer.name,
            tooltip="The metric to use: a DreamSim file in models/dreamsim, or MS-SSIM + edges, which "
            "needs no weights.",
        ),
        io.Combo.Input(
            "precision",
            options=list(_PRECISIONS),
            default="float32",
            advanced=True,
            tooltip="The precision of DreamSim's weights. float16 needs half the memory and changes "
            "the distances by about 0.001.",
        ),
    ]


def _known(metric: str | None) -> bool | str:
    """Whether a metric is there, or what is missing; None is one that another node will name."""
    if metric is None:
        return True
    without_file = (StructuralScorer.name, TextScorer.name)
    found = metric in without_file or folder_paths.get_full_path(FOLDER, metric)
    return True if found else _missing(metric)


class LoadScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_LoadScorer",
            display_name="Load Scorer",
            category=SCORING,
            description="Loads a scorer that measures how different two images are: DreamSim, or "
            "MS-SSIM + edges, which needs no weights. Use it with DreamSim Score, Pick Best "
            "(OmniRefiner) and the "
            "candidates of Reference Refine.",
            search_aliases=["load dreamsim", "perceptual metric"],
            inputs=_scorer_inputs(),
            outputs=[
                ScorerSocket.Output(
                    display_name="scorer",
                    tooltip="The scorer, for DreamSim Score, Pick Best (OmniRefiner) and "
                    "Reference Refine.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, metric: str | None) -> bool | str:
        return _known(metric)

    @classmethod
    def execute(cls, metric: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(load_scorer(metric, precision))


def _score_inputs() -> list[Any]:
    return [
        io.Image.Input("image_a", tooltip="An image or a batch of images."),
        io.Image.Input(
            "image_b",
            tooltip="The image to compare with: one for all images, or as many as there are in "
            "image_a.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Mask of the area to compare, in the size of image_a. If not connected, the whole "
            "images are compared.",
        ),
        *_scorer_inputs(),
        io.Combo.Input(
            "sizes",
            options=list(SIZE_POLICIES),
            default="refuse",
            tooltip="What to do when the images differ in size. refuse stops with an error. stretch "
            "resizes image_b to the size of image_a (for DreamSim, whole images are resized to its "
            "square input). crop scales image_b to cover image_a and cuts off what is left over.",
        ),
        io.Float.Input(
            "heat_scale",
            default=0.0,
            min=0.0,
            max=2.0,
            step=0.01,
            advanced=True,
            tooltip="The local distance that is drawn in the hottest color. 0 uses the largest "
            "distance of each image.",
        ),
        ScorerSocket.Input(
            "scorer",
            optional=True,
            tooltip="The scorer from Load Scorer. If connected, it is used instead of metric, and its "
            "weights stay loaded between runs.",
        ),
        io.String.Input(
            "name",
            default="",
            optional=True,
            force_input=True,
            tooltip="Text to put in front of the result, for example the file name from Load "
            "Folder (OmniRefiner).",
        ),
    ]


class DreamSimScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_DreamSimScore",
            display_name="DreamSim Score",
            category=SCORING,
            description="Measures how different two images are and where they differ. 0 means that "
            "they are identical. Batches are compared pair by pair, and a single image is compared "
            "with every image of a batch.",
            search_aliases=[
                "dreamsim",
                "image similarity",
                "compare images",
                "perceptual distance",
            ],
            is_output_node=True,
            inputs=_score_inputs(),
            outputs=[
                io.Float.Output(
                    display_name="distance",
                    tooltip="The mean distance of all pairs. 0 means identical.",
                ),
                io.Float.Output(display_name="similarity", tooltip="1 minus the distance."),
                io.Image.Output(
                    display_name="heatmap",
                    tooltip="Heatmap of the differences, drawn over image_a.",
                ),
                io.String.Output(display_name="text", tooltip="The distances as text."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, metric: str | None) -> bool | str:
        return _known(metric)

    @classmethod
    def execute(
        cls,
        image_a: Tensor,
        image_b: Tensor,
        metric: str,
        precision: str,
        sizes: SizePolicy,
        heat_scale: float,
        mask: Tensor | None = None,
        scorer: MapScorer | None = None,
        name: str = "",
    ) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(max(len(image_a), len(image_b)))

        def progress(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            mm.throw_exception_if_processing_interrupted()

        a = opaque_to_core(with_alpha(cls, "image_a", image_a))
        b = opaque_to_core(with_alpha(cls, "image_b", image_b))
        area, notes = usable_mask_to_core(mask, a)
        show_text(cls, "\n".join(notes))
        result = compare(
            scorer or load_scorer(metric, precision),
            a,
            b,
            area,
            sizes=sizes,
            heatmap=True,
            progress=progress,
        )
        assert result.heat is not None
        drawn = from_core(draw_heat(a, result.heat, heat_scale))
        text = " · ".join(part for part in (name, result.summary()) if part)
        shown = ui.PreviewImage(drawn[:4], cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(result.distance, result.similarity, drawn, text, ui=shown)
