"""`omnirefiner train plan`: what a run would need, without weights."""

from __future__ import annotations

import argparse
from typing import Any

from . import train_stages


def add_parser(kinds: Any) -> None:
    """Add the command's options."""
    p = kinds.add_parser("plan", help="parameters, memory and time of a run, without weights")
    p.add_argument("--stage", choices=("sft", "grpo"), default="sft")
    p.add_argument("--card", default="h100", help="cpu, rtx4090, h100, ...; default: %(default)s")
    p.add_argument("--processes", type=int, default=1, metavar="N", help="cards, one process each")
    p.add_argument("--divided", action="store_true",
                   help="the base is divided over the cards (FSDP 2 or ZeRO 3)")  # fmt: skip
    train_stages.add_settings(p)
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print the plan."""
    from ..training.memory_estimate import CARDS, describe_plan, make_plan

    if chosen.card not in CARDS:
        raise ValueError(f"There is no card {chosen.card!r}; there are {', '.join(CARDS)}.")
    card = CARDS[chosen.card]
    if chosen.processes < 1:
        raise ValueError(f"--processes must be 1 or more, got {chosen.processes}.")
    settings = train_stages.read_settings(chosen.stage, chosen)
    plan = make_plan(settings, card, chosen.processes, chosen.divided)
    unit = "an epoch" if chosen.stage == "grpo" else "an update"
    print(describe_plan(plan, chosen.card, card, unit))
