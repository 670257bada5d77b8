"""Says at the end of a run how many ComfyUI and browser tests ran, and why any were skipped."""

from __future__ import annotations

from typing import Any


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
