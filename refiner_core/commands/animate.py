"""`omnirefiner animate`: before and after as a moving picture, for a README or a post."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("animate", help="write before and after as an animated WebP or GIF")
    p.add_argument(
        "--pair",
        nargs=2,
        action="append",
        required=True,
        metavar=("BEFORE", "AFTER"),
        help="two pictures of one size; give it again for more, shown one after the other",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the .webp or .gif to write")
    p.add_argument(
        "--height",
        type=int,
        default=320,
        help="height of the animation in px; default: %(default)s",
    )
    p.add_argument("--fps", type=float, default=15, help="frames per second; default: %(default)s")
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Write the moving picture, whole or not at all.

    Raises:
        ValueError: a picture or an option that cannot be used.
    """
    from ..images.animation import write_animation
    from ..storage.output_files import check_output

    target = check_output(chosen.out, chosen.overwrite)
    if target.suffix.lower() not in (".webp", ".gif"):
        raise ValueError(f"--out must end in .webp or .gif, got {target.name}.")
    if not 32 <= chosen.height <= 2160 or not 1 <= chosen.fps <= 60:
        raise ValueError(
            f"--height must be 32..2160 and --fps 1..60, got {chosen.height} and {chosen.fps:g}."
        )
    pairs = [(Path(before), Path(after)) for before, after in chosen.pair]
    frames = write_animation(pairs, target, chosen.height, chosen.fps)
    print(f"{target}: {frames} frames, {target.stat().st_size / 1e6:.2f} MB")
