"""What a trainer needs to know of an objective, and what an objective may use to learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..images.geometry import Extent
from ..recipes.recipe import Recipe
from .dataset import Dataset
from .distributed import Processes
from .policy import Policy
from .trainable import Trainable


@dataclass
class Learner:
    """The network that is trained, the data it is trained on, and the processes that share the work."""

    policy: Policy
    trainable: Trainable
    dataset: Dataset
    text: Callable[[str], tuple[Tensor, Tensor]]  # text and pooled embedding of a prompt
    decode: Callable[[Tensor], Tensor]  # latents B C h w to images B 3 H W
    recipe: Recipe
    processes: Processes

    def schedule(self, size: tuple[int, int], steps: int | None = None) -> Tensor:
        """The noise levels of the recipe for a latent of (height, width)."""
        factor = self.recipe.latent_factor
        return self.recipe.sigmas(Extent(size[1] * factor, size[0] * factor), steps)


@dataclass(frozen=True)
class Term:
    """One summand of an update's loss, already weighted.

    `value` is backpropagated; `metrics` are its contributions to the values of the log.
    """

    value: Tensor
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Update:
    """One optimizer update: the terms of this process, each computed when it is its turn.

    Where the base is sharded, a process with fewer terms than another computes `spare` instead, since
    every forward pass gathers the base from all processes.
    """

    terms: Sequence[Callable[[], Term]]
    spare: Callable[[], Term]
    describe: Callable[[], str]  # what it learns from, for messages


class Objective(ABC):
    """A way to learn. A step of a run is one `begin`, the updates, and one `end`."""

    updates: int = 1
    """Updates per step."""
    metrics: tuple[str, ...] = ("loss",)
    """Names of the metrics of each update."""
    copies: tuple[str, ...] = ()
    """Roles of the copies of the weights that it needs beside the moving average."""
    log_every: int = 1
    """Steps per row of the log."""

    @abstractmethod
    def begin(self, step: int, skip: Callable[[str], None]) -> dict[str, float]:
        """Draw what step `step` learns from; metrics of it for the log.

        Args:
            skip: to be called with the reason when something has to be left out.
        """

    @abstractmethod
    def update(self, number: int) -> Update:
        """Update `number` of the step."""

    def end(self, step: int) -> None:  # noqa: B027 (not every one has something left to do)
        """Called after the last update of the step."""

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of the objective, beside the weights and their copies."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: B027 (not every one has a state)
        """Continue with what a checkpoint kept."""
