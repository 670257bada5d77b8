"""`omnirefiner train ablate`: what the masked loss, the attention and the patch reward are worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .train_nano import check_least, check_one_process, open_setup


def add_parser(kinds: Any) -> None:
    """Add the command's options."""
    p = kinds.add_parser("ablate", help="parts of the method left out, with nano, held out")
    p.add_argument("--out", required=True, metavar="DIR", help="run folder; goes on if it is there")
    p.add_argument("--data", metavar="DIR", help="triplets; default: OUT/triplets, drawn")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--max-steps", type=int, default=300, help="supervised; default: %(default)s")
    p.add_argument("--batch", type=int, default=8, help="crops a step; default: %(default)s")
    p.add_argument(
        "--epochs", type=int, default=10, help="of reinforcement; 0 = none; default: %(default)s"
    )
    p.add_argument("--triplets", type=int, default=None, metavar="N", help="to draw; default: 5120")
    p.add_argument("--count", type=int, default=256, help="held-out scenes; default: %(default)s")
    p.add_argument("--workers", type=int, default=2, help="processes that draw and frame")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Train the variants and print the tables; also in OUT/ablation.md."""
    from ..storage.output_files import atomic_path
    from ..training.ablation import Budget, ablate, describe

    least = {"max_steps": 1, "batch": 1, "epochs": 0, "count": 2, "workers": 1, "seed": 0}
    check_least(chosen, least)
    check_one_process("ablate")
    out = Path(chosen.out)
    setup = open_setup(chosen, out)
    budget = Budget(chosen.max_steps, chosen.batch, chosen.epochs)
    found = ablate(out, budget, setup, chosen.count, lambda a: print(describe(a, chosen.count)))
    with atomic_path(out / "ablation.md") as temporary:
        temporary.write_text("\n".join(describe(a, chosen.count) for a in found))
