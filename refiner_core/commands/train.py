"""`omnirefiner train`: every command that makes, measures or looks at a refiner's training."""

from __future__ import annotations

from typing import Any

from . import (
    train_ablate,
    train_compare,
    train_curves,
    train_nano,
    train_plan,
    train_stages,
)


def add_parser(commands: Any) -> None:
    """Add the commands."""
    p = commands.add_parser("train", help="train a refiner")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    train_stages.add_parsers(kinds)
    train_plan.add_parser(kinds)
    train_compare.add_parser(kinds)
    train_curves.add_parser(kinds)
    train_nano.add_parsers(kinds)
    train_ablate.add_parser(kinds)
