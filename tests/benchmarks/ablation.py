"""Benchmark `ablate`: the embedded model trained with and without a part of the method."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refiner_core.commands.train_nano import (
    check_least,
    check_one_process,
    open_setup,
    train_stage,
)
from refiner_core.models.core_engine import CoreEngine
from refiner_core.nano import NANO_WEIGHTS
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import Attention
from refiner_core.storage.output_files import atomic_path
from refiner_core.training.compare import Comparison, held_out_scenes, measure, paired, table
from refiner_core.training.open_session import open_session
from refiner_core.training.policy import VelocityNet
from refiner_core.training.reward import make_reward
from refiner_core.training.train import train
from refiner_core.training.train_nano import Setup, grpo_config, sft_config, write_start

# Rewards that see only the region, and only the whole picture.
_REGION = {"whole": 0.0, "patch": 1.0, "pixels": 1.0, "edges": 1.0, "background": 0.0}
_WHOLE = {"whole": 1.0, "patch": 0.0, "pixels": 0.0, "edges": 0.0, "background": 0.0}


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("ablate", help="train the embedded model without parts of the method")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder; an existing run is continued"
    )
    p.add_argument("--data", metavar="DIR", help="triplets; default: drawn in OUT/triplets")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--max-steps", type=int, default=300, help="supervised; default: %(default)s")
    p.add_argument("--batch", type=int, default=8, help="crops per step; default: %(default)s")
    p.add_argument(
        "--epochs", type=int, default=10, help="of reinforcement; 0: none; default: %(default)s"
    )
    p.add_argument("--triplets", type=int, metavar="N", help="triplets to draw; default: 5120")
    p.add_argument("--count", type=int, default=256, help="held-out scenes; default: %(default)s")
    p.add_argument("--workers", type=int, default=2, help="processes that draw and crop")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Train the variants and print the tables, which are also written to OUT/ablation.md."""
    least = {"max_steps": 1, "batch": 1, "epochs": 0, "count": 2, "workers": 1, "seed": 0}
    check_least(chosen, least)
    check_one_process("ablate")
    out = Path(chosen.out)
    setup = open_setup(chosen, out)
    budget = Budget(chosen.max_steps, chosen.batch, chosen.epochs)
    ablations = ablate(out, budget, setup, chosen.count, lambda a: print(describe(a, chosen.count)))
    with atomic_path(out / "ablation.md") as temporary:
        temporary.write_text("\n".join(describe(a, chosen.count) for a in ablations))


@dataclass(frozen=True)
class Budget:
    """How long the variants are trained."""

    steps: int  # of supervised training
    batch: int  # crops per step
    epochs: int  # of reinforcement


@dataclass(frozen=True)
class Ablation:
    """The comparison of a pair of variants."""

    title: str
    names: tuple[str, str]  # of the variant without and with the part
    comparisons: list[Comparison]


def supervised(
    setup: Setup, budget: Budget, start: Path, out: Path, attention: Attention, masked: bool
) -> CoreEngine:
    """An untrained nano after the supervised steps of the budget."""
    over = {
        "loss": {"masked": masked},
        "optimizer": {"ema": 0.98, "rate": 1e-3},
        "run": {
            "batch": budget.batch,
            "micro_batch": budget.batch,
            "save_every": 50,
            "validate_every": 0,
        },
    }
    config = sft_config(setup, start, budget.steps, over)
    session = open_session(
        config, setup.triplets, out, setup.device, pixels=True, cache=setup.cache
    )
    assert isinstance(session.policy.net, VelocityNet)
    session.policy.net.attention = attention
    return load_nano(path=train(config, session))


def reinforced(setup: Setup, budget: Budget, out: Path, rewards: dict[str, float]) -> CoreEngine:
    """The embedded nano after the epochs of the budget."""
    over: dict[str, Any] = {
        "objective": {"rewards": rewards},
        "run": {"save_every": 1, "validate_every": 0},
    }
    config = grpo_config(setup, NANO_WEIGHTS, budget.epochs, over)
    reward = make_reward(config.objective, torch.device("cpu"))
    return load_nano(path=train_stage(setup, config, out, reward))


def ablate(
    out: Path, budget: Budget, setup: Setup, count: int, report: Callable[[Ablation], None]
) -> list[Ablation]:
    """Train all variants (each resumes) and compare them on `count` held-out scenes.

    Args:
        report: called with each comparison as soon as it is made.
    """
    start = write_start(out / "start.safetensors", setup)
    cases = held_out_scenes(count, setup.workers)

    def one(name: str, attention: Attention, masked: bool) -> dict[str, np.ndarray]:
        engine = supervised(setup, budget, start, out / name, attention, masked)
        return measure(engine, cases, VelocityNet(engine.model, attention))

    ablations: list[Ablation] = []

    def pair(title: str, names: tuple[str, str], rows: Sequence[dict[str, np.ndarray]]) -> None:
        ablations.append(Ablation(title, names, paired(rows[0], rows[1], setup.seed)))
        report(ablations[-1])

    with torch.random.fork_rng(devices=[]):
        whole = one("as-it-is", "both ways", True)
        plain = one("plain-loss", "both ways", False)
        pair("masked loss", ("plain", "masked"), (plain, whole))
        narrow = one("one-way", "one way", True)
        pair("attention", ("one-way", "both ways"), (narrow, whole))
        if budget.epochs:
            rows = [
                measure(reinforced(setup, budget, out / name, rewards), cases)
                for name, rewards in (("whole-reward", _WHOLE), ("patch-reward", _REGION))
            ]
            pair("reward", ("whole picture", "region"), rows)
    return ablations


def describe(ablation: Ablation, cases: int) -> str:
    """One comparison as Markdown."""
    return f"### {ablation.title}\n\n{table(ablation.comparisons, ablation.names, cases)}\n"
