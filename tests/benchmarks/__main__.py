"""The benchmarks' command line: `python -m tests.benchmarks NAME`, from the root of a checkout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from . import (
    ablation,
    blending,
    comfyui_speed,
    data_speed,
    demo_cases,
    dreamsim_speed,
    figures,
    overhead,
    queue_load,
    search_gain,
    training_speed,
)

BENCHMARKS = (
    figures,
    overhead,
    search_gain,
    dreamsim_speed,
    data_speed,
    training_speed,
    ablation,
    blending,
    comfyui_speed,
    demo_cases,
    queue_load,
)

if find_spec("diffusers"):  # which ComfyUI's Python need not have
    from . import objectives

    BENCHMARKS = (*BENCHMARKS, objectives)

if find_spec("hypothesis"):  # which ComfyUI's Python does not have
    from . import bad_inputs, fuzz, kills

    BENCHMARKS = (*BENCHMARKS, kills, fuzz, bad_inputs)


def parser() -> argparse.ArgumentParser:
    """The parser of all benchmarks; each module adds its own subcommand."""
    top = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure speed, memory and the benefit of single parts of the method.",
    )
    names = top.add_subparsers(dest="name", required=True, metavar="NAME")
    for module in BENCHMARKS:
        module.add_parser(names)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 0 on success and 2 if an input cannot be used."""
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (ValueError, ModuleNotFoundError, OSError) as e:
        print(f"benchmarks: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
