"""The processes of a run. One process is the plain case; more are accelerate's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import Sharding, requested_sharding


class Workers:
    """Sums over processes; with no accelerator there is one, and a sum is the value itself.

    With `sharding` every forward pass is a common one: all processes have to make the same number.
    """

    def __init__(self, accelerator: Any = None, sharding: Sharding | None = None) -> None:
        self.accelerator, self.sharding = accelerator, sharding
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

    def gather(self, values: Tensor) -> Tensor:
        """Every process's values (as many each) one after the other, by rank, on the CPU."""
        if self.count == 1:
            return values.cpu()
        return self.accelerator.gather(values.to(self.accelerator.device)).cpu()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every process's gradients, in one message (a missing one counts as zero)."""
        if self.count == 1:
            return
        learning = list(parameters)
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning]
        )
        torch.distributed.all_reduce(flat)
        for p, part in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
            p.grad = part.view_as(p)

    def wait(self) -> None:
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Part from the other processes: their threads must not outlive the interpreter."""
        if self.accelerator is not None:
            self.wait()
            self.accelerator.end_training()


def find_workers(device: torch.device) -> Workers:
    """The processes that `accelerate launch` started, or this one alone.

    Raises:
        ModuleNotFoundError: several processes and accelerate is not installed.
        ValueError: a launch that divides the model in a way that is not supported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Workers()
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "Training on several processes needs accelerate: pip install 'omnirefiner[train]'."
        ) from e
    sharding = requested_sharding()
    return Workers(Accelerator(cpu=device.type == "cpu"), sharding)
