"""What the pipeline asks of an engine. The core's engines and ComfyUI's both answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .images.geometry import CropPlan
from .recipes.recipe import Recipe


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
    """Latents to be sampled, one or a batch.

    `references` clean latents `B C h w` in the recipe's order, with their position `indices`;
    `sigmas` the noise levels of the whole run; `prompt` the final text; `guidance` or None; `seed`
    of the initial noise; `restrict` None, or a mask `1 1 H W` outside which the draft's latent is
    kept; `roles` and `images` say what each of the references is, and its picture 1 3 H W in [0, 1],
    for recipes that also look at the pictures; `cfg` above 1 is classifier-free guidance; `start`
    None, or the latents `B C h w` at step `begin` (at step 0: the noise); `begin` and `end` the
    steps to run, None = to the last.
    """

    references: tuple[Tensor, ...]
    indices: tuple[int, ...]
    sigmas: Tensor
    prompt: str
    guidance: float | None
    seed: int
    restrict: Tensor | None
    roles: tuple[str, ...]
    images: tuple[Tensor, ...]
    cfg: float = 1.0
    start: Tensor | None = None
    begin: int = 0
    end: int | None = None

    @property
    def draft(self) -> Tensor:
        """The draft's clean latent."""
        return self.references[self.roles.index("draft")]

    def image(self, role: str) -> Tensor:
        """The picture in the given role (the first, if several)."""
        return self.images[self.roles.index(role)]


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
        """Run the job's steps and return the latents there.

        `step(i, steps, x0)` is called after each step, counted from the whole run's first, with
        the estimate as `decode` takes it.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What weights these are, for the report."""
        ...
