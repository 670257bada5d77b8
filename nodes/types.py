"""The pack's own socket types and the values they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..refiner_core.images.geometry import Blend
from ..refiner_core.recipes.recipe import ConditioningKind, Recipe
from ..refiner_core.repair.region import PreparedRegion

CATEGORY = "OmniRefiner"  # what most people need
STEPS = f"{CATEGORY}/step by step"
SCORING = f"{CATEGORY}/scoring"
TRAINING = f"{CATEGORY}/training"


@dataclass
class Refiner:
    """REFINER: ComfyUI's own model objects and the recipe to run them by."""

    recipe: Recipe
    """How to run them."""
    model: Any
    """A ModelPatcher."""
    vae: Any
    """Anything with `encode` and `decode`."""
    clip: Any = None
    """Text encoders, or None."""
    conditioning: Any = None
    """A prompt that is encoded already, or None."""
    name: str = ""
    """For the report."""
    probed: bool = False
    """Whether the model is known to follow the reference latents method."""
    detail: Any = None
    """Detail encoder of recipes that need one, or None."""
    prompts: dict[tuple[ConditioningKind, str], Any] = field(default_factory=dict)
    """Encoded prompts by kind and text; a refiner with another clip or LoRA is another refiner."""


@dataclass(frozen=True)
class RefineCrop:
    """REFINE_CROP: what conditioning and stitching need to know about a crop."""

    image: Tensor
    """The whole draft, 1 3 H W."""
    prepared: PreparedRegion
    """The region in it, as the model sees it."""
    source: Tensor
    """The draft as it was connected, IMAGE, whose alpha the result gets."""
    notes: tuple[str, ...] = ()
    """What was changed while the images and masks were read."""


RefinerSocket = io.Custom("REFINER")
RefineCropSocket = io.Custom("REFINE_CROP")
# The recipe's way of blending, which the core takes None for, or one of the core's.
BLEND: dict[str, Blend | None] = {
    "recipe": None,
    "feather": "feather",
    "multiband": "multiband",
    "membrane": "membrane",
}
SegsSocket = io.Custom("SEGS")  # detections of ComfyUI Impact Pack and others
ScorerSocket = io.Custom("SCORER")  # carries a `refiner_core.scoring.scorer.Scorer`


def boxes_input(tooltip: str) -> io.String.Input:
    """The widget `boxes`, drawn by the user and stored as text (see `refiner_core.images.boxes`).

    Inputs that were added later stand behind it, so that older workflows keep their values.
    """
    return io.String.Input(
        "boxes",
        default="",
        optional=True,
        tooltip=f"{tooltip} The value is JSON text with coordinates as fractions of the image size.",
        extra_dict={"widgetType": "OMNIREFINER_REGIONS"},
    )


def blend_input(*, advanced: bool = False) -> Any:
    """The widget for how a repaired crop is blended in."""
    return io.Combo.Input(
        "blend",
        options=list(BLEND),
        default="recipe",
        tooltip="How the repaired crop is blended into the draft: with a single soft edge (feather), "
        "with a wider edge for coarse tones than for fine detail (multiband), or with the difference "
        "along the edge continued smoothly inside first (membrane). By default the recipe decides: "
        "feather for nano, membrane for all others.",
        advanced=advanced,
    )
