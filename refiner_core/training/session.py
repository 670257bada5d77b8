"""The parts of an open run, and what it writes: checkpoints, refiners and validations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import load_checkpoint, save_checkpoint
from .dataset import Dataset
from .objective import Learner
from .tracker import Tracker
from .validation import validate

CHECKPOINT = "checkpoint.safetensors"
REFINER = "refiner.safetensors"
BEST = "best.safetensors"

# Writes the refiner (file, role of the weights or None for the current ones, metadata).
Export = Callable[[Path, str | None, dict[str, Any]], object]


@dataclass
class Session(Learner):
    """Everything that a run needs, and where it writes."""

    held_out: Dataset
    tracker: Tracker
    out: Path  # folder of the run
    export: Export
    identity: dict[str, str]  # what a checkpoint must agree with to be resumed
    facts: dict[str, Any] = field(default_factory=dict[str, Any])  # metadata of what is written
    base_share: float = 1.0  # of the base that this process holds

    @property
    def averaged(self) -> str | None:
        """The role of the weights that are validated and exported."""
        return "ema" if "ema" in self.trainable.copies else None

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Metrics and a picture of the held-out items."""
        if self.averaged is None:
            return validate(self, self.held_out)
        with self.trainable.swapped(self.averaged):
            return validate(self, self.held_out)

    def save(self, step: int, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> None:
        """Write the checkpoint and the refiner (main process only)."""
        if not self.processes.main:
            return
        facts = {**self.facts, **extra, **self.identity, "step": step}
        save_checkpoint(self.out / CHECKPOINT, self.trainable, optimizer, facts)
        self.export(self.out / REFINER, self.averaged, facts)

    def save_best(self, step: int, metrics: dict[str, float]) -> None:
        """Write the refiner as the best so far (main process only)."""
        if self.processes.main:
            facts = {**self.facts, "figures": metrics, **self.identity, "step": step}
            self.export(self.out / BEST, self.averaged, facts)

    def resume(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Restore the run's checkpoint, if there is one; the numbers saved in it.

        Raises:
            ValueError: it belongs to another kind of training, another base or other weights.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return None
        facts = load_checkpoint(path, self.trainable, optimizer)
        for key, mine in self.identity.items():
            if facts.get(key) != mine:
                raise ValueError(
                    f"The checkpoint {path} has {key} {facts.get(key)}, but this run has {mine}. "
                    "Choose another folder for this run (in ComfyUI another lora_name), use the settings "
                    "the run was started with, or delete the checkpoint to start again."
                )
        return facts
