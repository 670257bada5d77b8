"""`omnirefiner train nano`: trains the embedded model, or a better one, and evaluates it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import show_progress

if TYPE_CHECKING:
    from ..training.config import GrpoConfig, SftConfig
    from ..training.dataset import Reward
    from ..training.train_nano import Setup

_TRIPLETS = 5120
_EPOCHS = 10  # of stage 2


def add_parser(kinds: Any) -> None:
    """Add the commands `nano` and `evaluate-nano`."""
    nano = kinds.add_parser("nano", help="train the small embedded model on procedural triplets")
    _add_run(nano)
    _add_data(nano)
    _add_stages(nano)
    nano.set_defaults(run=run)
    _add_evaluation(kinds)


def _add_run(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the run; an existing run is continued",
    )
    p.add_argument(
        "--start",
        metavar="FILE",
        help="a nano to continue from; default: an untrained one",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--threads", type=int, default=0, help="number of PyTorch threads; default: 0, all cores"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--evaluate",
        type=int,
        default=256,
        metavar="N",
        help="held-out scenes on which the model card compares the stages; 0: none; "
        "default: %(default)s",
    )


def _add_data(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data", metavar="DIR", help="folder of triplets; default: they are drawn in OUT/triplets"
    )
    p.add_argument(
        "--triplets",
        type=int,
        metavar="N",
        help=f"number of triplets to draw; default: {_TRIPLETS}",
    )
    p.add_argument(
        "--tiles",
        type=int,
        metavar="N",
        help="train stage 1 on tiles of N drawn scenes at the draft's own resolution, from --start",
    )
    p.add_argument(
        "--photos",
        metavar="DIR",
        help="with --tiles, photographs that serve as surfaces; default: those of scikit-image",
    )
    p.add_argument(
        "--workers", type=int, default=2, help="number of processes that draw and crop; default: 2"
    )


def _add_stages(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--max-steps",
        type=int,
        default=2500,
        metavar="N",
        help="updates of stage 1 in total; default: %(default)s",
    )
    p.add_argument(
        "--sft-set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="a setting of stage 1 (see train sft --print-config); can be given several times",
    )
    p.add_argument(
        "--grpo-steps",
        type=int,
        metavar="N",
        help="epochs of stage 2 in total; default: 10, with --tiles 0",
    )
    p.add_argument(
        "--grpo-set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="a setting of stage 2 (see train grpo --print-config); can be given several times",
    )


def _add_evaluation(kinds: Any) -> None:
    evaluate = kinds.add_parser("evaluate-nano", help="print the held-out table of the model card")
    evaluate.add_argument(
        "--count", type=int, default=256, help="number of held-out scenes; default: %(default)s"
    )
    evaluate.add_argument(
        "--weights", metavar="FILE", help="the nano to measure; default: the embedded one"
    )
    evaluate.add_argument(
        "--rough-masks", action="store_true", help="use boxes and ellipses as masks"
    )
    evaluate.add_argument("--steps", type=int, help="sampling steps; default: the recipe's")
    evaluate.add_argument(
        "--sheet", metavar="FILE", help="write a picture of the worst and best cases"
    )
    evaluate.set_defaults(run=run_evaluation)


def check_least(chosen: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse options below their least values.

    Raises:
        ValueError: names the option and both values.
    """
    for name, value in least.items():
        if getattr(chosen, name) < value:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {value}, got {getattr(chosen, name)}.")


def check_one_process(command: str) -> None:
    """Refuse a launch with several processes.

    Raises:
        ValueError: there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"train {command} runs in a single process: start it without accelerate or torchrun. "
            "train sft and train grpo can run in several."
        )


def open_setup(chosen: argparse.Namespace, out: Path) -> Setup:
    """What the stages share; draws the triplets if none are given.

    Raises:
        ValueError: contradictory options, or no triplets.
    """
    from ..models.devices import pick_device
    from ..training.train_nano import Setup, draw_triplets

    if chosen.data and chosen.triplets is not None:
        raise ValueError(
            "--triplets is the number to draw, and with --data none are drawn: give one of them."
        )
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
    """Refuse options that would fail only after hours.

    Raises:
        ValueError: an option out of range, an unknown setting, or an unusable --start.
    """
    from ..training.settings import parse_assignments
    from ..training.train_nano import Setup, grpo_config, sft_config

    least = {
        "max_steps": 0,
        "grpo_steps": 0,
        "workers": 1,
        "seed": 0,
        "evaluate": 0,
        "threads": 0,
    }
    check_least(chosen, least)
    if not chosen.max_steps and not chosen.grpo_steps:
        raise ValueError("--max-steps 0 and --grpo-steps 0 leave nothing to train.")
    if chosen.evaluate == 1:
        raise ValueError(
            "--evaluate needs at least 2 scenes for an interval, or 0 for none; got 1."
        )
    check_one_process("nano")
    _check_tiles(chosen)
    nowhere = Setup(Path(), Path(), workers=chosen.workers, seed=chosen.seed)
    sft_config(nowhere, Path(), max(1, chosen.max_steps), parse_assignments(chosen.sft_set))
    grpo_config(nowhere, Path(), max(1, chosen.grpo_steps), parse_assignments(chosen.grpo_set))
    if chosen.start:
        from ..nano import nano_file

        if nano_file(chosen.start) is None:
            raise ValueError(f"--start {chosen.start} is not a nano model: it contains no codec.")


def _check_tiles(chosen: argparse.Namespace) -> None:
    """Refuse options that do not go with --tiles, or not without it.

    Raises:
        ValueError: names the options.
    """
    from ..training.tile_dataset import HELD_OUT_SCENES

    if chosen.tiles is None:
        if chosen.photos:
            raise ValueError("--photos needs --tiles, the number of scenes drawn from them.")
        return
    if chosen.tiles <= HELD_OUT_SCENES:
        raise ValueError(
            f"--tiles must be over {HELD_OUT_SCENES}, as the first {HELD_OUT_SCENES} scenes are held "
            f"out, got {chosen.tiles}."
        )
    if chosen.data or chosen.triplets is not None or chosen.grpo_steps:
        raise ValueError(
            "--tiles trains stage 1 on scenes of its own: leave out --data, --triplets and "
            "--grpo-steps."
        )
    if not chosen.max_steps:
        raise ValueError("--tiles trains stage 1, so --max-steps must be over 0.")


def run(chosen: argparse.Namespace) -> None:
    """Make what is missing of data, stage 1, stage 2, evaluation and model card."""
    import shutil

    import torch

    from ..storage.output_files import atomic_path

    if chosen.grpo_steps is None:
        chosen.grpo_steps = _EPOCHS if chosen.tiles is None else 0
    _check(chosen)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = Path(chosen.out)
    if chosen.tiles is not None:
        print(f"wrote {_train_on_tiles(chosen, out)}")
        _draw(out, ["tiles"])
        return
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
    """Run the stages; their refiners by name."""
    from ..models.devices import pick_device
    from ..training.reward import make_reward
    from ..training.settings import parse_assignments
    from ..training.train_nano import grpo_config, sft_config, write_start

    start = Path(chosen.start) if chosen.start else None
    at = start or write_start(out / "start.safetensors", setup)
    stages = {"start": at} if start else {}
    if chosen.max_steps:
        over = parse_assignments(chosen.sft_set)
        config = sft_config(setup, at, chosen.max_steps, over)
        stages["sft"] = at = train_stage(setup, config, out / "sft")
    if chosen.grpo_steps:
        over = parse_assignments(chosen.grpo_set)
        config = grpo_config(setup, at, chosen.grpo_steps, over)
        reward = make_reward(config.objective, pick_device(chosen.device))
        stages["grpo"] = train_stage(setup, config, out / "grpo", reward)
    return stages


def train_stage(
    setup: Setup, config: SftConfig | GrpoConfig, out: Path, reward: Reward | None = None
) -> Path:
    """Run one stage in `out`, where an existing run is continued; the refiner's path."""
    from ..training.open_session import open_session
    from ..training.train import train

    # Both stages keep pixels, so that they can share the prepared items.
    session = open_session(
        config, setup.triplets, out, setup.device, pixels=True, cache=setup.cache
    )
    return train(config, session, reward)


def _train_on_tiles(chosen: argparse.Namespace, out: Path) -> Path:
    """Draw the scenes that are missing and train on their tiles; the refiner's path."""
    from ..training.open_session import open_tile_session
    from ..training.settings import parse_assignments
    from ..training.tile_dataset import draw_scenes
    from ..training.train import train
    from ..training.train_nano import Setup, tile_config, write_tile_start

    setup = Setup(out / "scenes", out / "cache", chosen.device, chosen.workers, chosen.seed)
    photos = Path(chosen.photos).expanduser() if chosen.photos else None
    files = draw_scenes(
        setup.triplets, chosen.tiles, photos, setup.seed, setup.workers, show_progress
    )
    start = Path(chosen.start) if chosen.start else write_tile_start(out, setup.seed)
    config = tile_config(setup, start, chosen.max_steps, parse_assignments(chosen.sft_set))
    return train(config, open_tile_session(config, files, out / "tiles", chosen.device))


def _draw(out: Path, stages: list[str]) -> None:
    """Plot the curves of the stages; a stage without curves is only reported."""
    from ..training.curves import draw_curves

    for name in stages:
        if (out / name).is_dir():
            try:
                draw_curves([out / name], out / f"curves-{name}.png")
            except (ValueError, ModuleNotFoundError) as e:
                print(f"no curves for {name}: {e}", file=sys.stderr)


def _evaluate(chosen: argparse.Namespace, out: Path, stages: dict[str, Path], setup: Setup) -> None:
    from ..data.shards import TripletSet
    from ..storage.output_files import write_text
    from ..training.train_nano import evaluate_stages, model_card

    found = evaluate_stages(stages, out / "evaluation.json", chosen.evaluate, setup)
    facts = {
        "triplets": len(TripletSet(setup.triplets)),
        "seed": chosen.seed,
        "stage 1 steps": chosen.max_steps,
        "stage 1 settings": chosen.sft_set,
        "stage 2 epochs": chosen.grpo_steps,
        "stage 2 settings": chosen.grpo_set,
    }
    card = model_card(stages, found, facts)
    write_text(out / "MODEL_CARD.md", card)
    print(card)


def run_evaluation(chosen: argparse.Namespace) -> None:
    """Print the held-out table."""
    from ..evaluation.evaluate_nano import evaluate_nano

    weights = Path(chosen.weights) if chosen.weights else None
    sheet = Path(chosen.sheet) if chosen.sheet else None
    evaluate_nano(
        chosen.count, weights, rough_masks=chosen.rough_masks, steps=chosen.steps, sheet=sheet
    )
