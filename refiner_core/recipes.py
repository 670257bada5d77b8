"""Recipes: everything about a trained refiner that is not a weight. New recipes are data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import flow
from .geometry import KONTEXT_BUCKETS, NANO_BUCKETS, Buckets, Extent


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

    def sigmas(self, target: Extent, steps: int | None = None) -> Tensor:
        """The noise levels for a crop of `target` pixels."""
        mu = self.shift
        if mu is None:
            patch = 2 * self.latent_factor
            mu = flow.resolution_shift((target.width // patch) * (target.height // patch))
        return flow.sigmas(self.steps if steps is None else steps, mu)

    def text(self, prompt: str | None, subject: str | None = None) -> str:
        """The prompt to encode: the user's own, else the template."""
        return prompt if prompt else self.prompt.format(subject=subject or "detail")


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
)

KONTEXT = Recipe(
    name="kontext",
    title="FLUX.1-Kontext as it is (not trained for two images)",
    order=("draft", "reference"),
    indices=(1, 2),
    prompt="Replace the {subject} in the first image with the {subject} of the second image.",
    guidance=2.5,
    steps=28,
    shift=None,
    text_tokens=512,
    buckets=KONTEXT_BUCKETS,
    context=1.5,
    align=False,
    latent_factor=8,
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
    prefill=0.6,
    remainder=1.0,
)

RECIPES = {r.name: r for r in (OMNIREFINER, KONTEXT, NANO)}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]
