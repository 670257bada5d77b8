"""Progress of a command, on one line of the terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..interfaces import Stage

_WIDTH = 24  # characters of the bar
# Of a repair's stages: what is shown, where it begins in the run, and how much of the run it takes.
_STAGES = {
    "plan": ("planning", 0.0, 0.08),
    "encode": ("encoding", 0.08, 0.07),
    "sample": ("sampling", 0.15, 0.75),
    "decode": ("decoding", 0.9, 0.05),
    "register": ("correcting", 0.95, 0.03),
    "stitch": ("stitching", 0.95, 0.05),
}


def show_progress(done: int, total: int, report: dict[str, Any]) -> None:
    """Count the shards of a data build on one line of stderr."""
    print(f"\rshard {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


class ProgressLine:
    """A line of stderr that is written over, as long as the block lasts; only on a terminal."""

    def __init__(self, quiet: bool = False, first: str = "") -> None:
        """A line that begins with the text `first`."""
        self.shown = not quiet and sys.stderr.isatty()
        self._first = first
        self._length = 0

    def say(self, text: str, part: float | None = None) -> None:
        """Show a text, behind a bar if it is known which part of the work is done."""
        if not self.shown:
            return
        filled = 0 if part is None else round(part * _WIDTH)
        bar = "" if part is None else f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {part:4.0%} "
        line = f"{bar}{text}"[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(self._length)}")
        sys.stderr.flush()
        self._length = len(line)

    def clear(self) -> None:
        """Remove the line, so that something else can be printed."""
        if self._length:
            sys.stderr.write(f"\r{' ' * self._length}\r")
            sys.stderr.flush()
            self._length = 0

    def __enter__(self) -> ProgressLine:
        if self._first:
            self.say(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class RepairProgress:
    """`interfaces.Progress`: the stage of a repair on a `ProgressLine`."""

    def __init__(self, line: ProgressLine) -> None:
        self.line = line
        self._part = 0.0

    def __call__(self, stage: Stage) -> None:
        name, begin, share = _STAGES[stage.name]
        sampling = stage.name == "sample"
        within = (stage.region + (stage.step / stage.steps if sampling else 0)) / stage.regions
        # Regions that have to wait for others go through the stages again.
        self._part = max(self._part, begin + share * within)
        where = f"region {stage.region + 1} of {stage.regions}, " if stage.regions > 1 else ""
        step = f", step {stage.step} of {stage.steps}" if sampling else ""
        self.line.say(f"{where}{name}{step}", self._part)
