"""`omnirefiner data`: builds data sets of triplets and shows their contents."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from .data_stages import STAGES, add_stage_options, chosen_own_files, chosen_stages
from .progress import show_progress


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("data", help="build or inspect training data")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_build(
        kinds.add_parser(
            "build",
            help="make triplets in four stages; resumes an interrupted build",
            description="Make triplets (draft, reference, target, mask) in the stages pair, select, "
            "mask and degrade. Without a source everything is procedural and offline. Run the same "
            "command again to resume an interrupted build; the result has the same bytes.",
        )
    )
    show = kinds.add_parser("show", help="write contact sheets and a page of statistics")
    show.add_argument("data", metavar="DIR", help="a finished data set")
    show.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the pages; default: DIR/show, where existing files are replaced",
    )
    show.add_argument(
        "--count", type=int, default=24, help="number of samples; default: %(default)s"
    )
    show.add_argument("--split", help="show only this split")
    show.set_defaults(run=run_show)


def _add_build(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--out", required=True, metavar="DIR", help="the data set; an interrupted one is resumed"
    )
    p.add_argument("--count", type=int, required=True, metavar="N", help="number of samples to try")
    p.add_argument(
        "--stage",
        action="append",
        choices=STAGES,
        metavar="STAGE",
        help=f"run only this stage ({', '.join(STAGES)}); repeatable; default: all",
    )
    p.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="with --stage: the build whose earlier stages are used; default: --out",
    )
    p.add_argument(
        "--seed", type=int, default=0, help="seed of the whole build; default: %(default)s"
    )
    p.add_argument(
        "--workers", type=int, default=1, help="number of processes; default: %(default)s"
    )
    p.add_argument(
        "--shard",
        type=int,
        metavar="N",
        help="samples per shard, the unit of work and of resuming; default: 64, 16 with a workflow",
    )
    p.add_argument(
        "--held-out",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of all identities for the split 'validation'; default: %(default)s",
    )
    p.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="build on a Ray cluster ('auto', 'local' or ray://HOST:PORT); every node must see --out "
        "under the same path",
    )
    add_stage_options(p)
    p.set_defaults(run=run_build)


_COUNTS = ("kept", "rejected", "broken", "composited")  # the others are splits


def run_build(chosen: argparse.Namespace) -> None:
    """Build what is missing and print what the data set holds."""
    from ..data.build import REJECTED, run_build, run_locally
    from ..data.build_settings import Build
    from ..data.credits import write_credits

    wanted = chosen.stage or STAGES
    if chosen.source and not chosen.stage:
        raise ValueError("--from names the build to start from: add --stage for what runs again.")
    out = Path(chosen.out)
    own, found = chosen_own_files(chosen)
    for line in found:
        print(line)
    build = Build(
        out=out,
        stages=chosen_stages(chosen, wanted, own),
        count=chosen.count,
        seed=chosen.seed,
        shard_size=chosen.shard or (16 if chosen.pair_workflow or chosen.degrade_workflow else 64),
        held_out=chosen.held_out,
        source=Path(chosen.source) if chosen.source else None,
    )
    run = run_locally
    if chosen.ray:
        from ..data.cluster import ray_runner

        run = ray_runner(chosen.ray)
    counts = run_build(build, chosen.workers, show_progress, run)
    if own.files():
        write_credits(out, [f for files in own.files().values() for f in files])
    if not counts["kept"]:
        raise ValueError(_nothing_kept(out, out / REJECTED))
    splits = [f"{n} {k}" for k, n in counts.items() if k not in _COUNTS]
    listed = f" ({', '.join(splits)})" if splits else ""
    print(f"{out}: {counts['kept']} samples{listed}")
    if counts["composited"]:
        print(f"composited over white: the transparent pictures of {counts['composited']} samples")
    _print_skipped(chosen.pairs or chosen.references)
    if counts["rejected"]:
        print(
            f"rejected: {counts['rejected']}, of which {counts['broken']} could not be used at all; "
            f"the reasons are in {out / REJECTED}"
        )


def _nothing_kept(out: Path, rejected: Path) -> str:
    from ..data.shards import read_lines

    reasons = Counter(str(entry["reason"]) for entry in read_lines(rejected))
    reason, count = reasons.most_common(1)[0]
    return (
        f"{out}: no sample was kept. {count} of {reasons.total()}: {reason}. All reasons are in "
        f"{rejected}."
    )


def _print_skipped(folder: str | None) -> None:
    from ..data.pair_files import count_system_files

    skipped = count_system_files(Path(folder)) if folder else 0
    if skipped:
        print(
            f"skipped: {skipped} files of macOS or Windows (._*, .DS_Store, Thumbs.db) in {folder}"
        )


_PER_SHEET = 24


def run_show(chosen: argparse.Namespace) -> None:
    """Write `contact-sheet-*.png` and `statistics.html`."""
    from ..data.build import REJECTED
    from ..data.contact_sheet import contact_sheet, spread
    from ..data.shards import TripletSet, read_lines
    from ..data.statistics import statistics_page
    from ..storage.output_files import atomic_path, write_text

    if chosen.count < 1:
        raise ValueError(f"--count must be at least 1, got {chosen.count}.")
    folder = Path(chosen.data)
    data = TripletSet(folder, chosen.split)
    out = Path(chosen.out) if chosen.out else folder / "show"
    out.mkdir(parents=True, exist_ok=True)
    numbers = spread(len(data), chosen.count)
    sheets = []
    for first in range(0, len(numbers), _PER_SHEET):
        sheets.append(contact_sheet(data, numbers[first : first + _PER_SHEET]))
        with atomic_path(out / f"contact-sheet-{len(sheets)}.png") as path:
            sheets[-1].save(path)
    rejected = read_lines(folder / REJECTED) if (folder / REJECTED).is_file() else []
    page = statistics_page(folder, data.entries, rejected, sheets[0])
    write_text(out / "statistics.html", page)
    print(
        f"{len(data)} triplets; wrote {len(sheets)} contact sheet(s) and statistics.html to {out}"
    )
