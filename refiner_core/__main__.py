"""The command line: `omnirefiner COMMAND`, also `python -m refiner_core COMMAND`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    animate,
    audit,
    convert,
    data,
    demo,
    evaluate,
    exit_status,
    inspect,
    merge,
    refine,
    score,
    train,
    train_compare,
    train_nano,
)

_COMMANDS = (demo, refine, score, evaluate, audit, inspect, data, train, merge, convert, animate)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="omnirefiner",
        description="Repair the details of a generated picture from a reference picture.",
    )
    top.add_argument("--version", action="version", version=f"omnirefiner {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        if module is train:
            kinds = train.add_parser(commands)
            train_compare.add_parser(kinds)
            train_nano.add_parser(kinds)
        else:
            module.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (`commands.exit_status`)."""
    _escape_unprintable()
    chosen = parser().parse_args(arguments)
    try:
        status = chosen.run(chosen)
    except (ValueError, ModuleNotFoundError, OSError) as e:
        print(f"omnirefiner: {_in_words(e)}", file=sys.stderr)
        return exit_status.UNUSABLE_INPUT
    except KeyboardInterrupt:
        print("omnirefiner: interrupted", file=sys.stderr)
        return exit_status.INTERRUPTED
    return exit_status.DONE if status is None else status


def _in_words(error: Exception) -> str:
    """The message of an error, for a file that the system refuses without the system's number."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}."
    return str(error)


def _escape_unprintable() -> None:
    """Print file names that a console's encoding lacks with escapes, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
