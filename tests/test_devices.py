"""Memory of the computer that runs networks."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from refiner_core.models import devices

# Freed blocks of some KB stay in the heap, since a last small one lies above them.
_FREED = """
from pathlib import Path
from refiner_core.models.devices import return_freed_memory
blocks = [bytearray(100_000) for _ in range(2000)]
last = blocks[-1]
del blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_returned_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FREED], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 100e6


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: object) -> None:
        raise AssertionError("no C library is opened")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(devices.ctypes, "CDLL", no_library)
    devices.return_freed_memory()
