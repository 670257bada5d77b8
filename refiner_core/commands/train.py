"""`omnirefiner train nano`: makes the embedded model again, or a better one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import train_compare, train_stages


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
    nano.set_defaults(run=run)
    train_stages.add_parsers(kinds)
    train_compare.add_parser(kinds)
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
    """Draw the crops that are missing, then train or go on training."""
    from ..data.cache import CacheSpec, build_cache
    from ..training.nano import NanoConfig, Stage, Trainer, export

    out = Path(chosen.out)
    cache = Path(chosen.cache) if chosen.cache else out / "crops"
    print(f"drawing up to {chosen.crops} crops into {cache}")
    build_cache(cache, CacheSpec(chosen.crops, seed=chosen.seed + 1), chosen.workers)
    windows, full = chosen.steps
    stages = (Stage(windows, 64, 32, 1e-3), Stage(full, 0, 8, 8e-4))
    config = NanoConfig(str(cache), str(out), stages, seed=chosen.seed, threads=chosen.threads)
    trainer = Trainer(config)
    print(f"training from step {trainer.step} to {windows + full}; log in {out / 'log.jsonl'}")
    trainer.run()
    print(f"wrote {export(trainer.checkpoint, out / 'nano.safetensors')}")


def run_evaluation(chosen: argparse.Namespace) -> None:
    """Print the held-out table."""
    from ..evaluation.nano import evaluate_nano

    weights = Path(chosen.weights) if chosen.weights else None
    sheet = Path(chosen.sheet) if chosen.sheet else None
    evaluate_nano(
        chosen.count, weights, rough_masks=chosen.rough_masks, steps=chosen.steps, sheet=sheet
    )
