"""Benchmark `queue`: one ComfyUI runs hundreds of prompts; its memory and its temporary files."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.comfyui.graphs import REFINE, node
from tests.comfyui.server import (
    Launcher,
    Server,
    environment_for,
    find_comfyui,
    find_python,
)

# Width and height of the drafts, px: portraits, panoramas, odd sides. Every twenty prompts are alike in
# their sizes, so that the memory after 20 and after 500 can be compared.
SIZES = (
    (512, 512),
    (640, 427),
    (333, 501),
    (1024, 768),
    (1500, 300),
    (256, 256),
    (801, 1203),
    (97, 640),
    (768, 768),
    (1216, 832),
    (410, 410),
    (1920, 1080),
    (600, 1500),
    (511, 513),
    (320, 240),
    (700, 700),
    (1333, 777),
    (896, 1152),
    (128, 128),
    (1000, 999),
)
MEGAPIXELS = (0.016, 0.03, 0.02, 0.066)
_AT_ONCE = 4  # prompts in the queue
_WINDOW = 10  # prompts over which a figure is the median


@dataclass(frozen=True)
class Sample:
    """What was measured after a prompt."""

    resident: float  # MB of the server's memory
    files: int  # in ComfyUI's temp folder
    size: float  # MB of these files


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("queue", help="memory and temporary files of a ComfyUI under many prompts")
    p.add_argument("--prompts", type=int, default=500, help="prompts to run; default: %(default)s")
    p.add_argument(
        "--early",
        type=int,
        default=20,
        help="the prompt after which memory is compared; default: %(default)s",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of boxes and noise")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Run the prompts in a ComfyUI of their own and print a table (Linux only).

    Raises:
        ValueError: there is no ComfyUI, or the options cannot be used.
    """
    if not 1 <= chosen.early <= chosen.prompts:
        raise ValueError(
            f"--early must be from 1 to --prompts ({chosen.prompts}), got {chosen.early}."
        )
    comfyui = find_comfyui()
    launcher = Launcher(find_python(comfyui), comfyui, environment_for(comfyui))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "comfy"
        launcher.furnish(base)
        write_inputs(base / "input")
        # By default ComfyUI keeps the outputs of past prompts until memory runs short.
        with launcher.running(base, options=["--cache-classic"]) as server:
            begun = time.monotonic()
            samples: list[Sample] = []
            try:
                for sample in measure(server, chosen.prompts, chosen.seed):
                    samples.append(sample)
            finally:  # also of a run that was stopped
                if samples:
                    print_table(samples, chosen.early, time.monotonic() - begun)


def write_inputs(folder: Path) -> None:
    """A draft of each size, and one reference."""
    generator = np.random.default_rng(0)
    for i, (width, height) in enumerate((*SIZES, (640, 480))):
        small = generator.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / (f"draft-{i}.png" if i < len(SIZES) else "reference.png"))


def graph(number: int, generator: random.Random) -> dict[str, Any]:
    """The prompt of that number: a draft of its size with one or two boxes at random places."""
    boxes = [_pair(generator) for _ in range(1 + (number % 5 == 0))]
    settings = REFINE | {
        "seed": number,
        "steps": 1 + number % 3,
        "megapixels": MEGAPIXELS[number % len(MEGAPIXELS)],
        "candidates": 2 if number % 7 == 0 else 1,
        "boxes": json.dumps(boxes),
    }
    return {
        "draft": node("LoadImage", image=f"draft-{number % len(SIZES)}.png"),
        "reference": node("LoadImage", image="reference.png"),
        "refine": node(
            "OmniRefiner_ReferenceRefine",
            draft=["draft", 0],
            reference=["reference", 0],
            **settings,
        ),
        "compare": node("OmniRefiner_Compare", a=["draft", 0], b=["refine", 0]),
    }


def _pair(generator: random.Random) -> dict[str, list[float]]:
    def box() -> list[float]:
        width, height = generator.uniform(0.15, 0.4), generator.uniform(0.15, 0.4)
        x, y = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
        return [x, y, x + width, y + height]

    return {"draft": box(), "reference": box()}


def measure(server: Server, prompts: int, seed: int = 0) -> Iterator[Sample]:
    """Run the prompts, a few at a time in the queue, and measure after each.

    Raises:
        RuntimeError: a prompt ended in an error.
    """
    generator = random.Random(seed)
    waiting: list[str] = []
    for number in range(prompts):
        waiting.append(server.queue(graph(number, generator)))
        if len(waiting) == _AT_ONCE:
            yield _finish(server, waiting.pop(0))
    while waiting:
        yield _finish(server, waiting.pop(0))


def _finish(server: Server, prompt: str) -> Sample:
    entry = server.wait(prompt, 600)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(f"A prompt ended in an error: {server.error(entry)}")
    sizes = [p.stat().st_size for p in (server.base / "temp").glob("*") if p.is_file()]
    return Sample(resident_megabytes(server.pid), len(sizes), sum(sizes) / 1e6)


def resident_megabytes(pid: int) -> float:
    """MB of memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS"))


def _around(samples: list[Sample], end: int) -> float:
    return statistics.median(s.resident for s in samples[max(0, end - _WINDOW) : end])


def print_table(samples: list[Sample], early: int, spent: float) -> None:
    """Memory and temporary files after some of the prompts."""
    count = len(samples)
    print(f"{count} prompts in {spent:.0f} s, {spent / count:.2f} s each; medians of {_WINDOW}")
    print(f"{'prompts':>8}{'memory MB':>12}{'temp files':>12}{'temp MB':>10}")
    early = min(early, count)
    shown = sorted({early, *range(count // 10, count + 1, max(1, count // 10)), count} - {0})
    for end in shown:
        last = samples[end - 1]
        print(f"{end:>8}{_around(samples, end):>12.0f}{last.files:>12}{last.size:>10.1f}")
    change = _around(samples, count) / _around(samples, early) - 1
    print(f"memory after {count} prompts against {early}: {change:+.1%}")
