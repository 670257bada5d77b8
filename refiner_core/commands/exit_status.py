"""The exit statuses of `omnirefiner`, as docs/command-line.md lists them.

A command returns one of them, or nothing when it did all it was asked to.
"""

from __future__ import annotations

DONE = 0
UNUSABLE_INPUT = 2
"""An option or a file cannot be used, as argparse has it; nothing, or not all, was written."""
SOME_FAILED = 3
"""Some or all of many jobs or cases failed; the others are done."""
POOR_MATCH = 4
"""With --strict: everything was done, but a reference does not match its region, or hardly."""
INTERRUPTED = 130
"""Stopped with Ctrl+C, as shells have it."""
