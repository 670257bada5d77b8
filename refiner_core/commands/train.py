"""`omnirefiner train nano`: makes the embedded model again, or a better one; and its evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import train_ablate, train_compare, train_curves, train_plan, train_stages


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("train", help="train a refiner")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    nano = kinds.add_parser("nano", help="the embedded small model, on procedural triplets")
    nano.add_argument(
        "--out", required=True, metavar="DIR", help="run folder; an existing run goes on"
    )
    nano.add_argument("--data", metavar="DIR", help="triplets; default: OUT/triplets, drawn")
    nano.add_argument("--count", type=int, default=5120, metavar="N",
                      help="triplets to draw; default: %(default)s")  # fmt: skip
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
    nano.add_argument("--grpo-steps", type=int, default=0, metavar="N",
                      help="epochs of stage 2 after that; default: none")  # fmt: skip
    nano.add_argument(
        "--grpo-set", action="append", default=[], metavar="GROUP.NAME=VALUE",
        help="a setting of stage 2 (see train grpo --print-config); may be given often",
    )  # fmt: skip
    nano.add_argument(
        "--start", metavar="FILE", help="a nano to go on from; default: none, from the beginning"
    )
    nano.add_argument("--evaluate", type=int, default=0, metavar="N",
                      help="held-out scenes to compare the stages on, for the model card")  # fmt: skip
    nano.set_defaults(run=run)
    train_stages.add_parsers(kinds)
    train_plan.add_parser(kinds)
    train_compare.add_parser(kinds)
    train_curves.add_parser(kinds)
    train_ablate.add_parser(kinds)
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


def run(chosen: argparse.Namespace) -> None:
    """Data, stage 1, stage 2, evaluation, model card: what is missing of them."""
    import shutil

    import torch

    from ..pictures.images import atomic_path
    from ..training.curves import draw_curves

    if min(chosen.max_steps, chosen.grpo_steps) < 0:
        raise ValueError(
            f"Steps cannot be negative: --max-steps {chosen.max_steps}, "
            f"--grpo-steps {chosen.grpo_steps}."
        )
    if not chosen.max_steps and not chosen.grpo_steps:
        raise ValueError("--max-steps 0 without --grpo-steps leaves nothing to train.")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    stages = _train(chosen, out)
    path = out / "nano.safetensors"
    with atomic_path(path) as temporary:
        shutil.copyfile(list(stages.values())[-1], temporary)
    print(f"wrote {path}")
    for name in stages:
        if (out / name).is_dir():
            draw_curves([out / name], out / f"curves-{name}.png")
    if chosen.evaluate:
        _evaluate(chosen, out, stages)


def _train(chosen: argparse.Namespace, out: Path) -> dict[str, Path]:
    """The refiner that every stage left, by the stage's name."""
    from ..training.nano import Place, draw_triplets, reinforce, supervise, write_start
    from ..training.settings import parse_assignments

    data = Path(chosen.data) if chosen.data else out / "triplets"
    if not chosen.data:
        found = draw_triplets(data, chosen.count, chosen.seed, chosen.workers)
        print(f"{data}: {found['kept']} triplets, {found['rejected']} left out")
    place = Place(data, out / "cache", chosen.device, chosen.workers)
    at = Path(chosen.start) if chosen.start else write_start(
        out / "start.safetensors", data, chosen.seed
    )  # fmt: skip
    stages = {"start": at} if chosen.start else {}
    if chosen.max_steps:
        over = parse_assignments(chosen.sft_set)
        stages["sft"] = at = supervise(at, place, out / "sft", chosen.max_steps, chosen.seed, over)
    if chosen.grpo_steps:
        over = parse_assignments(chosen.grpo_set)
        stages["grpo"] = reinforce(at, place, out / "grpo", chosen.grpo_steps, chosen.seed, over)
    return stages


def _evaluate(chosen: argparse.Namespace, out: Path, stages: dict[str, Path]) -> None:
    from ..pictures.images import atomic_path
    from ..training.nano import evaluate_stages, model_card

    found = evaluate_stages(stages, out / "evaluation.json", chosen.evaluate, chosen.workers)
    facts = {
        "triplets": chosen.count, "seed": chosen.seed, "stage 1 steps": chosen.max_steps,
        "stage 1 settings": chosen.sft_set,
        "stage 2 epochs": chosen.grpo_steps, "stage 2 settings": chosen.grpo_set,
    }  # fmt: skip
    card = model_card(stages, found, facts)
    with atomic_path(out / "MODEL_CARD.md") as temporary:
        temporary.write_text(card)
    print(card)


def run_evaluation(chosen: argparse.Namespace) -> None:
    """Print the held-out table."""
    from ..evaluation.nano import evaluate_nano

    weights = Path(chosen.weights) if chosen.weights else None
    sheet = Path(chosen.sheet) if chosen.sheet else None
    evaluate_nano(
        chosen.count, weights, rough_masks=chosen.rough_masks, steps=chosen.steps, sheet=sheet
    )
