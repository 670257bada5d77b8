"""`omnirefiner evaluate`: repairs a data set's cases, measures them, and writes tables and a report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_options import add_model_options, model_arguments

if TYPE_CHECKING:
    from ..evaluation.evaluate import Plan
    from ..evaluation.metrics import Column, Metric

METRICS = ("pixels", "structure", "dreamsim", "dinov2", "arcface", "vlm", "lpips")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("evaluate", help="measure a refiner on many cases, with a report")
    p.add_argument("--data", required=True, metavar="DIR",
                   help="shards, Critic-10K's layout, or a folder of case folders")  # fmt: skip
    p.add_argument("--out", required=True, metavar="DIR", help="a run that was stopped goes on")
    p.add_argument("--split", help="of shards: train, validation, ...; default: all")
    p.add_argument("--count", type=int, metavar="N", help="the first N cases; default: all")
    p.add_argument("--workers", type=int, default=1, help="processes that repair; default: 1")
    p.add_argument("--results", metavar="DIR",
                   help="read finished repairs ID.png from there instead of running a refiner")  # fmt: skip
    p.add_argument("--other", action="append", default=[], metavar="NAME=DIR",
                   help="another system's ID.png (or ID/refined.png), a row of its own")  # fmt: skip
    p.add_argument("--pictures", type=int, default=200, metavar="N",
                   help="cases shown in the report, worst first; default: %(default)s")  # fmt: skip
    add_model_options(p)
    how = p.add_argument_group("repair")
    how.add_argument("--prompt", help="for every case; default: the case's own, else the recipe's")
    how.add_argument("--seed", type=int, default=0, help="mixed with each case's id")
    how.add_argument("--steps", type=int, help="default: the recipe's")
    how.add_argument("--candidates", type=int, default=1, metavar="N", help="best of N; default: 1")
    m = p.add_argument_group("metrics")
    m.add_argument("--metrics", default="pixels,structure", metavar="A,B,...",
                   help=f"of {', '.join(METRICS)}; default: %(default)s")  # fmt: skip
    m.add_argument("--dreamsim", metavar="FILE", help="from `omnirefiner convert dreamsim`")
    m.add_argument("--dinov2", metavar="DIR", help="facebook/dinov2-base or -large, downloaded")
    m.add_argument("--insightface", metavar="DIR", help="holds antelopev2 or buffalo_l")
    m.add_argument("--vlm", metavar="URL", help="OpenAI-compatible endpoint, http://HOST:PORT/v1")
    m.add_argument("--vlm-model", default="", metavar="NAME")
    m.add_argument("--vlm-key", metavar="VARIABLE", help="environment variable with the key")
    m.add_argument("--vlm-votes", type=int, default=3, metavar="N", help="default: %(default)s")
    m.add_argument("--vlm-timeout", type=float, default=60, metavar="SECONDS")
    p.set_defaults(run=run)


def _chosen_metrics(text: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    unknown = sorted(set(names) - set(METRICS))
    if unknown or not names:
        raise ValueError(
            f"--metrics takes some of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}."
        )
    return [n for n in METRICS if n in names]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _makers(
    chosen: argparse.Namespace, out: Path
) -> dict[str, tuple[Callable[[], Metric], tuple[Column, ...]]]:
    """How each metric is made, and its columns, which stay (empty) if it cannot be."""
    from ..evaluation import dinov2, faces, judge, metrics
    from ..load import pick_device

    device = str(pick_device(chosen.device))

    def vlm() -> Metric:
        if chosen.vlm is None:
            raise metrics.Unavailable("VLM: name an OpenAI-compatible endpoint with --vlm URL.")
        key = os.environ.get(chosen.vlm_key) if chosen.vlm_key else None
        endpoint = judge.Endpoint(
            chosen.vlm, chosen.vlm_model, key, chosen.vlm_timeout, chosen.vlm_votes
        )
        return judge.VlmJudge(endpoint, out / "vlm-replies.jsonl")

    return {
        "pixels": (metrics.Pixels, metrics.Pixels.columns),
        "structure": (metrics.structural, metrics.STRUCTURE),
        "dreamsim": (lambda: metrics.dreamsim(_path(chosen.dreamsim), device), metrics.DREAMSIM),
        "dinov2": (lambda: dinov2.DinoV2(_path(chosen.dinov2), device), dinov2.DinoV2.columns),
        "arcface": (lambda: faces.ArcFace(_path(chosen.insightface)), faces.ArcFace.columns),
        "vlm": (vlm, judge.VlmJudge.columns),
        "lpips": (metrics.Lpips, metrics.Lpips.columns),
    }


def _plan(chosen: argparse.Namespace) -> Plan:
    from ..evaluation.evaluate import Plan
    from ..repair.request import RefineOptions

    others = {}
    for text in chosen.other:
        name, found, folder = text.partition("=")
        if not found:
            raise ValueError(f"--other takes NAME=DIR, got {text!r}.")
        others[name] = Path(folder).expanduser()
    options = RefineOptions(
        prompt=chosen.prompt, seed=chosen.seed, steps=chosen.steps, candidates=chosen.candidates
    )
    return Plan(
        Path(chosen.data), Path(chosen.out), chosen.split, chosen.count, model_arguments(chosen),
        options, _path(chosen.results), others, chosen.workers,
    )  # fmt: skip


def run(chosen: argparse.Namespace) -> None:
    """Run it and write OUT/table.csv, OUT/results.json and OUT/report.html."""
    from ..evaluation.evaluate import evaluate
    from ..evaluation.judge import VlmJudge
    from ..evaluation.metrics import Unavailable
    from ..evaluation.report import write_report
    from ..evaluation.tables import text_table, write_csv, write_json

    names, plan = _chosen_metrics(chosen.metrics), _plan(chosen)
    made: list[Metric] = []
    columns: list[Column] = []
    notes: list[str] = []
    for name, (make, own) in _makers(chosen, plan.out).items():
        if name not in names:
            continue
        columns += own
        try:
            made.append(make())
        except Unavailable as e:
            notes.append(f"{e} Its columns stay empty.")
            print(notes[-1])
    outcome = evaluate(plan, made, print)
    notes += [m.trouble for m in made if isinstance(m, VlmJudge) and m.trouble]
    described = {k: v for m in made for k, v in m.describe().items()}
    write_csv(plan.out / "table.csv", outcome, columns)
    write_json(plan.out / "results.json", outcome, columns, described, notes)
    triplets = _shown(plan, outcome, columns, chosen.pictures)
    write_report(plan.out / "report.html", outcome, columns, triplets, described, notes)
    print(text_table(outcome, columns))
    print(f"{plan.out / 'report.html'}: open it in a browser")


def _shown(plan: Plan, outcome: Any, columns: list[Column], most: int) -> dict[str, Any]:
    """The worst cases' pictures, read again."""
    from ..evaluation.cases import open_cases
    from ..evaluation.tables import ranking, worst_first

    cases = open_cases(plan.data, plan.split)
    number = {name: i for i, name in enumerate(cases.ids)}
    worst = worst_first(outcome, ranking(outcome, columns))[: max(0, most)]
    return {c["id"]: cases.load(number[c["id"]]) for c in worst}
