"""Benchmark `figures`: every figure of speed from one run, in one table.

Seconds are the processor's, with one thread, except where a title says "by the clock"; the ratios
compare what was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.comfyui.server import (
    ComfyUIMissingError,
    environment_for,
    find_comfyui,
    find_python,
    write_tiny_models,
)

from . import one_way_speed, speed
from .measuring import Figure, NotMeasuredError, markdown, print_figures

_CROP_AND_STITCH = "CROP_AND_STITCH"  # variable of the environment


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("figures", help="every figure of speed in one table")
    p.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help="default: %(default)s")
    p.add_argument("--rounds", type=int, default=3, help="timed runs; the median is reported")
    p.add_argument("--jobs", type=int, default=24, help="repairs beside single calls")
    p.add_argument("--largest", type=int, default=1024, help="px, of the crops in `steps`")
    p.add_argument("--base", metavar="DIR", type=Path, help="a checkout of what `start` was before")
    p.add_argument("--comfyui", metavar="DIR", help="ComfyUI; default: the one that tests find")
    p.add_argument("--python", metavar="FILE", help="ComfyUI's Python; default: that of its .venv")
    p.add_argument(
        "--crop-and-stitch",
        metavar="DIR",
        default=os.environ.get(_CROP_AND_STITCH),
        help=f"a checkout of ComfyUI-Inpaint-CropAndStitch; default: ${_CROP_AND_STITCH}",
    )
    p.add_argument("--out", metavar="FILE", help="also write the table as Markdown")
    p.set_defaults(run=run)


def _comfyui(chosen: argparse.Namespace) -> tuple[Path, Path]:
    """ComfyUI's folder and its Python.

    Raises:
        NotMeasuredError: there is none; says what is missing.
    """
    try:
        folder = Path(chosen.comfyui) if chosen.comfyui else find_comfyui()
        return folder, Path(chosen.python) if chosen.python else find_python(folder)
    except ComfyUIMissingError as e:
        raise NotMeasuredError(str(e)) from e


def _run(python: Path, folder: Path, *arguments: str | Path) -> None:
    """Run ComfyUI's Python in this checkout.

    Raises:
        ValueError: it failed; holds the end of what it said.
    """
    command = [str(python), *map(str, arguments)]
    environment = environment_for(folder) | {"PYTHONPATH": str(speed.ROOT)}
    done = subprocess.run(command, cwd=speed.ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _in_comfyui(chosen: argparse.Namespace) -> Iterator[Figure]:
    """What `comfyui` measures, with ComfyUI's own Python."""
    folder, python = _comfyui(chosen)
    other = ("--crop-and-stitch", chosen.crop_and_stitch) if chosen.crop_and_stitch else ()
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary, "figures.json")
        command = ("-m", "tests.benchmarks", "comfyui", "--comfyui", folder, *other)
        _run(python, folder, *command, "--rounds", str(chosen.rounds), "--json", found)
        yield from (Figure(*figure) for figure in json.loads(found.read_text()))
    if not other:
        raise NotMeasuredError(
            "no ComfyUI-Inpaint-CropAndStitch to compare with: name a checkout with --crop-and-stitch"
        )


def _counts(chosen: argparse.Namespace) -> Iterator[Figure]:
    """Text encodes and loads of eight pictures with two regions, beside a run for each region."""
    folder, python = _comfyui(chosen)
    scripts = speed.ROOT / "tests" / "comfyui"
    with tempfile.TemporaryDirectory() as temporary:
        models, out = Path(temporary), Path(temporary, "runs.json")
        for part in ("diffusion_models", "text_encoders", "vae", "loras", "clip_vision"):
            (models / part).mkdir()
        _run(python, folder, scripts / "tiny_published.py", models)
        write_tiny_models(models)
        _run(
            python,
            folder,
            scripts / "count_models.py",
            models,
            models / "vae/tiny_ae.safetensors",
            out,
        )
        together, *_, apart = json.loads(out.read_text())
    title, what = "8 images x 2 regions in ComfyUI", "a run for each region"
    yield Figure(f"{title}: text encodes", together["encoded"], apart["encoded"], what, "")
    yield Figure(f"{title}: model loads", len(together["models"]), len(apart["models"]), what, "")


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
    "start": lambda chosen: speed.start_up(chosen.rounds, chosen.base),
    "jobs": lambda chosen: speed.many_jobs(chosen.jobs),
    "size": lambda chosen: speed.picture_size(chosen.rounds),
    "alignment": lambda chosen: speed.alignment(chosen.rounds),
    "counts": _counts,
    "comfyui": _in_comfyui,
    "steps": lambda chosen: one_way_speed.figures(chosen.largest, chosen.rounds),
}


def _chosen_parts(only: str) -> list[str]:
    parts = only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}.")
    return parts


def run(chosen: argparse.Namespace) -> None:
    """Print the table part by part, and write it.

    Raises:
        ValueError: a part is unknown or failed, or ComfyUI's Python or the other checkout is missing.
    """
    parts = _chosen_parts(chosen.only)
    for path in (chosen.python, chosen.base):
        if path and not Path(path).exists():
            raise ValueError(f"There is no {path}.")
    if chosen.comfyui and not chosen.python:
        find_python(Path(chosen.comfyui))
    title = f"PyTorch {torch.__version__}, seconds of the processor, one thread"
    print(title)
    found: list[Figure] = []
    missing: list[str] = []
    for part in parts:
        begun = time.perf_counter()
        try:
            for figure in print_figures(PARTS[part](chosen)):
                found.append(figure)
        except NotMeasuredError as e:
            missing.append(f"Not measured ({part}): {e}.")
            print(missing[-1])
        print(f"{part}: {time.perf_counter() - begun:.0f} s by the clock", flush=True)
        if chosen.out:
            text = "\n".join([title, "", markdown(found), *missing])
            Path(chosen.out).write_text(text, encoding="utf-8")
