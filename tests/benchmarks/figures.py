"""Benchmark `figures`: every figure of speed from one run, in one table.

Seconds are the processor's, with one thread, and the ratios compare what was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import one_way_speed, speed
from .measuring import Figure, markdown, print_figures


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("figures", help="every figure of speed in one table")
    p.add_argument("--rounds", type=int, default=3, help="timed runs; the median is reported")
    p.add_argument("--jobs", type=int, default=24, help="repairs beside single calls")
    p.add_argument("--largest", type=int, default=1024, help="px, of the crops that are sampled")
    p.add_argument("--comfyui", metavar="DIR", help="also measure in the ComfyUI in this folder")
    p.add_argument("--python", metavar="FILE", help="ComfyUI's Python; default: that of DIR/.venv")
    p.add_argument(
        "--crop-and-stitch", metavar="DIR", help="a checkout of ComfyUI-Inpaint-CropAndStitch"
    )
    p.add_argument("--out", metavar="FILE", help="also write the table as Markdown")
    p.set_defaults(run=run)


def _python(chosen: argparse.Namespace) -> Path:
    python = Path(chosen.python or Path(chosen.comfyui, ".venv", "bin", "python"))
    if not python.is_file():
        raise ValueError(f"There is no {python}. Name ComfyUI's Python with --python.")
    return python


def _in_comfyui(chosen: argparse.Namespace, python: Path) -> Iterator[Figure]:
    """What `comfyui` measures, with ComfyUI's own Python."""
    command = [str(python), "-m", "tests.benchmarks", "comfyui", "--comfyui", chosen.comfyui]
    if chosen.crop_and_stitch:
        command += ["--crop-and-stitch", chosen.crop_and_stitch]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "figures.json")
        command += ["--rounds", str(chosen.rounds), "--json", str(found)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(speed.ROOT)}
        done = subprocess.run(
            command, cwd=speed.ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        yield from (Figure(*figure) for figure in json.loads(found.read_text()))


def _all(chosen: argparse.Namespace) -> Iterator[Figure]:
    python = _python(chosen) if chosen.comfyui else None
    yield from speed.figures(chosen.rounds, chosen.jobs)
    yield from one_way_speed.figures(chosen.largest, chosen.rounds)
    if python is not None:
        yield from _in_comfyui(chosen, python)


def run(chosen: argparse.Namespace) -> None:
    """Print the table, and write it.

    Raises:
        ValueError: ComfyUI's Python is missing, or what is measured with it failed.
    """
    title = f"PyTorch {torch.__version__}, seconds of the processor, one thread"
    print(title)
    found = list(print_figures(_all(chosen)))
    if chosen.out:
        Path(chosen.out).write_text(f"{title}\n\n{markdown(found)}", encoding="utf-8")
