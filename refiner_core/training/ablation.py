"""Does a part of the method matter? Nano with and without it, from the same start, seed and cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.core_engine import CoreEngine
from ..models.kontext import Conditioning, velocity
from ..nano import NANO_WEIGHTS
from ..nano.nano_engine import load_nano
from .compare import Comparison, held_out_scenes, measure, paired, table
from .policy import VelocityNet
from .train_nano import Setup, grpo_config, reinforce, sft_config, supervise, write_start

# What the region alone is judged by, and the whole picture alone.
_REGION = {"whole": 0.0, "patch": 1.0, "pixels": 1.0, "edges": 1.0, "background": 0.0}
_WHOLE = {"whole": 1.0, "patch": 0.0, "pixels": 0.0, "edges": 0.0, "background": 0.0}


class OneWayNet(VelocityNet):
    """The transformer whose clean tokens do not see the noisy ones."""

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return velocity(self.transformer, x, t, conditioning, "one way")


@dataclass(frozen=True)
class Budget:
    """`steps` of supervised training in batches of `batch` crops; `epochs` of reinforcement."""

    steps: int
    batch: int
    epochs: int


@dataclass(frozen=True)
class Ablation:
    """`title` of the pair, `names` of the variant without and with the part, and what was found."""

    title: str
    names: tuple[str, str]
    found: list[Comparison]


def supervised(
    setup: Setup, budget: Budget, start: Path, out: Path, net: type[VelocityNet], masked: bool
) -> CoreEngine:
    """Nano from its positional start after the budget's steps."""
    over = {
        "loss": {"masked": masked}, "optimizer": {"ema": 0.98, "rate": 1e-3},
        "run": {
            "batch": budget.batch, "micro_batch": budget.batch, "save_every": 50, "sample_every": 0,
        },
    }  # fmt: skip
    config = sft_config(setup, start, budget.steps, over)
    return load_nano(path=supervise(setup, config, out, net))


def reinforced(setup: Setup, budget: Budget, out: Path, rewards: dict[str, float]) -> CoreEngine:
    """The embedded nano after the budget's epochs."""
    over: dict[str, Any] = {
        "objective": {"rewards": rewards}, "run": {"save_every": 1, "sample_every": 0},
    }  # fmt: skip
    config = grpo_config(setup, NANO_WEIGHTS, budget.epochs, over)
    return load_nano(path=reinforce(setup, config, out))


def ablate(
    out: Path, budget: Budget, setup: Setup, count: int, tell: Callable[[Ablation], None]
) -> list[Ablation]:
    """Train every variant (each resumes) and compare on `count` held-out scenes.

    Args:
        tell: called with every comparison as soon as it is there.
    """
    start = write_start(out / "start.safetensors", setup)
    cases = held_out_scenes(count, setup.workers)

    def one(name: str, net: type[VelocityNet], masked: bool) -> dict[str, np.ndarray]:
        engine = supervised(setup, budget, start, out / name, net, masked)
        return measure(engine, cases, net(engine.model))

    found: list[Ablation] = []

    def pair(title: str, names: tuple[str, str], rows: Sequence[dict[str, np.ndarray]]) -> None:
        found.append(Ablation(title, names, paired(rows[0], rows[1], setup.seed)))
        tell(found[-1])

    with torch.random.fork_rng(devices=[]):
        whole = one("as-it-is", VelocityNet, True)
        plain = one("plain-loss", VelocityNet, False)
        pair("masked loss", ("plain", "masked"), (plain, whole))
        narrow = one("one-way", OneWayNet, True)
        pair("attention", ("one-way", "both ways"), (narrow, whole))
        if budget.epochs:
            rows = [
                measure(reinforced(setup, budget, out / name, rewards), cases)
                for name, rewards in (("whole-reward", _WHOLE), ("patch-reward", _REGION))
            ]
            pair("reward", ("whole picture", "region"), rows)
    return found


def describe(ablation: Ablation, cases: int) -> str:
    """One comparison as Markdown."""
    return f"### {ablation.title}\n\n{table(ablation.found, ablation.names, cases)}\n"
