"""The command line: `omnirefiner COMMAND`, also `python -m refiner_core COMMAND`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    animate,
    convert,
    data,
    demo,
    evaluate,
    inspect,
    merge,
    refine,
    score,
    train,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line's parser."""
    top = argparse.ArgumentParser(
        prog="omnirefiner",
        description="Put the true detail of a reference into a draft, and change nothing else.",
    )
    top.add_argument("--version", action="version", version=f"omnirefiner {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        demo, refine, score, evaluate, inspect, data, train, merge, convert, animate,
    ):  # fmt: skip
        module.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on an input that cannot be used (said on stderr)."""
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (ValueError, ModuleNotFoundError, OSError) as e:
        print(f"omnirefiner: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("omnirefiner: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
