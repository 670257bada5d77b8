"""Marks the tests by folder, and says at the end how many ComfyUI and browser tests ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_COMFYUI = Path(__file__).parent / "comfyui"
_BROWSER = Path(__file__).parent / "browser"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a ComfyUI is marked `comfyui` and `slow`, whatever needs a page also `browser`."""
    for item in items:
        if _BROWSER in item.path.parents:
            item.add_marker("browser")
        if {_COMFYUI, _BROWSER} & set(item.path.parents):
            item.add_marker("comfyui")
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line each for the tests that need a ComfyUI, and a browser besides."""
    stats = terminalreporter.stats
    for title, folder in (("ComfyUI", "tests/comfyui"), ("Browser", "tests/browser")):
        counts = {
            kind: sum(folder in r.nodeid for r in stats.get(kind, []))
            for kind in ("passed", "failed", "error", "skipped")
        }
        listed = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "passed")
        terminalreporter.write_line(f"{title} tests: {listed}")
