"""A pool of worker processes that is safe beside torch."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

# Called as work goes on: how many parts are done, how many there are, and a report of the last one.
Progress = Callable[[int, int, dict[str, Any]], None]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    wait([parent.sentinel])
    os._exit(1)


def start_worker(threads: int = 1) -> None:
    """Prepare this worker process: it ends with its parent and computes on so many threads."""
    # A killed parent closes nothing: its workers would wait for the next job forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes for functions of picklable arguments, each with one torch thread.

    They are spawned: a fork of a process in which torch has already computed inherits locks of
    an OpenMP pool whose threads it does not have, and its first tensor operation hangs.
    """
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
    )
