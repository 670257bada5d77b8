"""The processes of a run. One process is the plain case; more are accelerate's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Workers:
    """Sums over processes; with no accelerator there is one, and a sum is the value itself."""

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.count = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """A line for the user, from the main process only, that leaves a progress bar whole."""
        if self.main:
            from tqdm.auto import tqdm

            tqdm.write(text)

    def sum(self, value: float) -> float:
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, "sum"))

    def mean(self, value: float) -> float:
        return self.sum(value) / self.count

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every process's gradients (a missing one counts as zero)."""
        if self.count == 1:
            return
        for p in parameters:
            gradient: Tensor = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = self.accelerator.reduce(gradient, "sum")

    def wait(self) -> None:
        if self.count > 1:
            self.accelerator.wait_for_everyone()
