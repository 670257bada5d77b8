"""Where a run is: reported at every stage and step, and timed."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from ..interfaces import Progress, Stage


class Watch:
    """Reports the stages of a run to `progress` and measures how long each of them takes.

    `stage` is where the run is; `seconds` by stage, over all regions.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._since: float | None = None
        self.stage = Stage("")
        self.seconds: dict[str, float] = {}

    def start(self, name: str, **known: Any) -> None:
        """The stage `name` starts. `known` are fields of `Stage` that hold from now on."""
        self.leave()
        self._since = time.perf_counter()
        self.stage = self.stage._replace(name=name, step=0, steps=1, estimate=None, **known)

    def enter(self, name: str, **known: Any) -> None:
        """The same, and report it."""
        self.start(name, **known)
        self._report(self.stage)

    def step(self, step: int, steps: int, estimate: Tensor) -> None:
        """Report one step of the stage, and the model's estimate of the latent after it."""
        self._report(self.stage._replace(step=step, steps=steps, estimate=estimate))

    def leave(self) -> None:
        """The stage ends."""
        if self._since is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self.stage.name] = self.seconds.get(self.stage.name, 0.0) + spent
            self._since = None

    def _report(self, stage: Stage) -> None:
        if self._progress is not None:
            self._progress(stage)
