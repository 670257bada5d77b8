"""`omnirefiner data`: builds data sets of triplets and shows what is in them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.build import Report
    from ..data.stages.interface import Stage

STAGES = ("pair", "select", "mask", "degrade")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("data", help="build training data, or look at it")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_build(kinds.add_parser("build", help="make triplets in four stages; run again to go on"))


def _add_build(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--out", required=True, metavar="DIR", help="the data set; a started one goes on"
    )
    p.add_argument("--count", type=int, required=True, metavar="N", help="samples to try")
    p.add_argument(
        "--stage", action="append", choices=STAGES, metavar="STAGE",
        help=f"run only this stage, may be repeated: {', '.join(STAGES)}; default: all",
    )  # fmt: skip
    p.add_argument(
        "--from", dest="source", metavar="DIR",
        help="with --stage: a build whose earlier stages are kept; default: --out",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the whole build; default: %(default)s")
    p.add_argument("--workers", type=int, default=1, help="processes; default: %(default)s")
    p.add_argument("--shard", type=int, default=64, help="samples a shard; default: %(default)s")
    p.add_argument(
        "--held-out", type=float, default=0.05, metavar="SHARE",
        help="of all identities, for the split 'validation'; default: %(default)s",
    )  # fmt: skip
    p.add_argument(
        "--identity", type=float, default=0.05, metavar="SHARE",
        help="of the samples, whose draft is right already; default: %(default)s",
    )  # fmt: skip
    drawn = p.add_argument_group("procedural pairs (the default)")
    drawn.add_argument(
        "--size", type=int, metavar="PX", help="square root of a picture's area; default: 512"
    )
    drawn.add_argument("--square", action="store_true", help="no other aspects")
    drawn.add_argument("--detail", choices=("word", "logo", "pattern"), help="only this kind")
    drawn.add_argument("--outline-masks", action="store_true", help="no boxes and ellipses")
    p.set_defaults(run=run_build)


def _procedural(chosen: argparse.Namespace) -> tuple[Stage, ...]:
    from ..data.stages.procedural import (
        ProceduralDegrade,
        ProceduralMask,
        ProceduralPair,
        ProceduralSelect,
    )

    pair = ProceduralPair(chosen.size or 512, chosen.square, chosen.detail, chosen.held_out)
    return (
        pair,
        ProceduralSelect(pair),
        ProceduralMask(pair, not chosen.outline_masks),
        ProceduralDegrade(pair, chosen.identity),
    )


def _progress(done: int, total: int, report: Report) -> None:
    print(f"\rpart {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def run_build(chosen: argparse.Namespace) -> None:
    """Build what is missing and say what is there."""
    from ..data.build import REJECTED, Build, run_build

    wanted = chosen.stage or STAGES
    stages = tuple(s for s in _procedural(chosen) if s.name in wanted)
    source = Path(chosen.source) if chosen.source else None
    out = Path(chosen.out)
    build = Build(
        out, stages, chosen.count, chosen.seed, chosen.shard, chosen.held_out, source
    )  # fmt: skip
    counts = run_build(build, chosen.workers, _progress)
    splits = ", ".join(
        f"{n} {k}" for k, n in counts.items() if k not in ("kept", "rejected", "broken")
    )
    print(f"{out}: {counts['kept']} samples{f' ({splits})' if splits else ''}")
    if counts["rejected"]:
        print(
            f"left out: {counts['rejected']}, {counts['broken']} of them broken; "
            f"why: {out / REJECTED}"
        )
