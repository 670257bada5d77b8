"""The processes of a run: one in the plain case, several when `accelerate launch` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import Sharding, requested_sharding


class Processes:
    """Reductions over the processes of a run; without an accelerator there is one, and a sum is the
    value itself.

    With `sharding` every forward pass is collective: all processes have to make the same number.
    """

    def __init__(self, accelerator: Any = None, sharding: Sharding | None = None) -> None:
        self.accelerator, self.sharding = accelerator, sharding
        self.count = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print a line from the main process without breaking the progress bar."""
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
        """The values of all processes (equally many each), concatenated by rank, on the CPU."""
        if self.count == 1:
            return values.cpu()
        return self.accelerator.gather(values.to(self.accelerator.device)).cpu()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes in one message; a missing gradient counts as zero."""
        if self.count == 1:
            return
        learning = list(parameters)
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning]
        )
        torch.distributed.all_reduce(flat)
        pieces = flat.split([p.numel() for p in learning])
        for p, gradient in zip(learning, pieces, strict=True):
            p.grad = gradient.view_as(p)

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group: its threads must not outlive the interpreter."""
        if self.accelerator is not None:
            self.wait()
            self.accelerator.end_training()


def launched_processes(device: torch.device) -> Processes:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone.

    Raises:
        ModuleNotFoundError: several processes, and accelerate is not installed.
        ValueError: the launch divides the model in a way that is not supported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "Training on several processes needs accelerate: pip install accelerate."
        ) from e
    sharding = requested_sharding()
    return Processes(Accelerator(cpu=device.type == "cpu"), sharding)
