"""`omnirefiner evaluate`: repairs the cases of a data set, measures them, and writes a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exit_status
from .model_options import add_model_options, model_arguments
from .vlm_options import add_vlm_options, vlm_client
from .workers import add_workers, place

if TYPE_CHECKING:
    from ..data.triplets import Triplet
    from ..evaluation.evaluation_settings import EvaluationSettings, Outcome
    from ..evaluation.metric import Column, Metric

METRICS = ("pixels", "structure", "dreamsim", "dinov2", "arcface", "vlm", "lpips", "text")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("evaluate", help="measure a refiner on many cases and write a report")
    p.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="shards, Critic-10K's layout, or a folder with one folder per case",
    )
    p.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the run; an interrupted run is resumed",
    )
    p.add_argument("--split", help="split of the shards, such as train or validation; default: all")
    p.add_argument("--count", type=int, metavar="N", help="the first N cases; default: all")
    p.add_argument(
        "--workers", type=int, default=1, help="processes that repair on --device; default: 1"
    )
    add_workers(p)
    p.add_argument(
        "--results",
        metavar="DIR",
        help="measure finished repairs, DIR/ID.png, instead of running a refiner",
    )
    p.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another system's ID.png (or ID/refined.png), as a row of its own; repeatable",
    )
    p.add_argument(
        "--pictures",
        type=int,
        default=200,
        metavar="N",
        help="number of cases shown in the report, worst first; default: %(default)s",
    )
    add_model_options(p)
    _add_repair_options(p)
    _add_metric_options(p)
    p.set_defaults(run=run)


def _add_repair_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("repair")
    g.add_argument(
        "--prompt", help="the full prompt of all cases; default: the case's own, or the recipe's"
    )
    g.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the noise, combined with the id of each case; default: 0",
    )
    g.add_argument("--steps", type=int, help="sampling steps; default: the recipe's")
    g.add_argument(
        "--candidates",
        type=int,
        default=1,
        metavar="N",
        help="number of candidates per case, of which the best is kept; default: 1",
    )


def _add_metric_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("metrics")
    g.add_argument(
        "--metrics",
        default="pixels,structure",
        metavar="A,B,...",
        help=f"any of {', '.join(METRICS)}; default: %(default)s",
    )
    g.add_argument(
        "--dreamsim",
        metavar="FILE",
        help="DreamSim's weights, made by `omnirefiner convert dreamsim`",
    )
    g.add_argument("--dinov2", metavar="DIR", help="folder with facebook/dinov2-base or -large")
    g.add_argument("--insightface", metavar="DIR", help="folder with antelopev2 or buffalo_l")
    add_vlm_options(g)
    g.add_argument(
        "--vlm-votes",
        type=int,
        default=3,
        metavar="N",
        help="votes per case, 1 to 6; default: %(default)s",
    )


def _metric_names(text: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    unknown = sorted(set(names) - set(METRICS))
    if unknown or not names:
        raise ValueError(
            f"--metrics takes any of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}."
        )
    return [n for n in METRICS if n in names]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _judge(chosen: argparse.Namespace, out: Path) -> Metric:
    from ..evaluation.judge import VlmJudge
    from ..evaluation.metric import MetricUnavailable

    if chosen.vlm is None:
        raise MetricUnavailable("VLM: name an OpenAI-compatible endpoint with --vlm URL.")
    return VlmJudge(vlm_client(chosen), out / "vlm-replies.jsonl", chosen.vlm_votes)


def _factories(
    chosen: argparse.Namespace, out: Path
) -> dict[str, tuple[Callable[[], Metric], tuple[Column, ...]]]:
    """How each metric is created, and its columns, which stay empty if it cannot be."""
    from ..evaluation import metrics
    from ..evaluation.dinov2_metric import DinoV2Metric
    from ..evaluation.faces import ArcFace
    from ..evaluation.judge import VlmJudge
    from ..evaluation.text_metric import TextMetric
    from ..models.devices import pick_device

    device = str(pick_device(chosen.device))
    return {
        "pixels": (metrics.PixelMetric, metrics.PixelMetric.columns),
        "structure": (metrics.structural, metrics.STRUCTURE),
        "dreamsim": (lambda: metrics.dreamsim(_path(chosen.dreamsim), device), metrics.DREAMSIM),
        "dinov2": (lambda: DinoV2Metric(_path(chosen.dinov2), device), DinoV2Metric.columns),
        "arcface": (lambda: ArcFace(_path(chosen.insightface)), ArcFace.columns),
        "vlm": (lambda: _judge(chosen, out), VlmJudge.columns),
        "lpips": (metrics.LpipsMetric, metrics.LpipsMetric.columns),
        "text": (TextMetric, TextMetric.columns),
    }


def _settings(chosen: argparse.Namespace) -> EvaluationSettings:
    from ..evaluation.evaluation_settings import EvaluationSettings
    from ..repair.request import RefineOptions

    others: dict[str, Path] = {}
    for text in chosen.other:
        name, equals, folder = text.partition("=")
        if not equals:
            raise ValueError(f"--other takes NAME=DIR, got {text!r}.")
        others[name] = Path(folder).expanduser()
    return EvaluationSettings(
        data=Path(chosen.data).absolute(),
        out=Path(chosen.out),
        split=chosen.split,
        count=chosen.count,
        model=model_arguments(chosen),
        options=RefineOptions(
            prompt=chosen.prompt, seed=chosen.seed, steps=chosen.steps, candidates=chosen.candidates
        ),
        results=_path(chosen.results),
        others=others,
        place=place(chosen),
    )


def _create_metrics(
    chosen: argparse.Namespace, out: Path
) -> tuple[list[Metric], list[Column], list[str]]:
    """The metrics that can be computed, the columns of all, and notes on the missing ones."""
    from ..evaluation.metric import MetricUnavailable

    names = _metric_names(chosen.metrics)
    metrics: list[Metric] = []
    columns: list[Column] = []
    notes: list[str] = []
    for name, (create, own) in _factories(chosen, out).items():
        if name not in names:
            continue
        columns += own
        try:
            metrics.append(create())
        except MetricUnavailable as e:
            notes.append(f"{e} Its columns stay empty.")
            print(notes[-1])
    return metrics, columns, notes


def run(chosen: argparse.Namespace) -> int:
    """Run it and write OUT/table.csv, OUT/results.json and OUT/report.html; the exit status."""
    from ..evaluation.judge import VlmJudge
    from ..evaluation.report import write_report
    from ..evaluation.runner import evaluate
    from ..evaluation.tables import text_table, write_csv, write_json

    settings = _settings(chosen)
    out = settings.out
    metrics, columns, notes = _create_metrics(chosen, out)
    outcome = evaluate(settings, metrics, print)
    notes += [m.failure for m in metrics if isinstance(m, VlmJudge) and m.failure]
    notes += _input_notes(outcome)
    described = {k: v for m in metrics for k, v in m.describe().items()}
    write_csv(out / "table.csv", outcome, columns)
    write_json(out / "results.json", outcome, columns, described, notes)
    triplets = _shown_triplets(outcome, columns, chosen.pictures)
    write_report(out / "report.html", outcome, columns, triplets, described, notes)
    print(text_table(outcome, columns))
    print(f"Open {out / 'report.html'} in a browser.")
    if outcome.failed:
        count = len(outcome.failed) + len(outcome.measured)
        said = f"{len(outcome.failed)} of {count} cases failed: see {out / 'results.json'}."
        print(said, file=sys.stderr)
        return exit_status.SOME_FAILED
    return exit_status.DONE


def _input_notes(outcome: Outcome) -> list[str]:
    """What a reader must know about the cases' files."""
    from ..data.pair_files import count_system_files

    notes: list[str] = []
    composited = sum("composited_over_white" in case["info"] for case in outcome.measured)
    if composited:
        notes.append(f"Transparent pictures of {composited} cases were composited over white.")
    skipped = count_system_files(outcome.settings.data)
    if skipped:
        notes.append(
            f"{skipped} files of macOS or Windows (._*, .DS_Store, Thumbs.db) were skipped."
        )
    for note in notes:
        print(note)
    return notes


def _shown_triplets(outcome: Outcome, columns: list[Column], count: int) -> dict[str, Triplet]:
    """The worst cases, read again for their pictures."""
    from ..evaluation.cases import open_cases
    from ..evaluation.tables import ranking, worst_first

    cases = open_cases(outcome.settings.data, outcome.settings.split)
    number = {name: i for i, name in enumerate(cases.ids)}
    worst = worst_first(outcome, ranking(outcome, columns))[: max(0, count)]
    return {c["id"]: cases.load(number[c["id"]]) for c in worst}
