"""`omnirefiner inspect`: says what weight files are."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("inspect", help="say what a weight file is and where it goes")
    p.add_argument("files", nargs="+", metavar="FILE", help=".safetensors or .gguf")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print it. Only the files' first bytes are read.

    Raises:
        ValueError: a file is missing, cut off, or of another format.
    """
    from ..weights.inspection import inspect_file

    found = [inspect_file(f) for f in chosen.files]
    if chosen.json:
        print(json.dumps([{**asdict(f), "path": str(f.path)} for f in found], indent=2))
        return
    for file in found:
        print("\n".join(file.lines()))
