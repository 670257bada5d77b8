"""Benchmark `dreamsim`: our DreamSim and the dreamsim package, each in its own process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import dreamsim_timing


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("dreamsim", help="speed and memory of DreamSim and of its package")
    p.add_argument(
        "weights", metavar="FILE.safetensors", help="from `omnirefiner convert dreamsim`"
    )
    p.add_argument(
        "--package",
        metavar="PYTHON",
        help="a Python with the dreamsim package, for comparison; needs --release",
    )
    p.add_argument(
        "--release", metavar="DIR", help="the unpacked release that FILE was converted from"
    )
    p.add_argument("--batch", type=int, default=8, help="pairs per batch; default: %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="timed runs; the median is reported")
    p.set_defaults(run=run)


# As a plain script its folder would come first on the path and hide installed packages.
_ROOT = Path(__file__).resolve().parents[2]
_RUN = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"


def _measured(command: list[str], batch: int, rounds: int) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    done = subprocess.run(
        [*command, str(batch), str(rounds)],
        env=os.environ | threads,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"{command[0]} could not run DreamSim:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(chosen: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ValueError: DreamSim cannot be run; the message is the process's own.
    """
    from refiner_core.scoring.dreamsim_files import read_variant

    if (chosen.package is None) != (chosen.release is None):
        raise ValueError("--package and --release go together.")
    if chosen.batch < 1 or chosen.rounds < 1:
        raise ValueError("--batch and --rounds must be at least 1.")
    weights = str(Path(chosen.weights).resolve())
    variant = read_variant(weights).name
    rows = {"this program": [sys.executable, "-m", dreamsim_timing.__name__, "ours", weights]}
    if chosen.package:
        script, release = dreamsim_timing.__file__, f"{Path(chosen.release).resolve()}:{variant}"
        rows["dreamsim package"] = [chosen.package, "-c", _RUN, script, "package", release]
    found = {name: _measured(c, chosen.batch, chosen.rounds) for name, c in rows.items()}
    print(f"DreamSim {variant}, {chosen.batch} pairs of 224 px, CPU, median of {chosen.rounds}")
    print(f"{'':<18}{'seconds':>9}{'CPU s':>9}{'loaded MB':>11}{'peak MB':>9}")
    for name, row in found.items():
        memory = f"{row['resident']:>11.0f}{row['peak']:>9.0f}"
        print(f"{name:<18}{row['seconds']:>9.3f}{row['cpu']:>9.3f}{memory}")
    if len(found) == 2:
        ours, theirs = (found[n]["distances"] for n in rows)
        apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        print(f"largest difference between distances: {apart:.1e}")
