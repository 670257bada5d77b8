"""A pool of worker processes that is safe beside torch."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes for pure functions of picklable arguments, each with one torch thread.

    They are spawned: a fork of a process in which torch has already computed inherits locks of
    an OpenMP pool whose threads it does not have, and its first tensor operation hangs.
    """
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    )
