"""`omnirefiner bench dreamsim`: our DreamSim beside the dreamsim package, each in its own process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import dreamsim_timing


def add_subject(subjects: Any) -> None:
    """Add the options."""
    p = subjects.add_parser("dreamsim", help="DreamSim's speed and memory beside the package's")
    p.add_argument(
        "weights", metavar="FILE.safetensors", help="from `omnirefiner convert dreamsim`"
    )
    p.add_argument(
        "--package", metavar="PYTHON",
        help="a Python that has the dreamsim package, to run beside; needs --release",
    )  # fmt: skip
    p.add_argument("--release", metavar="DIR", help="the unpacked release FILE was made of")
    p.add_argument("--batch", type=int, default=8, help="pairs at a time; default: %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="timed runs, the median counts")
    p.set_defaults(run=run)


# As a plain script its folder would come first on the path, where `inspect` is one of our commands.
_RUN = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"


def _measured(command: list[str], batch: int, rounds: int) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    done = subprocess.run(
        [*command, str(batch), str(rounds)], env=os.environ | threads, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"{command[0]} could not run DreamSim:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(chosen: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ValueError: a DreamSim that cannot be run; its own message.
    """
    from ..scoring.dreamsim_files import read_variant

    if (chosen.package is None) != (chosen.release is None):
        raise ValueError("--package and --release go together.")
    if chosen.batch < 1 or chosen.rounds < 1:
        raise ValueError("--batch and --rounds must be at least 1.")
    variant = read_variant(chosen.weights).name
    script = Path(dreamsim_timing.__file__)
    rows = {
        "this program": [sys.executable, "-m", dreamsim_timing.__name__, "ours", chosen.weights]
    }
    if chosen.package:
        release = f"{chosen.release}:{variant}"
        rows["dreamsim package"] = [chosen.package, "-c", _RUN, str(script), "package", release]
    found = {name: _measured(c, chosen.batch, chosen.rounds) for name, c in rows.items()}
    print(f"DreamSim {variant}, {chosen.batch} pairs of 224 px, CPU, median of {chosen.rounds}")
    print(f"{'':<18}{'seconds':>9}{'CPU s':>9}{'loaded MB':>11}{'peak MB':>9}")
    for name, row in found.items():
        memory = f"{row['resident']:>11.0f}{row['peak']:>9.0f}"
        print(f"{name:<18}{row['seconds']:>9.3f}{row['cpu']:>9.3f}{memory}")
    if len(found) == 2:
        ours, theirs = (found[n]["distances"] for n in rows)
        apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        print(f"largest difference of a distance: {apart:.1e}")
