"""`omnirefiner train curves`: what a run's log says, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(kinds: Any) -> None:
    """Add the command's options."""
    p = kinds.add_parser("curves", help="losses, rewards and held-out figures of runs, drawn")
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders that were given as --out")
    p.add_argument("--out", required=True, metavar="FILE", help=".png, .svg or .pdf")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Draw the curves."""
    from ..training.curves import draw_curves

    draw_curves([Path(r) for r in chosen.runs], Path(chosen.out))
    print(f"wrote {chosen.out}")
