"""Benchmark `objectives`: ways to learn further from the embedded model, with equal time each.

Every row starts from the embedded weights and trains for the same number of seconds in a process of its
own; more supervised training is the control that the others are compared with. On a CPU these are
seconds of the processor, so that other programs change nothing; on a GPU they are those of the clock. A
row that was interrupted continues with the time that is left, and one that is finished is not repeated;
with more `--seconds` than before, every row continues.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch

from refiner_core.commands.train_nano import check_least, check_one_process, open_setup
from refiner_core.data.preferences import Preference, Repair
from refiner_core.data.shards import TripletSet
from refiner_core.data.splits import split_data
from refiner_core.data.triplets import Triplet, mask_tensor, picture_tensor
from refiner_core.images.tensors import to_float
from refiner_core.nano import NANO_WEIGHTS
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from refiner_core.scoring.structural import StructuralScorer
from refiner_core.storage.output_files import atomic_path
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.config import GrpoConfig, RewardSettings
from refiner_core.training.config_dpo import DPO_PRESETS, DpoConfig
from refiner_core.training.config_unrolled import UNROLLED_PRESETS, UnrolledConfig
from refiner_core.training.crop_triplet import check_worth, crop_triplet
from refiner_core.training.distributed import Processes
from refiner_core.training.open_session import open_session
from refiner_core.training.reward import make_reward
from refiner_core.training.session import CHECKPOINT, REFINER
from refiner_core.training.settings import build, merged
from refiner_core.training.train import Interruption, train
from refiner_core.training.train_nano import Setup, grpo_config, sft_config
from tests.benchmarks.objectives_table import CONTROL, START, Cases, Cost, Found, describe
from tests.tiny_training import write_preference

_ENDLESS = 10**6  # steps: time ends a row
_ORDERED = 8  # repairs per case
_HELD_OUT = 0  # of the triplets: scenes of their own are measured
# The control's rate was chosen on validation triplets: at 1e-5, that of stage 2, it only gets worse.
_RATE = {"optimizer": {"rate": 2e-6, "schedule": "constant", "warmup": 5, "ema": 0.9}}
_OFTEN = {"run": {"save_every": 5, "validate_every": 0}}
_GRPO = {
    "rollout": {"group_mean": False},
    "objective": {"algorithm": "grpo", "kl": 0.01, "kl_to": "ref"},
}
_REGION = {"whole": 0.0, "patch": 1.0, "pixels": 1.0, "edges": 1.0, "background": 0.1}


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("objectives", help="compare ways to learn, with equal time each")
    p.add_argument("--out", required=True, metavar="DIR", help="an existing run is continued")
    p.add_argument("--data", metavar="DIR", help="triplets; default: drawn in OUT/triplets")
    p.add_argument("--rows", default=",".join(ROWS), metavar="A,B,...", help="default: %(default)s")
    p.add_argument(
        "--seconds",
        type=int,
        default=3600,
        help="of each row, on a CPU of the processor; default: %(default)s",
    )
    p.add_argument("--seeds", type=int, default=2, help="runs of each row; default: %(default)s")
    p.add_argument("--count", type=int, default=256, help="held-out scenes; default: %(default)s")
    p.add_argument("--real", metavar="DIR", help="further cases with targets, as for evaluate")
    p.add_argument(
        "--text",
        type=int,
        default=256,
        metavar="N",
        help="scenes in which lettering is read; 0: none, and it can be added when all rows are done; "
        "default: %(default)s",
    )
    p.add_argument("--orders", type=int, default=32, help="cases ordered for dpo")
    p.add_argument(
        "--groups", type=int, default=16, help="per epoch of grpo and nft; default: %(default)s"
    )
    p.add_argument("--triplets", type=int, metavar="N", help="triplets to draw; default: 5120")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--workers", type=int, default=2, help="processes that draw and crop")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=run)


def row_configs(setup: Setup, groups: int = 16) -> dict[str, Any]:
    """The settings of every row by its name."""
    shared = {
        "model": {"base": str(NANO_WEIGHTS)},
        "data": {"least_agreement": 19.0, "least_gain": 1.0, "held_out": _HELD_OUT},
        "run": {"max_steps": _ENDLESS, "seed": setup.seed, **_OFTEN["run"]},
    }
    common = {**_OFTEN, "data": {"held_out": _HELD_OUT}}
    supervised = merged({**_RATE, **common}, {"data": {"variants": 1}})

    def unrolled(steps: int | None) -> UnrolledConfig:
        chosen = {
            "unroll": {"gradient_steps": steps},
            "objective": {"rewards": _REGION, "patience": 0},
        }
        return build(UnrolledConfig, merged(merged(UNROLLED_PRESETS["nano"], shared), chosen))

    def reinforced(over: dict[str, Any]) -> GrpoConfig:
        own = merged(common, {"rollout": {"groups": groups}})
        return grpo_config(setup, NANO_WEIGHTS, _ENDLESS, merged(own, over))

    plain = {**shared, "data": {"held_out": _HELD_OUT}}
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
    """Ends a run after some seconds, counted over all its starts.

    Steps that were lost with a process that died are not counted, since they are taken again. The run
    ends at the step that comes closest to the limit.
    """

    raised: ClassVar[tuple[type[BaseException], ...]] = (TimeUpError,)

    def __init__(
        self, path: Path, seconds: float, done: int, clock: Callable[[], float] = time.process_time
    ) -> None:
        """Continue after `done` steps with the seconds that `path` has for them."""
        super().__init__(Processes())
        self.path, self.seconds, self._clock = path, seconds, clock
        self.steps: list[float] = json.loads(path.read_text())[:done] if path.is_file() else []
        self._last = clock()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return sum(self.steps)

    @property
    def is_up(self) -> bool:
        """Whether another step of average length would end farther from the limit than this one."""
        return bool(self.steps) and self.spent * (1 + 0.5 / len(self.steps)) >= self.seconds

    def requested(self) -> bool:
        """Whether the time is up; called after every step, whose seconds are noted."""
        now = self._clock()
        self.steps.append(now - self._last)
        self._last = now
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.steps))
        return self.is_up

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
    groups: int = 16


def finished(row: Row) -> Cost | None:
    """What a row cost that has been trained for its time; None if that is not so."""
    done = row.out / "row.json"
    cost = Cost(**json.loads(done.read_text())) if done.is_file() else None
    return None if cost is None or cost.asked < row.seconds else cost


def train_row(row: Row) -> Cost:
    """Train a row for its time; what it cost."""
    torch.set_num_threads(1)
    config = row_configs(row.setup, row.groups)[row.name]
    data = row.orders if isinstance(config, DpoConfig) else row.setup.triplets
    session = open_session(
        config, data, row.out, row.setup.device, pixels=True, cache=row.setup.cache
    )
    objective = getattr(config, "objective", None)
    reward = None
    if isinstance(objective, RewardSettings):
        differentiable = isinstance(config, UnrolledConfig)
        reward = make_reward(objective, session.policy.device, differentiable=differentiable)
    checkpoint = row.out / CHECKPOINT
    taken = read_facts(checkpoint)["step"] if checkpoint.is_file() else 0
    clock = time.process_time if session.policy.device.type == "cpu" else time.perf_counter
    limit = TimeLimit(row.out / "seconds.json", row.seconds, taken, clock)
    if not limit.is_up:
        with contextlib.suppress(TimeUpError):
            train(config, session, reward, interruption=limit)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    updates = read_facts(checkpoint)["updates"]
    cost = Cost(row.seconds, limit.spent, updates, memory)
    with atomic_path(row.out / "row.json") as temporary:
        temporary.write_text(json.dumps(asdict(cost)))
    return cost


def _usable(setup: Setup) -> Iterator[Triplet]:
    """The training triplets that the settings of the rows do not leave out."""
    triplets = TripletSet(setup.triplets)
    train_part, _ = split_data(triplets, _HELD_OUT)
    settings = row_configs(setup)[CONTROL].data
    for i in train_part:
        with contextlib.suppress(ValueError):
            pixels, _ = crop_triplet(triplets[i], NANO, settings, 0)
            check_worth(pixels, settings)
            yield triplets[i]


def draw_orders(folder: Path, setup: Setup, count: int) -> None:
    """Write orders of eight repairs of training cases, by their structural distance to the target.

    The cases are among those that the other rows train with. The time that this takes is not counted.
    """
    if len(list(folder.glob("*"))) >= count:
        return
    engine, scorer = load_nano(), StructuralScorer()
    for t in islice(_usable(setup), count):
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
    least = {
        "seconds": 1,
        "seeds": 1,
        "count": 2,
        "text": 0,
        "orders": 1,
        "workers": 1,
        "seed": 0,
        "groups": 4,
    }
    check_least(chosen, least)
    check_one_process("objectives")
    names = [n for n in chosen.rows.split(",") if n]
    unknown = sorted(set(names) - set(ROWS))
    if unknown or CONTROL not in names:
        raise ValueError(
            f"--rows takes {CONTROL}, which is the control, and any of {', '.join(ROWS)}; got "
            f"{chosen.rows!r}."
        )
    out = Path(chosen.out)
    setup = open_setup(chosen, out)
    if "dpo" in names:
        draw_orders(out / "orders", setup, chosen.orders)
    cases = Cases(out, chosen.count, chosen.workers, chosen.real, chosen.text)
    found = [Found(START, None, Cost(0, 0, 0, 0), cases.measure(NANO_WEIGHTS, out / START))]
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        own = Setup(setup.triplets, setup.cache, setup.device, setup.workers, seed)
        for name in sorted(names, key=lambda n: n != CONTROL):  # the control first
            folder = out / f"{name}-{seed}"
            row = Row(name, folder, chosen.seconds, own, out / "orders", chosen.groups)
            cost = finished(row) or _in_a_process(row)
            found.append(Found(name, seed, cost, cases.measure(folder / REFINER, folder)))
            text = describe(found, chosen)
            print(text, flush=True)
            with atomic_path(out / "objectives.md") as temporary:
                temporary.write_text(text, encoding="utf-8")


def _in_a_process(row: Row) -> Cost:
    """Train a row in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train_row, row).result()
