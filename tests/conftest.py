"""Says at the end of a run how many ComfyUI tests ran, and why any were skipped."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for the tests that need a ComfyUI."""
    stats = terminalreporter.stats
    counts = {
        kind: sum("tests/comfyui" in r.nodeid for r in stats.get(kind, []))
        for kind in ("passed", "failed", "error", "skipped")
    }
    terminalreporter.write_line(
        "ComfyUI tests: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "passed")
    )
