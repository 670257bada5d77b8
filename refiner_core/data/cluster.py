"""The shards of a build as a Ray Data job, for more than one machine.

A shard writes its own files, completely or not at all, so a shard that Ray runs twice does no harm.
All nodes must see the build's folder under the same path (NFS, a cluster file system).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..workers.pool import Progress
from ..workers.ray_cluster import connect
from .build_settings import Build
from .shard_build import build_shard


def _work(build: Build, row: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    shard = int(row["item"])
    # Only numbers travel back: the report itself is on the shared disk.
    return {"shard": shard, "kept": build_shard(build, shard)["kept"]}


def ray_runner(address: str) -> Callable[[Build, Sequence[int], int, Progress], None]:
    """A `run` for `run_build` on the cluster at `address`: "auto", "local" or ray://host:port.

    Raises (when it runs):
        ModuleNotFoundError: Ray is not installed.
        ValueError: `address` is not an address.
        ConnectionError: there is no cluster, or a server that a stage needs cannot be reached.
    """
    return partial(_run_on_ray, address)


def _run_on_ray(
    address: str, build: Build, shards: Sequence[int], workers: int, progress: Progress
) -> None:
    if not shards:
        return
    connect(address)
    import ray
    from ray.data import from_items
    from ray.exceptions import RayError

    ray.data.DataContext.get_current().enable_progress_bars = False
    items = from_items(list(shards), override_num_blocks=len(shards))
    jobs = items.map(partial(_work, build))
    try:
        for done, row in enumerate(jobs.iter_rows(), 1):
            progress(done, len(shards), {"kept": row["kept"]})
    except RayError as e:
        cause = getattr(e, "cause", None) or e
        raise ConnectionError(f"The Ray job stopped; finished shards are kept: {cause}") from e
