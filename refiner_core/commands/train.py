"""`omnirefiner train nano`: makes the embedded model again, or a better one; and its evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import train_ablate, train_compare, train_plan, train_stages


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("train", help="train a refiner")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    nano = kinds.add_parser("nano", help="the embedded small model, on procedural triplets")
    nano.add_argument(
        "--out", required=True, metavar="DIR", help="run folder; an existing run goes on"
    )
    nano.add_argument("--cache", metavar="DIR", help="training crops; default: OUT/crops")
    nano.add_argument(
        "--crops", type=int, default=20480, help="crops to draw; default: %(default)s"
    )
    nano.add_argument("--workers", type=int, default=2, help="processes that draw crops")
    nano.add_argument("--steps", type=int, nargs=2, default=(500, 2000), metavar=("WINDOWS", "FULL"),
                      help="steps on 64 px windows and on whole crops; default: 500 2000")  # fmt: skip
    nano.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all")
    nano.add_argument("--seed", type=int, default=0)
    nano.add_argument("--grpo-steps", type=int, default=0, metavar="N",
                      help="epochs of stage 2 after that; default: none")  # fmt: skip
    nano.add_argument(
        "--grpo-set", action="append", default=[], metavar="GROUP.NAME=VALUE",
        help="a setting of stage 2 (see train grpo --print-config); may be given often",
    )  # fmt: skip
    nano.add_argument("--grpo-window", type=int, default=0, metavar="PX",
                      help="side of the squares it is trained on; default: whole crops")  # fmt: skip
    nano.add_argument(
        "--start", metavar="FILE", help="a nano to take stage 2 from, without stage 1"
    )
    nano.add_argument("--evaluate", type=int, default=0, metavar="N",
                      help="held-out scenes to compare the stages on, for the model card")  # fmt: skip
    nano.set_defaults(run=run)
    train_stages.add_parsers(kinds)
    train_plan.add_parser(kinds)
    train_compare.add_parser(kinds)
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
    out = Path(chosen.out)
    cache = Path(chosen.cache) if chosen.cache else out / "crops"
    stages = {"sft": Path(chosen.start) if chosen.start else _stage_one(chosen, out, cache)}
    if chosen.grpo_steps:
        stages["grpo"] = _stage_two(chosen, out, cache, stages["sft"])
    if chosen.evaluate:
        _evaluate(chosen, out, stages)


def _draw(chosen: argparse.Namespace, cache: Path) -> None:
    from ..data.cache import CacheSpec, build_cache

    print(f"drawing up to {chosen.crops} crops into {cache}")
    build_cache(cache, CacheSpec(chosen.crops, seed=chosen.seed + 1), chosen.workers)


def _stage_one(chosen: argparse.Namespace, out: Path, cache: Path) -> Path:
    from ..training.nano import NanoConfig, Stage, Trainer, export

    _draw(chosen, cache)
    windows, full = chosen.steps
    stages = (Stage(windows, 64, 32, 1e-3), Stage(full, 0, 8, 8e-4))
    config = NanoConfig(str(cache), str(out), stages, seed=chosen.seed, threads=chosen.threads)
    trainer = Trainer(config)
    print(f"training from step {trainer.step} to {windows + full}; log in {out / 'log.jsonl'}")
    trainer.run()
    path = export(trainer.checkpoint, out / "nano.safetensors")
    print(f"wrote {path}")
    return path


def _stage_two(chosen: argparse.Namespace, out: Path, cache: Path, weights: Path) -> Path:
    from ..training.nano_stages import reinforce
    from ..training.settings import parse_assignments

    if chosen.start:
        _draw(chosen, cache)
    over = parse_assignments(chosen.grpo_set)
    path = reinforce(weights, cache, out / "grpo", chosen.grpo_steps, chosen.seed, over,
                     chosen.grpo_window)  # fmt: skip
    print(f"wrote {path}")
    return path


def _evaluate(chosen: argparse.Namespace, out: Path, stages: dict[str, Path]) -> None:
    from ..pictures.images import atomic_path
    from ..training.nano_stages import evaluate_stages, model_card

    found = evaluate_stages(stages, out / "evaluation.json", chosen.evaluate, chosen.workers)
    facts = {
        "crops": chosen.crops, "seed": chosen.seed, "stage 1 steps": list(chosen.steps),
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
