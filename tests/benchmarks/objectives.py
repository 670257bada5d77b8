"""Benchmark `objectives`: ways to learn further from the embedded model, with equal wall time each.

Every row starts from the embedded weights and trains for the same number of seconds in a process of its
own; more supervised training is the control that the others are compared with. A row that was
interrupted continues with the time that is left, and one that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch

from refiner_core.commands.train_nano import check_least, check_one_process, open_setup
from refiner_core.data.preferences import Preference, Repair, write_preference
from refiner_core.data.shards import TripletSet
from refiner_core.data.splits import split_data
from refiner_core.data.triplets import mask_tensor, picture_tensor
from refiner_core.images.tensors import to_float
from refiner_core.nano import NANO_WEIGHTS
from refiner_core.nano.nano_engine import load_nano
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from refiner_core.scoring.structural import StructuralScorer
from refiner_core.storage.output_files import atomic_path
from refiner_core.training.compare import held_out_scenes, measure, paired
from refiner_core.training.config import GrpoConfig, RewardSettings
from refiner_core.training.config_dpo import DPO_PRESETS, DpoConfig
from refiner_core.training.config_unrolled import UNROLLED_PRESETS, UnrolledConfig
from refiner_core.training.distributed import Processes
from refiner_core.training.open_session import open_session
from refiner_core.training.reward import make_reward
from refiner_core.training.settings import build, merged
from refiner_core.training.train import Interruption, train
from refiner_core.training.train_nano import Setup, grpo_config, sft_config

_ENDLESS = 10**6  # steps: time ends a row
_ORDERED = 8  # repairs per case
_RATE = {"optimizer": {"rate": 1e-5, "schedule": "constant", "warmup": 0, "ema": 0.9}}
_OFTEN = {"run": {"save_every": 5, "validate_every": 0}}
_GRPO = {
    "rollout": {"group_mean": False},
    "objective": {"algorithm": "grpo", "kl": 0.01, "kl_to": "ref"},
}
_REGION = {"whole": 0.0, "patch": 1.0, "pixels": 1.0, "edges": 1.0, "background": 0.1}


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("objectives", help="compare ways to learn, with equal wall time each")
    p.add_argument("--out", required=True, metavar="DIR", help="an existing run is continued")
    p.add_argument("--data", metavar="DIR", help="triplets; default: drawn in OUT/triplets")
    p.add_argument("--rows", default=",".join(ROWS), metavar="A,B,...", help="default: %(default)s")
    p.add_argument("--seconds", type=int, default=600, help="of each row; default: %(default)s")
    p.add_argument("--seeds", type=int, default=2, help="runs of each row; default: %(default)s")
    p.add_argument("--count", type=int, default=256, help="held-out scenes; default: %(default)s")
    p.add_argument("--orders", type=int, default=32, help="cases ordered for dpo")
    p.add_argument("--triplets", type=int, metavar="N", help="triplets to draw; default: 5120")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--workers", type=int, default=2, help="processes that draw and crop")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=run)


def row_configs(setup: Setup) -> dict[str, Any]:
    """The settings of every row by its name."""
    shared = {
        "model": {"base": str(NANO_WEIGHTS)},
        "data": {"least_agreement": 19.0, "least_gain": 1.0, "held_out": 64},
        "run": {"max_steps": _ENDLESS, "seed": setup.seed, **_OFTEN["run"]},
    }
    supervised = {**_RATE, **_OFTEN, "data": {"variants": 1}}

    def unrolled(steps: int | None) -> UnrolledConfig:
        chosen = {
            "unroll": {"gradient_steps": steps},
            "objective": {"rewards": _REGION, "patience": 0},
        }
        return build(UnrolledConfig, merged(merged(UNROLLED_PRESETS["nano"], shared), chosen))

    def reinforced(over: dict[str, Any]) -> GrpoConfig:
        return grpo_config(setup, NANO_WEIGHTS, _ENDLESS, merged(_OFTEN, over))

    plain = {**shared, "data": {"held_out": 0}}
    return {
        "sft": sft_config(setup, NANO_WEIGHTS, _ENDLESS, supervised),
        "grpo": reinforced(_GRPO),
        "nft": reinforced({}),
        "nft-places": reinforced({"objective": {"map_share": 0.5}}),
        "reward-1": unrolled(1),
        "reward-all": unrolled(None),
        "dpo": build(DpoConfig, merged(merged(DPO_PRESETS["nano"], plain), _OFTEN)),
    }


ROWS = ("sft", "grpo", "nft", "nft-places", "reward-1", "reward-all", "dpo")


class TimeUpError(Exception):
    """The time of a row is spent."""


class TimeLimit(Interruption):
    """Ends a run after some seconds, counted over all its starts."""

    raised: ClassVar[tuple[type[BaseException], ...]] = (TimeUpError,)

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(Processes())
        self.path, self.seconds = path, seconds
        self._before = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
        self._start = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._start

    def requested(self) -> bool:
        """Whether the time is up; also notes how much is spent."""
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps({"seconds": self.spent}))
        return self.spent >= self.seconds

    def stop(self) -> NoReturn:
        """End the run, whose state is saved."""
        raise TimeUpError


@dataclass(frozen=True)
class Row:
    """A row to train: its name, its settings' name, and where."""

    name: str
    out: Path
    seconds: float
    setup: Setup
    orders: Path


def train_row(row: Row) -> dict[str, float]:
    """Train a row for its time; seconds, steps, and the peak of memory in GB."""
    torch.set_num_threads(1)
    done = row.out / "row.json"
    if done.is_file():
        return json.loads(done.read_text())
    config = row_configs(row.setup)[row.name]
    data = row.orders if isinstance(config, DpoConfig) else row.setup.triplets
    cache = None if isinstance(config, DpoConfig) else row.setup.cache
    session = open_session(config, data, row.out, row.setup.device, pixels=True, cache=cache)
    objective = getattr(config, "objective", None)
    reward = None
    if isinstance(objective, RewardSettings):
        differentiable = isinstance(config, UnrolledConfig)
        reward = make_reward(objective, session.policy.device, differentiable=differentiable)
    limit = TimeLimit(row.out / "spent.json", row.seconds)
    with contextlib.suppress(TimeUpError):
        train(config, session, reward, interruption=limit)
    steps = len((row.out / "log.jsonl").read_text().splitlines())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = {"seconds": limit.spent, "log rows": float(steps), "GB": memory}
    done.write_text(json.dumps(found))
    return found


def draw_orders(folder: Path, setup: Setup, count: int) -> None:
    """Write orders of eight repairs of training cases, by their structural distance to the target.

    The time that this takes is not counted.
    """
    triplets = TripletSet(setup.triplets)
    train_part, _ = split_data(triplets, 64)
    engine, scorer = load_nano(), StructuralScorer()
    for i in train_part[:count]:
        t = triplets[i]
        if t.target is None or (folder / t.id).is_dir():
            continue
        masks = None if t.reference_mask is None else mask_tensor(t.reference_mask)
        mask, target = mask_tensor(t.mask), to_float(picture_tensor(t.target))
        repairs: list[tuple[float, np.ndarray]] = []
        for seed in range(_ORDERED):
            request = RefineRequest(
                picture_tensor(t.draft),
                (picture_tensor(t.reference),),
                mask,
                (masks,),
                RefineOptions(seed=seed),
            )
            image = refine(engine, request).image
            distance = float(scorer.distance(to_float(image), target, mask))
            repairs.append((distance, image[0].permute(1, 2, 0).contiguous().numpy()))
        repairs.sort(key=lambda r: r[0])
        ranked = tuple(Repair(rank, pixels) for rank, (_, pixels) in enumerate(repairs, 1))
        write_preference(
            folder, Preference(t.id, t.draft, t.reference, t.mask, ranked, t.reference_mask)
        )


def run(chosen: argparse.Namespace) -> None:
    """Train the rows and print the table, which is also written to OUT/objectives.md."""
    least = {"seconds": 1, "seeds": 1, "count": 2, "orders": 1, "workers": 1, "seed": 0}
    check_least(chosen, least)
    check_one_process("objectives")
    names = [n for n in chosen.rows.split(",") if n]
    unknown = sorted(set(names) - set(ROWS))
    if unknown or "sft" not in names:
        raise ValueError(
            f"--rows takes sft, which is the control, and any of {', '.join(ROWS)}; got {chosen.rows!r}."
        )
    out = Path(chosen.out)
    setup = open_setup(chosen, out)
    if "dpo" in names:
        draw_orders(out / "orders", setup, chosen.orders)
    cases = held_out_scenes(chosen.count, chosen.workers)
    rows: list[tuple[str, dict[str, float], dict[str, np.ndarray]]] = []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        own = Setup(setup.triplets, setup.cache, setup.device, setup.workers, seed)
        for name in names:
            row = Row(name, out / f"{name}-{seed}", chosen.seconds, own, out / "orders")
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned) as pool:
                cost = pool.submit(train_row, row).result()
            engine = load_nano(path=row.out / "refiner.safetensors")
            rows.append((f"{name}, seed {seed}", cost, measure(engine, cases)))
            text = describe(rows, chosen)
            print(text)
            with atomic_path(out / "objectives.md") as temporary:
                temporary.write_text(text, encoding="utf-8")


def describe(
    rows: list[tuple[str, dict[str, float], dict[str, np.ndarray]]], chosen: argparse.Namespace
) -> str:
    """The gain of every row over the control of the same seed, with its interval, as Markdown."""
    metrics = list(rows[0][2])
    lines = [
        f"{chosen.count} held-out cases, {chosen.seconds} s each; gain over sft (positive is better) with "
        "its 95 % paired bootstrap interval.",
        "",
        "| row | s | GB | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 3) + "|",
    ]
    controls: dict[str, dict[str, np.ndarray]] = {}
    for name, cost, found in rows:
        kind, _, seed = name.partition(",")
        if kind == "sft":
            controls[seed] = found
        cells = [
            f"{c.b:.5f}" if kind == "sft" else f"{c.gain:+.5f} [{c.low:+.5f}, {c.high:+.5f}]"
            for c in paired(controls[seed], found)
        ]
        lines.append(
            f"| {name} | {cost['seconds']:.0f} | {cost['GB']:.2f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"
