"""`omnirefiner inspect`: says what weight files are."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("inspect", help="say what a weight file is and in which folder it goes")
    p.add_argument("files", nargs="+", metavar="FILE", help="a .safetensors or .gguf file")
    p.add_argument("--json", action="store_true", help="print JSON for other programs")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Describe every file that can be read. Only the headers of the files are read.

    Raises:
        ValueError: how many of the files could not be read; each was reported before.
    """
    from ..models.lora_models import with_fit
    from ..nano import NANO_WEIGHTS
    from ..weights.inspection import inspect_file

    described: list[dict[str, Any]] = []
    failures = 0
    for path in chosen.files:
        try:
            file = with_fit(inspect_file(path), NANO_WEIGHTS)
        except (ValueError, OSError) as e:
            failures += 1
            described.append({"path": str(path), "error": str(e)})
            if not chosen.json:
                print(f"omnirefiner: {e}", file=sys.stderr)
            continue
        described.append({**asdict(file), "path": str(path)})
        if not chosen.json:
            print("\n".join(file.lines()))
    if chosen.json:
        print(json.dumps(described, indent=2))
    if failures:
        raise ValueError(f"{failures} of {len(chosen.files)} files could not be read.")
