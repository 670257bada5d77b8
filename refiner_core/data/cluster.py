"""The shards of a build as a Ray Data job, for more than one machine.

A shard writes its own files, completely or not at all, so a shard that Ray runs twice does no harm.
All nodes must see the build's folder under the same path (NFS, a cluster file system).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from .build import Progress
from .build_settings import Build
from .shard_build import build_shard


def _work(build: Build, row: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    shard = int(row["item"])
    # Only numbers travel back: the report itself is on the shared disk.
    return {"shard": shard, "kept": build_shard(build, shard)["kept"]}


def _connect(address: str) -> None:
    try:
        import ray
    except ImportError as e:
        raise ModuleNotFoundError(
            "--ray needs Ray: pip install 'ray[data]' (the pack's extra cluster)."
        ) from e
    if ray.is_initialized():
        return
    if address not in ("auto", "local"):
        _check_reachable(address)
    try:
        ray.init(None if address == "local" else address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise ConnectionError(f"No Ray cluster at {address!r}: {e}") from e


def _check_reachable(address: str) -> None:
    # Ray itself tries for minutes before it gives up, and then ends the process.
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ValueError(f"{address!r} is not an address of a Ray cluster: {e}.") from e
    if not host or not port:
        raise ValueError(
            f"{address!r} is not an address of a Ray cluster; use ray://HOST:PORT, 'auto' or 'local'."
        )
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as e:
        raise ConnectionError(f"No Ray cluster at {address!r}: {e}.") from e


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
    _connect(address)
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
