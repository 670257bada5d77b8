"""What the pipeline asks of an engine. The core's engines and ComfyUI's both answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .geometry import CropPlan
from .recipes import Recipe


class Stage(NamedTuple):
    """Where a run is.

    `name` one of "plan", "encode", "sample", "decode", "register", "stitch"; while sampling, `step`
    of `steps` and the model's `estimate` of the latent; which of the `pictures` and `regions` (from
    0); the `plan` of the region's crop, None before it is made; `image` the picture 1 3 H W as it is
    so far.
    """

    name: str
    step: int = 0
    steps: int = 1
    estimate: Tensor | None = None
    picture: int = 0
    pictures: int = 1
    region: int = 0
    regions: int = 1
    plan: CropPlan | None = None
    image: Tensor | None = None


# Called at every stage and every step. Raising from it stops the run.
Progress = Callable[[Stage], None]


@dataclass(frozen=True)
class SamplingJob:
    """One latent to be sampled.

    `references` clean latents `1 C h w`, draft first, in the recipe's order, with their position
    `indices`; `sigmas` the noise levels; `prompt` the final text; `guidance` or None; `seed` of the
    initial noise; `restrict` None, or a mask `1 1 H W` outside which the draft's latent is kept.
    """

    references: tuple[Tensor, ...]
    indices: tuple[int, ...]
    sigmas: Tensor
    prompt: str
    guidance: float | None
    seed: int
    restrict: Tensor | None


class Engine(Protocol):
    """Weights that can encode, sample and decode by one recipe."""

    @property
    def recipe(self) -> Recipe: ...

    def encode(self, image: Tensor) -> Tensor:
        """Image 1 3 H W in [0, 1] to the latent the network sees, 1 C h w."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent to image 1 3 H W, float32, not clamped."""
        ...

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        """Run the job from pure noise; `step(i, steps, x0)` after each step."""
        ...

    def describe(self) -> dict[str, str]:
        """What weights these are, for the report."""
        ...
