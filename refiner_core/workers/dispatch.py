"""Many items of work, in this process, in one process for each device, or on a Ray cluster.

Every worker opens what it needs once, such as a model on its device, and then takes one item after
the other. An item that fails is reported and the others go on.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Opens a worker on a device ("auto", "cpu", "cuda:0", ...): a function of one item. It is sent to
# the worker, so it must be picklable; so must items and results.
OpenWorker = Callable[[str], Callable[[Item], Result]]


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """What became of one item."""

    index: int
    """Its number among the items."""
    result: Result | None = None
    """What the worker returned; None if it failed."""
    error: str | None = None
    """Why it failed."""
    traceback: str = ""
    """Where it failed, if the cause is not the item's own values."""


@dataclass(frozen=True)
class Place:
    """Where work is done."""

    devices: tuple[str, ...] = ("auto",)
    """One worker for each; a single one works in this process."""
    ray: str | None = None
    """The address of a Ray cluster, whose GPUs or else CPUs take a worker each."""

    def run(
        self, open_worker: OpenWorker[Item, Result], items: Sequence[Item]
    ) -> Iterator[Finished[Result]]:
        """Do all items and report each as soon as it is finished, in any order.

        Raises (while it is iterated):
            ValueError, OSError, ModuleNotFoundError: a worker cannot be opened.
            ConnectionError: there is no Ray cluster.
        """
        if not items:
            return
        if self.ray is not None:
            from .on_ray import run_on_ray

            yield from run_on_ray(self.ray, open_worker, items, self.devices[0])
        elif len(self.devices) == 1 or len(items) == 1:
            work = open_worker(self.devices[0])
            for index, item in enumerate(items):
                yield attempt(work, index, item)
        else:
            from .processes import run_in_processes

            yield from run_in_processes(open_worker, items, self.devices)


def attempt(work: Callable[[Item], Result], index: int, item: Item) -> Finished[Result]:
    """Do one item; an exception becomes the reason for its failure."""
    try:
        return Finished(index, work(item))
    except (ValueError, OSError) as e:
        return Finished(index, error=str(e))
    except Exception as e:  # one item of thousands must not end the others, whatever its fault is
        return Finished(index, error=f"{type(e).__name__}: {e}", traceback=traceback.format_exc())


def shared_threads(workers: int) -> int:
    """Threads for each of the workers that compute on this machine's cores."""
    import torch

    return max(1, torch.get_num_threads() // workers)
