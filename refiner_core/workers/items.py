"""One item of work: how a worker is opened, and what became of an item."""

from __future__ import annotations

import traceback
from collections.abc import Callable
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
