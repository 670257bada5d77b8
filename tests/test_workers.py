"""Work is spread over processes: each opens once, and one that fails takes only its item with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from refiner_core.workers.dispatch import Place
from refiner_core.workers.processes import run_in_processes

HERE, TWO = Place(("cpu",)), Place(("cpu", "cpu"))


class Halves:
    """Halves even numbers, and says which process did it."""

    def __init__(self, device: str) -> None:
        if device == "broken":
            raise ValueError(f"{device} cannot be opened")

    def __call__(self, item: int) -> tuple[int, int]:
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 7:
            raise KeyError(item)
        if item % 2:
            raise ValueError(f"{item} is odd")
        return item // 2, os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("place", [HERE, TWO], ids=["here", "two processes"])
def test_items_that_fail_do_not_end_the_others(place: Place) -> None:
    items = [2, 3, 4, 7, 6]
    found = {f.index: f for f in place.run(Halves, items)}
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [found[i].result[0] for i in (0, 2, 4) if found[i].result] == [1, 2, 3]
    assert found[1].error == "3 is odd" and not found[1].traceback
    assert "7" in (found[3].error or "") and "KeyError" in found[3].traceback
    processes = {f.result[1] for f in found.values() if f.result}
    assert (os.getpid() in processes) == (place is HERE)
    assert len(processes) <= len(place.devices)


@pytest.mark.slow
def test_a_killed_worker_is_started_anew() -> None:
    found = {f.index: f for f in run_in_processes(Halves, [13, 2, 4, 13, 6], ["cpu", "cpu"])}
    assert [i for i, f in sorted(found.items()) if f.error] == [0, 3]
    assert str(-signal.SIGKILL) in (found[0].error or "")
    assert sorted(f.result[0] for f in found.values() if f.result) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [("broken",), ("cpu", "broken")])
def test_a_worker_that_cannot_be_opened_is_said(devices: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="broken"):
        list(Place(devices).run(Halves, [2, 4, 6]))


def test_nothing_is_opened_for_no_items() -> None:
    opened: list[str] = []

    def open_worker(device: str) -> Callable[[Path], None]:
        opened.append(device)
        return lambda _: None

    assert list(HERE.run(open_worker, [])) == [] and not opened
