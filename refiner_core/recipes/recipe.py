"""Recipes: everything about a trained refiner that is not a weight. New recipes are data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from .. import flow
from ..images.geometry import KONTEXT_BUCKETS, NANO_BUCKETS, QWEN_BUCKETS, Buckets, Extent

# The architecture of the transformer.
Family = Literal["flux", "qwen-edit", "flux2"]
# Where the clean tokens stand: one index each; the same with the clean tokens' own time 0 (Qwen
# 2511); or all at index 1 beside or below one another (stock Kontext).
Layout = Literal["index", "index_timestep_zero", "offset"]
# Who attends to whom: every token to every token (OmniRefiner), or the clean tokens only to clean
# tokens. One way, they are modulated by their own time, 0, so that their keys and values are the
# same at every step and are computed once.
Attention = Literal["both ways", "one way"]
# What goes with the tokens: text; text whose trigger words a detail encoder fills from the
# pictures; text encoded together with the pictures.
Sight = Literal["text", "detail", "vision"]


@dataclass(frozen=True)
class Fast:
    """`steps` and `cfg` of a recipe whose accelerator LoRA (Lightning, Turbo, Hyper) is loaded."""

    steps: int
    cfg: float


@dataclass(frozen=True)
class Recipe:
    """How one refiner was trained and therefore has to be run.

    `name` and `title` for machines and people; `order` of the clean latents after the noisy one
    and their position `indices`; `prompt` template with `{subject}`; `guidance` value of the
    guidance embedding (None: the weights have none); `steps` of the sampler; `shift` fixed mu of
    the schedule, or None for Kontext's, which grows with the resolution; `text_tokens` the T5
    padding; `buckets` and `context` of the crops; `align` whether the reference is first brought
    into the draft's pose and light; `latent_factor` pixels per latent pixel; `settles` whether its
    output outside the region is good enough to measure drift and colour cast on; `prefill` how much
    of the aligned reference replaces the draft inside the region before the model sees it (0..1);
    `remainder` how much of what the codec loses of the aligned reference is given back to the
    result (0..1).

    `family`, `layout` and `sight` say what model it is and how it is told of the pictures; `order`
    may hold "mask", the region as a black and white picture. `references` the least and the most it
    takes. `one_size` plans draft and reference at one common bucket. `cfg` above 1 runs the model a
    second time on the `negative` prompt. `fast` replaces steps and cfg under an accelerator LoRA.
    `attention` whether the clean tokens also attend to the noisy ones and the text.
    `triggers` the words (role, word) that a detail encoder fills. `dropped` patterns that are taken
    out of prompts. `note` what a user should know before choosing it.
    """

    name: str
    title: str
    order: tuple[str, ...]
    indices: tuple[int, ...]
    prompt: str
    guidance: float | None
    steps: int
    shift: float | None
    text_tokens: int
    buckets: Buckets
    context: float
    align: bool
    latent_factor: int
    settles: bool = True
    prefill: float = 0.0
    remainder: float = 0.0
    family: Family = "flux"
    layout: Layout = "index"
    attention: Attention = "both ways"
    sight: Sight = "text"
    references: tuple[int, int] = (1, 3)
    one_size: bool = False
    cfg: float = 1.0
    negative: str = " "
    fast: Fast | None = None
    triggers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    note: str = ""

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
        for pattern in self.dropped:
            text = re.sub(pattern, "", text)
        return re.sub(r" {2,}", " ", text).strip() if self.dropped else text

    def guided(self, asked: float | None) -> tuple[float | None, float]:
        """Guidance embedding and CFG: `asked` sets the one that the weights have.

        A recipe without guidance embedding takes it as CFG if it uses CFG at all.
        """
        if asked is None:
            return self.guidance, self.cfg
        if self.guidance is not None:
            return asked, self.cfg
        return None, max(1.0, asked) if self.family == "qwen-edit" else self.cfg

    def accelerated(self, steps: int | None = None) -> Recipe:
        """This recipe under its accelerator LoRA, which was distilled for `steps`.

        Raises:
            ValueError: it has none.
        """
        if self.fast is None:
            raise ValueError(f"The recipe {self.name} takes no accelerator LoRA; choose none.")
        return replace(self, steps=steps or self.fast.steps, cfg=self.fast.cfg)

    def check_references(self, count: int) -> None:
        """Refuse a number of references that it was not trained for.

        Raises:
            ValueError: names the number and what it takes.
        """
        least, most = self.references
        if not least <= count <= most:
            takes = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"The recipe {self.name} takes {takes} reference(s), got {count}.")


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
    fast=Fast(steps=8, cfg=1.0),
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
    sight="detail",
    references=(1, 1),
    one_size=True,
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
    sight="vision",
    references=(0, 1),
    cfg=4.0,
    fast=Fast(steps=8, cfg=1.0),
    dropped=(r"<SPECIAL_REGION>", r"\[\s*\d+(?:\s*,\s*\d+){3}\s*\]"),
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
    fast=None,
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
    settles=False,
    prefill=0.97,
    remainder=1.0,
)

RECIPES = {
    r.name: r
    for r in (
        OMNIREFINER, IMAGECRITIC, REFINEANYTHING, KONTEXT, FLUX2_KLEIN, FLUX2_DEV, NANO,
    )
}  # fmt: skip


def lightning_steps(name: str) -> int | None:
    """The steps that an accelerator LoRA's file name says it was distilled for, else None."""
    found = re.search(r"(\d+)[-_ ]?steps?", name.lower())
    return int(found[1]) if found else None


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]
