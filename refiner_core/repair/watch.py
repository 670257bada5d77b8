"""Where a run is: reported at every stage and step, and timed."""

from __future__ import annotations

import time

from torch import Tensor

from ..interfaces import Progress, Stage


class Watch:
    """Reports the stages of a run to `progress` and measures how long each of them takes.

    `seconds` by stage, over all regions.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage = Stage("")
        self._since: float | None = None

    def start(self, stage: Stage) -> None:
        """A stage starts, and the one before it ends."""
        self.leave()
        self._stage, self._since = stage, time.perf_counter()

    def enter(self, stage: Stage) -> None:
        """The same, and report it."""
        self.start(stage)
        self._report(stage)

    def step(self, step: int, steps: int, estimate: Tensor) -> None:
        """Report one step of the stage, and the model's estimate of the latent after it."""
        self._report(self._stage._replace(step=step, steps=steps, estimate=estimate))

    def leave(self) -> None:
        """The stage ends."""
        if self._since is not None:
            name = self._stage.name
            spent = time.perf_counter() - self._since
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self._since = None

    def _report(self, stage: Stage) -> None:
        if self._progress is not None:
            self._progress(stage)
