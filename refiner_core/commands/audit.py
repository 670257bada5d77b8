"""`omnirefiner audit`: which scorers put pictures of known order into that order."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .vlm_options import add_vlm_options, vlm_client

if TYPE_CHECKING:
    from ..evaluation.audit import AuditedScorer
    from ..scoring.scorer import Scorer

SCORERS = (
    "structural",
    "pixels",
    "ssim",
    "edges",
    "seam",
    "background",
    "dreamsim",
    "dinov2",
    "text",
    "vlm",
)
DEFAULT = "structural,pixels,ssim,edges,seam,background"


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser(
        "audit", help="measure how reliably scorers order pictures whose order is known"
    )
    p.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="cases with targets: shards, Critic-10K's layout, or one folder per case",
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder for audit.json and audit.html"
    )
    p.add_argument(
        "--scorers",
        default=DEFAULT,
        metavar="A,B,...",
        help=f"any of {', '.join(SCORERS)}; default: %(default)s",
    )
    p.add_argument("--split", help="split of the shards, such as train or validation; default: all")
    p.add_argument("--count", type=int, metavar="N", help="the first N cases; default: all")
    p.add_argument(
        "--results",
        metavar="DIR",
        help="repairs ID.png or ID/refined.png (the folder cases of an evaluation); default: mixtures "
        "of target and draft",
    )
    p.add_argument(
        "--pictures",
        type=int,
        default=12,
        metavar="N",
        help="number of wrong pairs shown for each scorer; default: %(default)s",
    )
    p.add_argument("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    _add_scorers(p.add_argument_group("scorers"))
    p.set_defaults(run=run)


def _add_scorers(g: Any) -> None:
    g.add_argument(
        "--dreamsim",
        metavar="FILE",
        help="DreamSim's weights, made by `omnirefiner convert dreamsim`",
    )
    g.add_argument("--dinov2", metavar="DIR", help="folder with facebook/dinov2-base or -large")
    add_vlm_options(g)
    g.add_argument(
        "--vlm-form",
        choices=("digit", "yes", "edit", "pairs"),
        default="digit",
        help="how the model is asked: a digit, yes or no, EditScore's form, or which of two pictures is "
        "better; default: %(default)s",
    )
    g.add_argument(
        "--vlm-passes",
        type=int,
        default=1,
        metavar="N",
        help="replies per picture, of which the mean is used; more than one are sampled at temperature "
        "0.7; default: %(default)s",
    )
    g.add_argument(
        "--vlm-tie-band",
        type=float,
        default=0.05,
        metavar="D",
        help="scores that differ by no more than this are ties; default: %(default)s",
    )


def _names(text: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    unknown = sorted(set(names) - set(SCORERS))
    if unknown or not names:
        raise ValueError(
            f"--scorers takes any of {', '.join(SCORERS)}; got {', '.join(unknown) or 'none'}."
        )
    return list(dict.fromkeys(names))


def _vlm(chosen: argparse.Namespace, out: Path) -> AuditedScorer:
    from ..evaluation.audit import ComparisonAudit, DistanceAudit
    from ..scoring.vlm_scorer import VlmScorer

    client = vlm_client(chosen, out / "vlm-cache.jsonl")
    scorer = VlmScorer(client, chosen.vlm_form, chosen.vlm_passes, chosen.vlm_tie_band)
    if chosen.vlm_form == "pairs":
        return ComparisonAudit(scorer)
    return DistanceAudit(scorer, chosen.vlm_tie_band)


def _scorer(name: str, chosen: argparse.Namespace) -> Scorer:
    from ..scoring.pixel_scorers import PIXEL_SCORERS

    if name in PIXEL_SCORERS:
        return PIXEL_SCORERS[name]
    if name == "text":
        from ..scoring.text import TextScorer

        return TextScorer()
    from ..data.stages.selection import load_scorer

    if name in ("dreamsim", "dinov2") and getattr(chosen, name) is None:
        raise ValueError(f"The scorer {name} needs --{name}.")
    return load_scorer(name, getattr(chosen, name, None))


def _make_scorers(chosen: argparse.Namespace, out: Path) -> list[AuditedScorer]:
    from ..evaluation.audit import DistanceAudit

    names = _names(chosen.scorers)
    return [
        _vlm(chosen, out) if name == "vlm" else DistanceAudit(_scorer(name, chosen))
        for name in names
    ]


def run(chosen: argparse.Namespace) -> None:
    """Run it and write OUT/audit.json and OUT/audit.html."""
    import torch

    from ..evaluation.audit import audit_scorers, audit_table, write_audit
    from ..evaluation.audit_report import write_audit_report

    data, out = Path(chosen.data), Path(chosen.out)
    results = None if chosen.results is None else Path(chosen.results)
    if results is not None and not results.is_dir():
        raise ValueError(f"--results: the folder {results} does not exist.")
    if chosen.count is not None and chosen.count < 1:
        raise ValueError(f"--count must be at least 1, got {chosen.count}.")
    out.mkdir(parents=True, exist_ok=True)
    scorers = _make_scorers(chosen, out)
    with torch.inference_mode():
        audit = audit_scorers(
            data, scorers, print, split=chosen.split, count=chosen.count, results=results
        )
    settings = {"data": str(data), "split": chosen.split, "results": chosen.results}
    write_audit(out / "audit.json", audit, settings)
    write_audit_report(
        out / "audit.html",
        audit,
        data,
        split=chosen.split,
        results=results,
        shown=max(0, chosen.pictures),
    )
    print(audit_table(audit))
    for name, cost in audit.costs.items():
        if cost:
            print(f"{name}: {cost}")
    print(f"Open {out / 'audit.html'} in a browser.")
