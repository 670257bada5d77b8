"""One worker process for each device of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from .items import Finished, Item, OpenWorker, Result, attempt, shared_threads
from .pool import start_worker


def _serve(
    connection: Connection, open_worker: OpenWorker[Any, Any], device: str, threads: int
) -> None:
    """The worker process: opens, then answers every (index, item) with what became of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent, which ends this one
    start_worker(threads)
    try:
        work = open_worker(device)
    except Exception as e:
        connection.send(e)
        return
    connection.send(None)
    while True:
        index, item = connection.recv()
        connection.send(attempt(work, index, item))


class _WorkerProcess:
    """A worker process, and the item that it works on."""

    def __init__(self, open_worker: OpenWorker[Any, Any], device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # see `pool.worker_pool`
        self.connection, theirs = context.Pipe()
        self.device = device
        self.index: int | None = None
        self.process = context.Process(
            target=_serve, args=(theirs, open_worker, device, threads), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def give(self, index: int, item: object) -> None:
        """Let it do the item; if the process is gone, its `answer` says so."""
        self.index = index
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((index, item))

    def answer(self) -> Finished[Any] | None:
        """What became of its item; None when it has just been opened.

        Raises:
            ConnectionError: the process ended without having an item.
            Exception: that of opening it.
        """
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            how = f"the worker process on {self.device} ended with status {self.process.exitcode}"
            if self.index is None:
                raise ConnectionError(f"Nothing was started: {how}.") from None
            return Finished(self.index, error=how)
        if isinstance(said, Exception):
            raise said
        return said

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.exitcode is not None

    def stop(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_in_processes(
    open_worker: OpenWorker[Item, Result], items: Sequence[Item], devices: Sequence[str]
) -> Iterator[Finished[Result]]:
    """`Place.run` with one process for each device.

    A process that is killed, for example because memory ran out, takes only its item with it.
    """
    devices = devices[: len(items)]
    threads = shared_threads(len(devices))
    waiting, left = deque(enumerate(items)), len(items)
    workers = [_WorkerProcess(open_worker, device, threads) for device in devices]
    try:
        for worker in workers:
            worker.answer()  # that it is open: one that cannot be ends the run before it starts
            worker.give(*waiting.popleft())
        while left:
            ready = wait([w.connection for w in workers])
            for worker in [w for w in workers if w.connection in ready]:
                finished = worker.answer()
                if finished is not None:
                    left -= 1
                    yield cast(Finished[Result], finished)
                if waiting and not worker.ended:
                    worker.give(*waiting.popleft())
                    continue
                workers.remove(worker)
                worker.stop()
                if waiting:
                    workers.append(_WorkerProcess(open_worker, worker.device, threads))
    finally:
        for worker in workers:
            worker.stop()
