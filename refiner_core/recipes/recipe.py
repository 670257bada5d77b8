"""Recipes: everything about a trained refiner that is not a weight. New recipes are data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from .. import flow
from ..images.geometry import (
    KONTEXT_BUCKETS,
    NANO_BUCKETS,
    QWEN_BUCKETS,
    Blend,
    Buckets,
    Extent,
)

# The architecture of the transformer.
Family = Literal["flux", "qwen-edit", "flux2"]
# Where the clean tokens stand: one index each; the same with the clean tokens' own time 0 (Qwen
# 2511); or all at index 1 beside or below one another (stock Kontext).
Layout = Literal["index", "index_timestep_zero", "offset"]
# Who attends to whom: every token to every token (OmniRefiner), or the clean tokens only to clean
# tokens. One way, they are modulated by their own time, 0, so that their keys and values are the
# same at every step and are computed once.
Attention = Literal["both ways", "one way"]
# How the prompt is encoded: as text alone; as text whose trigger words a detail encoder fills from
# the pictures; as text together with the pictures.
ConditioningKind = Literal["text", "detail", "vision"]


@dataclass(frozen=True)
class Distilled:
    """`steps` and `cfg` of a recipe whose accelerator LoRA (Lightning, Turbo, Hyper) is loaded."""

    steps: int
    cfg: float


@dataclass(frozen=True)
class Recipe:
    """How one refiner was trained and therefore has to be run."""

    name: str
    """Its identifier in options, reports and metadata."""
    title: str
    """What people read in its place."""
    order: tuple[str, ...]
    """Roles of the clean pictures that follow the noisy one: "draft", "reference", "mask" (the
    region in black and white)."""
    indices: tuple[int, ...]
    """Position index of each role, rising by one."""
    prompt: str
    """Template of the prompt, with `{subject}`."""
    guidance: float | None
    """Value of the guidance embedding, 0 to 100; None: the weights have none."""
    steps: int
    """Sampling steps, 1 to 1000."""
    shift: float | None
    """Fixed mu of the noise schedule; None: Kontext's or FLUX.2's, which follows the resolution."""
    text_tokens: int
    """Length in tokens that T5's text is padded to."""
    buckets: Buckets
    """Sizes that the model works at, in pixels."""
    context: float
    """Side of the crop over side of the region, 1 or more."""
    align: bool
    """Whether the reference is first brought into the draft's pose and light."""
    latent_factor: int
    """Pixels of the picture for each pixel of the latent."""
    correct_drift_and_color: bool = True
    """Whether shift, zoom and colour cast are measured outside the region and taken out. Off for
    models whose output there is too poor to measure on."""
    blend: Blend = "membrane"
    """How a repaired crop is blended into the draft unless another way is chosen."""
    reference_blend: float = 0.0
    """How much of the aligned reference is laid over the draft inside the region before the model
    sees it, 0 to 1."""
    native_detail: bool = False
    """Whether the aligned reference is laid over the draft at the draft's own resolution where the
    crop is shrunk to less than half, and the model only changes that. Needs `align`."""
    tile: int = 0
    """Side in px of the overlapping tiles in which the model works at the draft's own resolution;
    they share one process. 0: it works on one crop, scaled to a size of `buckets`. Needs
    `native_detail`; the draft's inside is shown with the reference's detail in the draft's tone."""
    codec_residual: float = 0.0
    """How much of what the codec loses of the aligned reference is added to the result, 0 to 1."""
    family: Family = "flux"
    """Architecture of the transformer."""
    layout: Layout = "index"
    """Positions of the clean tokens."""
    attention: Attention = "both ways"
    """Whether the clean tokens also attend to the noisy ones and the text."""
    conditioning: ConditioningKind = "text"
    """How the prompt is encoded."""
    references: tuple[int, int] = (1, 3)
    """Least and greatest number of references, 0 to 3."""
    shared_bucket: bool = False
    """Whether draft and reference are cropped to one common bucket."""
    cfg: float = 1.0
    """Scale of classifier-free guidance; above 1 the model runs a second time on `negative`."""
    negative: str = " "
    """Negative prompt for classifier-free guidance."""
    distilled: Distilled | None = None
    """Steps and CFG under an accelerator LoRA; None: it takes none."""
    triggers: tuple[tuple[str, str], ...] = ()
    """(role, word): the words of the prompt that a detail encoder fills from that role's picture."""
    prompt_strip: tuple[str, ...] = ()
    """Regular expressions; what they match is removed from prompts."""
    note: str = ""
    """What to know before choosing it."""

    def sigmas(self, target: Extent, steps: int | None = None) -> Tensor:
        """The noise levels for a crop of `target` pixels."""
        count = self.steps if steps is None else steps
        mu = self.shift
        if mu is None:
            # FLUX.2's latents are packed already: one pixel of them is a token.
            patch = self.latent_factor * (1 if self.family == "flux2" else 2)
            tokens = (target.width // patch) * (target.height // patch)
            two = self.family == "flux2"
            mu = flow.flux2_shift(tokens, count) if two else flow.resolution_shift(tokens)
        return flow.sigmas(count, mu)

    def text(self, prompt: str | None, subject: str | None = None) -> str:
        """The prompt to encode: the user's own, else the template."""
        text = prompt if prompt else self.prompt.format(subject=subject or "detail")
        for pattern in self.prompt_strip:
            text = re.sub(pattern, "", text)
        return re.sub(r" {2,}", " ", text).strip() if self.prompt_strip else text

    def resolve_guidance(self, guidance: float | None) -> tuple[float | None, float]:
        """Guidance embedding and CFG scale: `guidance` sets the one that the weights have.

        A recipe without guidance embedding takes it as CFG if it uses CFG at all.
        """
        if guidance is None:
            return self.guidance, self.cfg
        if self.guidance is not None:
            return guidance, self.cfg
        return None, max(1.0, guidance) if self.family == "qwen-edit" else self.cfg

    def accelerated(self, steps: int | None = None) -> Recipe:
        """This recipe under its accelerator LoRA, which was distilled for `steps`.

        Raises:
            ValueError: it has none.
        """
        if self.distilled is None:
            raise ValueError(f"The recipe {self.name} takes no accelerator LoRA; choose none.")
        return replace(self, steps=steps or self.distilled.steps, cfg=self.distilled.cfg)

    def check_references(self, count: int) -> None:
        """Refuse a number of references that it was not trained for.

        Raises:
            ValueError: names the number, what it takes, and the fix.
        """
        least, most = self.references
        if not least <= count <= most:
            takes = str(least) if least == most else f"{least} to {most}"
            found = f"{count} references were given" if count else "There is no reference"
            fix = (
                "Add an image that shows the correct detail."
                if count < least
                else "Leave out the others."
            )
            raise ValueError(f"{found}, but the recipe {self.name} takes {takes}. {fix}")


OMNIREFINER = Recipe(
    name="omnirefiner",
    title="OmniRefiner (FLUX.1-Kontext + refiner LoRA)",
    order=("draft", "reference"),
    indices=(1, 2),
    prompt="Fix the {subject} in the first image according to the second image.",
    guidance=2.5,
    steps=28,
    shift=None,
    text_tokens=512,
    buckets=KONTEXT_BUCKETS,
    context=1.5,
    align=False,
    latent_factor=8,
    distilled=Distilled(steps=8, cfg=1.0),
)

KONTEXT = replace(
    OMNIREFINER,
    name="kontext",
    title="FLUX.1-Kontext as it is (not trained for two images)",
    prompt="Replace the {subject} in the first image with the {subject} of the second image.",
    layout="offset",
    note="Not trained for two images: a baseline. The reference is laid beside the draft.",
)

# Ouyang et al., ImageCritic (arXiv 2511.20614): reference first, trigger words, detail encoder.
IMAGECRITIC = replace(
    OMNIREFINER,
    name="imagecritic",
    title="ImageCritic (FLUX.1-Kontext + its LoRA and detail encoder)",
    order=("reference", "draft"),
    prompt="use the {subject} in IMG1 as a reference to refine, replace, enhance the {subject} in IMG2",
    guidance=3.5,
    conditioning="detail",
    references=(1, 1),
    shared_bucket=True,
    triggers=(("reference", "IMG1"), ("draft", "IMG2")),
    note="Licence of code and weights: CC BY-NC 4.0.",
)

# RefineAnything (arXiv 2604.06870) on Qwen-Image-Edit-2511; its schedule has the fixed shift ln 3.
REFINEANYTHING = Recipe(
    name="refineanything",
    title="RefineAnything (Qwen-Image-Edit-2511 + its LoRA)",
    order=("draft", "reference", "mask"),
    indices=(1, 2, 3),
    prompt="Refine the {subject}.",
    guidance=None,
    steps=28,
    shift=math.log(3),
    text_tokens=1,
    buckets=QWEN_BUCKETS,
    context=1.5,
    align=False,
    latent_factor=8,
    family="qwen-edit",
    layout="index_timestep_zero",
    conditioning="vision",
    references=(0, 1),
    cfg=4.0,
    distilled=Distilled(steps=8, cfg=1.0),
    prompt_strip=(r"<SPECIAL_REGION>", r"\[\s*\d+(?:\s*,\s*\d+){3}\s*\]"),
    note="Works without a reference too. A Lightning LoRA sets 8 (or 4) steps and CFG 1.",
)

FLUX2_KLEIN = replace(
    OMNIREFINER,
    name="flux2-klein",
    title="FLUX.2 [klein] as it is (several reference images, 4 steps)",
    prompt="Replace the {subject} in image 1 with the {subject} of image 2. Keep everything else.",
    guidance=None,
    steps=4,
    latent_factor=16,
    family="flux2",
    distilled=None,
    note="Takes several references by training, but was not trained for refining.",
)

FLUX2_DEV = replace(
    FLUX2_KLEIN,
    name="flux2-dev",
    title="FLUX.2 [dev] as it is (several reference images)",
    guidance=4.0,
    steps=20,
)

NANO = Recipe(
    name="nano",
    title="nano (embedded, nothing to download)",
    order=("draft", "reference"),
    indices=(1, 2),
    prompt="",
    guidance=None,
    steps=4,
    shift=4.0,
    text_tokens=1,
    buckets=NANO_BUCKETS,
    context=1.5,
    align=True,
    latent_factor=4,
    correct_drift_and_color=False,
    blend="feather",
    reference_blend=0.97,
    codec_residual=1.0,
    native_detail=True,
)

# The same architecture, trained on tiles; which of a nano's weights are is written in their file.
NANO_TILES = replace(
    NANO,
    name="nano-tiles",
    title="nano on tiles (a nano trained with train nano --tiles)",
    steps=2,
    attention="one way",
    reference_blend=0.0,
    tile=64,
)

RECIPES = {
    r.name: r
    for r in (
        OMNIREFINER,
        IMAGECRITIC,
        REFINEANYTHING,
        KONTEXT,
        FLUX2_KLEIN,
        FLUX2_DEV,
        NANO,
    )
}


def lightning_steps(name: str) -> int | None:
    """The steps that an accelerator LoRA's file name says it was distilled for, else None."""
    match = re.search(r"(\d+)[-_ ]?steps?", name.lower())
    return int(match[1]) if match else None


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]
