"""The connection to a Ray cluster."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit


def connect(address: str) -> None:
    """Connect this process to the cluster at `address`: "auto", "local" or ray://HOST:PORT.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: `address` is not an address.
        ConnectionError: there is no cluster.
    """
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
