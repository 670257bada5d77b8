"""Many items of work, in this process, in one process for each device, or on a Ray cluster.

Every worker opens what it needs once, such as a model on its device, and then takes one item after
the other. An item that fails is reported and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .items import Finished, Item, OpenWorker, Result, attempt


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
