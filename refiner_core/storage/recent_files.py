"""Files that are of use only for a while: the oldest are deleted beyond a number or a total size."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple


class NodeRun(NamedTuple):
    """One execution of one node, which may write several files."""

    prompt: str
    node: str


class RecentFiles:
    """Keeps the files of the latest runs.

    The files of a node's own latest run are kept however old they are: ComfyUI names them to the page
    again for as long as the node's result is cached.
    """

    def __init__(self, most_files: int, most_bytes: int) -> None:
        self.most_files, self.most_bytes = most_files, most_bytes
        self._runs: OrderedDict[NodeRun, list[tuple[Path, int]]] = OrderedDict()

    def add(self, run: NodeRun, path: Path) -> None:
        """Note a file that was written, and delete the oldest if there are too many."""
        self._runs.setdefault(run, []).append((path, path.stat().st_size))
        sizes = [size for files in self._runs.values() for _, size in files]
        count, total = len(sizes), sum(sizes)
        latest = {run.node: run for run in self._runs}
        for old in [r for r in self._runs if latest[r.node] != r]:
            if count <= self.most_files and total <= self.most_bytes:
                return
            for file, size in self._runs.pop(old):
                file.unlink(missing_ok=True)
                count, total = count - 1, total - size
