"""What the pipeline asks of an engine. The core's engines and ComfyUI's both answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
class CleanInput:
    """One of the clean pictures that the model sees beside the noisy latent."""

    role: str
    """"draft", "reference" or "mask" (the region in black and white)."""
    image: Tensor
    """The picture, float 1 3 H W in [0, 1], for text encoders that look at it."""
    latent: Tensor
    """The same encoded, B C h w."""
    index: int
    """Position index of its tokens; the noisy latent has 0."""


@dataclass(frozen=True)
class SamplingJob:
    """Latents to be sampled, one or a batch."""

    inputs: tuple[CleanInput, ...]
    """What the model sees, in the recipe's order."""
    sigmas: Tensor
    """Noise levels of the whole run, from 1 to 0."""
    prompt: str
    """The final text."""
    guidance: float | None
    """Value of the guidance embedding, or None."""
    seed: int
    """Of the initial noise, 0 to 2^64 - 1."""
    restrict: Tensor | None = None
    """Mask 1 1 H W outside which the draft's latent is kept, or None."""
    cfg: float = 1.0
    """Scale of classifier-free guidance; 1 is without."""
    start: Tensor | None = None
    """Latents B C h w at step `begin` (at step 0: the noise); None draws the noise from `seed`."""
    begin: int = 0
    """First step to run."""
    end: int | None = None
    """Step to stop before; None runs to the last."""

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The clean latents in order."""
        return tuple(i.latent for i in self.inputs)

    @property
    def indices(self) -> tuple[int, ...]:
        """Their position indices."""
        return tuple(i.index for i in self.inputs)

    def input(self, role: str) -> CleanInput:
        """The input in the given role (the first, if several)."""
        return next(i for i in self.inputs if i.role == role)

    @property
    def draft(self) -> Tensor:
        """The draft's clean latent."""
        return self.input("draft").latent


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

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        """Encode the prompts of jobs that are sampled next, so that the text encoders are needed
        only now. A job that was not announced is sampled all the same.
        """
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


class TextEncoder(Protocol):
    """Prompt and padding length to text embeddings 1 L D and pooled 1 P."""

    def __call__(self, prompt: str, length: int, /) -> tuple[Tensor, Tensor]: ...
