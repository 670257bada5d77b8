"""Progress of a data build in the terminal."""

from __future__ import annotations

import sys
from typing import Any


def show_progress(done: int, total: int, report: dict[str, Any]) -> None:
    """Count the shards on one line of stderr."""
    print(f"\rshard {done} of {total}", end="\n" if done == total else "", file=sys.stderr)
