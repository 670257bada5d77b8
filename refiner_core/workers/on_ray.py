"""Workers on a Ray cluster: actors, each of which opens what it needs once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from .items import Finished, Item, OpenWorker, Result, attempt
from .ray_cluster import connect


class _Actor:
    """What an actor runs. One that Ray starts anew opens everything again."""

    def __init__(self, open_worker: OpenWorker[Any, Any], device: str, threads: int | None) -> None:
        self._open_worker, self._device, self._threads = open_worker, device, threads
        self._work: Any = None

    def open(self) -> None:
        """Open what the work needs, unless that is done."""
        if self._work is None:
            import torch

            if self._threads is not None:
                torch.set_num_threads(self._threads)
            self._work = self._open_worker(self._device)

    def do(self, index: int, item: object) -> Finished[Any]:
        """Do one item."""
        self.open()
        return attempt(self._work, index, item)


def _actors(open_worker: OpenWorker[Any, Any], device: str, count: int) -> list[Any]:
    """Actors on the cluster's GPUs if it has any and they are wanted, else on its CPUs.

    An actor that is lost, with its machine or because its memory ran out, is started anew, and its
    item is tried once more.
    """
    import ray

    gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if device.startswith("cuda") and not gpus:
        raise ConnectionError(f"The Ray cluster has no GPU for --device {device}.")
    where = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    free = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
    make = cast(Any, ray.remote(max_restarts=-1, max_task_retries=1, **where)(_Actor))
    own = "cuda" if gpus else "cpu"  # an actor sees only the GPU that Ray gave it
    return [make.remote(open_worker, own, None if gpus else 1) for _ in range(min(count, free))]


def run_on_ray(
    address: str, open_worker: OpenWorker[Item, Result], items: Sequence[Item], device: str
) -> Iterator[Finished[Result]]:
    """`Place.run` on the cluster at `address`: "auto", "local" or ray://HOST:PORT.

    All machines must see the files that the items name under the same paths.
    """
    connect(address)
    import ray
    from ray.exceptions import RayError, RayTaskError

    actors = _actors(open_worker, device, len(items))
    try:
        ray.get([actor.open.remote() for actor in actors])
    except RayTaskError as e:
        raise cast(Exception, e.cause) from e
    waiting = iter(enumerate(items))
    running: dict[Any, tuple[Any, int]] = {}

    def give(actor: Any) -> None:
        for index, item in waiting:
            running[actor.do.remote(index, item)] = (actor, index)
            return

    for actor in actors:
        give(actor)
    while running:
        (reference,), _ = ray.wait(list(running))
        actor, index = running.pop(reference)
        try:
            yield cast(Finished[Result], ray.get(reference))
        except RayError as e:
            yield Finished(index, error=f"its Ray actor was lost: {e}")
        give(actor)
    for actor in actors:
        ray.kill(actor)
