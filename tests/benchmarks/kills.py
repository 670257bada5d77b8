"""Benchmark `kills`: commands are killed at random moments and run again, until they are done."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.bad_inputs import good_mask, good_picture

ROOT = Path(__file__).resolve().parents[2]
_COMMAND = ("-m", "refiner_core")
_CASES = 8
_TRAINED = {"sft": 300, "grpo": 30, "nft": 30, "reward": 100, "dpo": 150}  # steps of each objective


@dataclass(frozen=True)
class Work:
    """A command that can be resumed; `{}` in an argument is the folder that it writes to."""

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]  # patterns of the files that every run has to leave alike


def works(cases: Path) -> list[Work]:
    """The commands, on a folder of cases."""
    quick = ("--steps", "2")
    return [
        Work(
            "refine",
            (*_COMMAND, "refine", "--jobs", str(cases), "--out", "{}", *quick),
            ("*.png",),
        ),
        Work(
            "evaluate",
            (*_COMMAND, "evaluate", "--data", str(cases), "--out", "{}", *quick),
            ("table.csv", "cases/*/*.png"),
        ),
        Work(
            "data",
            (
                *_COMMAND,
                "data",
                "build",
                "--out",
                "{}",
                "--count",
                "60",
                "--shard",
                "5",
                "--size",
                "96",
            ),
            ("*.tar", "*.jsonl", "build.json"),
        ),
        *(
            Work(
                f"train {stage}",
                ("-m", "tests.tiny_training", stage, "{}", str(steps), "run.save_every=7"),
                ("*.safetensors",),
            )
            for stage, steps in _TRAINED.items()
        ),
    ]


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("kills", help="commands that are killed and resumed (Linux, macOS)")
    p.add_argument(
        "commands",
        nargs="*",
        help="of refine, evaluate, data and train (or one of its objectives: 'train dpo'); default: all",
    )
    p.add_argument("--kills", type=int, default=6, help="of each command; default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="seed of the moments")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print a line for each command.

    Raises:
        RuntimeError: a command ended in an error.
    """
    generator = random.Random(chosen.seed)
    print(
        f"{'command':<13}{'seconds':>9}{'kills':>7}{'results':>9}{'different':>11}{'left over':>11}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cases(folder / "cases")
        for work in works(folder / "cases"):
            if chosen.commands and not {work.name, work.name.split()[0]} & set(chosen.commands):
                continue
            whole, resumed = (folder / f"{work.name}-{kind}" for kind in ("whole", "resumed"))
            seconds = _run(work, whole, None) or 0.0
            kills = _killed(work, resumed, seconds, chosen.kills, generator)
            results = {f.relative_to(whole) for p in work.results for f in whole.glob(p)}
            different = [f for f in results if not same(whole / f, resumed / f)]
            hidden = [f for f in resumed.rglob(".*") if f.is_file()]
            print(
                f"{work.name:<13}{seconds:>9.1f}{kills:>7}{len(results):>9}{len(different):>11}"
                f"{len(hidden):>11}",
                flush=True,
            )


def write_cases(folder: Path) -> None:
    """Drafts of noise with a mask in the middle, and a reference each."""
    for number in range(_CASES):
        case = folder / f"case-{number}"
        case.mkdir(parents=True)
        for role in ("draft", "reference", "target"):
            (case / f"{role}.png").write_bytes(good_picture())
        (case / "mask.png").write_bytes(good_mask())
        (case / "info.json").write_text(json.dumps({"number": number}))


def _killed(work: Work, out: Path, seconds: float, kills: int, generator: random.Random) -> int:
    """Kill the command again and again, then let it end; how often it was running when killed."""
    done = 0
    for _ in range(kills):
        if _run(work, out, generator.uniform(0.1, 0.6) * seconds) is None:
            done += 1
        else:  # it was quicker: from the start again
            shutil.rmtree(out)
    _run(work, out, None)
    return done


def _run(work: Work, out: Path, until: float | None) -> float | None:
    """Run the command for `until` seconds at most; its seconds, or None if it was killed."""
    command = [sys.executable, *(a.replace("{}", str(out)) for a in work.arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        said = process.communicate(timeout=until)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode:
        raise RuntimeError(f"{work.name} ended with {process.returncode}: {said.decode()[-2000:]}")
    return time.monotonic() - begun


def same(a: Path, b: Path) -> bool:
    """Whether two files hold the same: all bytes, or all weights (metadata hold times)."""
    if not b.is_file():
        return False
    if a.suffix != ".safetensors":
        return a.read_bytes() == b.read_bytes()
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())
