"""The pack's own socket types and the values they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.geometry import CropPlan
from ..refiner_core.images.masks import Region
from ..refiner_core.recipes.recipe import Recipe

CATEGORY = "OmniRefiner"  # what most people need
STEPS = f"{CATEGORY}/step by step"
SCORING = f"{CATEGORY}/scoring"
TRAINING = f"{CATEGORY}/training"


@dataclass
class Refiner:
    """REFINER: ComfyUI's own model objects and the recipe to run them by.

    `model` a ModelPatcher, `vae` anything with encode and decode, `clip` or None, `conditioning`
    ready-made text conditioning or None, `name` for the report. `probed` remembers that the model
    was seen to obey the reference method; `detail` the detail encoder of recipes that need one.
    """

    recipe: Recipe
    model: Any
    vae: Any
    clip: Any = None
    conditioning: Any = None
    name: str = ""
    probed: bool = field(default=False)
    detail: Any = None


@dataclass(frozen=True)
class RefineCrop:
    """REFINE_CROP: everything that stitching needs to know about a crop.

    `image` the whole draft (core layout), `seen` its crop at the model's size, `view` the reference's,
    `region`, `plan`, `remainder` the recipe's, 0 where the reference is not aligned.
    """

    image: Tensor
    seen: Tensor
    view: Tensor
    region: Region
    plan: CropPlan
    remainder: float
    report: dict[str, Any]


RefinerSocket = io.Custom("REFINER")
RefineCropSocket = io.Custom("REFINE_CROP")
ScorerSocket = io.Custom("SCORER")  # carries a `refiner_core.scoring.scorer.Scorer`


def boxes_input(tooltip: str) -> io.String.Input:
    """The widget `boxes`, drawn by the user and stored as text (see `refiner_core.images.boxes`).

    It is always the last input of a node, so that older workflows keep their values.
    """
    return io.String.Input(
        "boxes",
        default="",
        optional=True,
        tooltip=f"{tooltip} The value is JSON text with coordinates as fractions of the image size.",
        extra_dict={"widgetType": "OMNIREFINER_REGIONS"},
    )
