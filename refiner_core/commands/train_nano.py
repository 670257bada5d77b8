"""`omnirefiner train nano`: makes the embedded model again, or a better one; and its evaluation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import show_progress

if TYPE_CHECKING:
    from ..training.train_nano import Setup

_TRIPLETS = 5120


def add_parsers(kinds: Any) -> None:
    """Add both commands' options."""
    nano = kinds.add_parser("nano", help="the embedded small model, on procedural triplets")
    nano.add_argument(
        "--out", required=True, metavar="DIR", help="run folder; an existing run goes on"
    )
    nano.add_argument("--data", metavar="DIR", help="triplets; default: OUT/triplets, drawn")
    nano.add_argument("--triplets", type=int, metavar="N", help=f"to draw; default: {_TRIPLETS}")
    nano.add_argument("--workers", type=int, default=2, help="processes that draw and frame")
    nano.add_argument("--max-steps", type=int, default=2500, metavar="N",
                      help="supervised updates in all; default: %(default)s")  # fmt: skip
    nano.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    nano.add_argument(
        "--sft-set", action="append", default=[], metavar="GROUP.NAME=VALUE",
        help="a setting of stage 1 (see train sft --print-config); may be given often",
    )  # fmt: skip
    nano.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all")
    nano.add_argument("--seed", type=int, default=0)
    nano.add_argument("--grpo-steps", type=int, default=10, metavar="N",
                      help="epochs of stage 2 after that; default: %(default)s")  # fmt: skip
    nano.add_argument(
        "--grpo-set", action="append", default=[], metavar="GROUP.NAME=VALUE",
        help="a setting of stage 2 (see train grpo --print-config); may be given often",
    )  # fmt: skip
    nano.add_argument(
        "--start", metavar="FILE", help="a nano to go on from; default: none, from the beginning"
    )
    nano.add_argument(
        "--evaluate", type=int, default=256, metavar="N",
        help="held-out scenes to compare the stages on, for the model card; 0 = none; "
        "default: %(default)s",
    )  # fmt: skip
    nano.set_defaults(run=run)
    evaluate = kinds.add_parser("evaluate-nano", help="the held-out table of the model card")
    evaluate.add_argument(
        "--count", type=int, default=256, help="held-out scenes; default: %(default)s"
    )
    evaluate.add_argument("--weights", metavar="FILE", help="default: the embedded model")
    evaluate.add_argument("--rough-masks", action="store_true", help="boxes and ellipses as masks")
    evaluate.add_argument("--steps", type=int, help="default: the recipe's")
    evaluate.add_argument(
        "--sheet", metavar="FILE", help="write the worst and best cases as a picture"
    )
    evaluate.set_defaults(run=run_evaluation)


def check_least(chosen: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse an option under the least value it may have.

    Raises:
        ValueError: names the option and both values.
    """
    for name, value in least.items():
        if getattr(chosen, name) < value:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {value}, got {getattr(chosen, name)}.")


def check_one_process(command: str) -> None:
    """Refuse a launch of several processes.

    Raises:
        ValueError: there are several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"train {command} runs its stages one after another in a single process; start it "
            "without accelerate or torchrun. Of the stages, train sft and train grpo take several."
        )


def open_setup(chosen: argparse.Namespace, out: Path) -> Setup:
    """The data, drawn if none is given, and what else the stages share.

    Raises:
        ValueError: contradictory options, or no data.
    """
    from ..models.devices import pick_device
    from ..training.train_nano import Setup, draw_triplets

    if chosen.data and chosen.triplets is not None:
        raise ValueError("--triplets says how many to draw; with --data none are.")
    pick_device(chosen.device)
    data = Path(chosen.data) if chosen.data else out / "triplets"
    setup = Setup(data, out / "cache", chosen.device, chosen.workers, chosen.seed)
    out.mkdir(parents=True, exist_ok=True)
    if not chosen.data:
        count = _TRIPLETS if chosen.triplets is None else chosen.triplets
        print(f"drawing {count} triplets into {data}")
        found = draw_triplets(setup, count, show_progress)
        print(f"{found['kept']} triplets, {found['rejected']} left out")
    return setup


def _check(chosen: argparse.Namespace) -> None:
    """Refuse before anything is drawn what would fail hours later.

    Raises:
        ValueError: an option out of range, a setting that is unknown, or no such start.
    """
    from ..training.settings import parse_assignments
    from ..training.train_nano import Setup, grpo_config, sft_config

    least = {
        "max_steps": 0, "grpo_steps": 0, "workers": 1, "seed": 0, "evaluate": 0, "threads": 0,
    }  # fmt: skip
    check_least(chosen, least)
    if not chosen.max_steps and not chosen.grpo_steps:
        raise ValueError("--max-steps 0 and --grpo-steps 0 leave nothing to train.")
    if chosen.evaluate == 1:
        raise ValueError("--evaluate takes at least 2 scenes, for an interval; or 0.")
    check_one_process("nano")
    nowhere = Setup(Path(), Path(), workers=chosen.workers, seed=chosen.seed)
    sft_config(nowhere, Path(), max(1, chosen.max_steps), parse_assignments(chosen.sft_set))
    grpo_config(nowhere, Path(), max(1, chosen.grpo_steps), parse_assignments(chosen.grpo_set))
    if chosen.start:
        from ..nano import nano_file

        if nano_file(chosen.start) is None:
            raise ValueError(f"--start {chosen.start} is no nano: it carries no codec.")


def run(chosen: argparse.Namespace) -> None:
    """Data, stage 1, stage 2, evaluation, model card: what is missing of them."""
    import shutil

    import torch

    from ..storage.output_files import atomic_path

    _check(chosen)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = Path(chosen.out)
    setup = open_setup(chosen, out)
    stages = _train(chosen, out, setup)
    path = out / "nano.safetensors"
    with atomic_path(path) as temporary:
        shutil.copyfile(list(stages.values())[-1], temporary)
    print(f"wrote {path}")
    if chosen.evaluate:
        _evaluate(chosen, out, stages, setup)
    _draw(out, list(stages))


def _train(chosen: argparse.Namespace, out: Path, setup: Setup) -> dict[str, Path]:
    """The refiner that every stage left, by the stage's name."""
    from ..training.settings import parse_assignments
    from ..training.train_nano import grpo_config, reinforce, sft_config, supervise, write_start

    start = Path(chosen.start) if chosen.start else None
    at = start or write_start(out / "start.safetensors", setup)
    stages = {"start": at} if start else {}
    if chosen.max_steps:
        over = parse_assignments(chosen.sft_set)
        config = sft_config(setup, at, chosen.max_steps, over)
        stages["sft"] = at = supervise(setup, config, out / "sft")
    if chosen.grpo_steps:
        over = parse_assignments(chosen.grpo_set)
        stages["grpo"] = reinforce(
            setup, grpo_config(setup, at, chosen.grpo_steps, over), out / "grpo"
        )
    return stages


def _draw(out: Path, stages: list[str]) -> None:
    """The stages' curves; a missing one is said and loses nothing else."""
    from ..training.curves import draw_curves

    for name in stages:
        if (out / name).is_dir():
            try:
                draw_curves([out / name], out / f"curves-{name}.png")
            except (ValueError, ModuleNotFoundError) as e:
                print(f"no curves of {name}: {e}", file=sys.stderr)


def _evaluate(chosen: argparse.Namespace, out: Path, stages: dict[str, Path], setup: Setup) -> None:
    from ..data.shards import TripletSet
    from ..storage.output_files import atomic_path
    from ..training.train_nano import evaluate_stages, model_card

    found = evaluate_stages(stages, out / "evaluation.json", chosen.evaluate, setup)
    facts = {
        "triplets": len(TripletSet(setup.triplets)), "seed": chosen.seed,
        "stage 1 steps": chosen.max_steps, "stage 1 settings": chosen.sft_set,
        "stage 2 epochs": chosen.grpo_steps, "stage 2 settings": chosen.grpo_set,
    }  # fmt: skip
    card = model_card(stages, found, facts)
    with atomic_path(out / "MODEL_CARD.md") as temporary:
        temporary.write_text(card)
    print(card)


def run_evaluation(chosen: argparse.Namespace) -> None:
    """Print the held-out table."""
    from ..evaluation.evaluate_nano import evaluate_nano

    weights = Path(chosen.weights) if chosen.weights else None
    sheet = Path(chosen.sheet) if chosen.sheet else None
    evaluate_nano(
        chosen.count, weights, rough_masks=chosen.rough_masks, steps=chosen.steps, sheet=sheet
    )
