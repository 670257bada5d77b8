"""Audits scorers on pictures of known order: accuracy, Kendall's tau, ties, order bias, agreement, cost."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..images.tensors import to_float
from ..scoring.scorer import Scorer
from ..scoring.vlm_scorer import VlmScorer
from ..storage.output_files import write_text
from .audit_orders import IDENTICAL, AuditOrder, read_orders
from .cases import open_cases

Log = Callable[[str], None]
Distances = list[float | None]
_EXACT = 1e-6  # distances that differ by no more than this are ties


class AuditedScorer(Protocol):
    """A scorer as the audit asks it."""

    @property
    def name(self) -> str: ...

    @property
    def tie_band(self) -> float:
        """Distances that differ by no more than this are ties."""
        ...

    def distances(self, order: AuditOrder) -> tuple[Distances, Distances]:
        """Of every picture to the truth; and with the two pictures of each question swapped.

        None where the scorer has no answer.
        """
        ...

    def cost(self) -> str:
        """What it cost apart from time; empty: nothing."""
        ...


@dataclass(frozen=True)
class DistanceAudit:
    """A `Scorer` of two pictures."""

    scorer: Scorer
    tie_band: float = _EXACT

    @property
    def name(self) -> str:
        return self.scorer.name

    def distances(self, order: AuditOrder) -> tuple[Distances, Distances]:
        """See `AuditedScorer.distances`."""
        truth = to_float(order.truth)
        pictures = [to_float(p) for p in order.pictures]
        return (
            [self._distance(p, truth, order.mask) for p in pictures],
            [self._distance(truth, p, order.mask) for p in pictures],
        )

    def _distance(self, a: Tensor, b: Tensor, mask: Tensor) -> float | None:
        try:
            value = float(self.scorer.distance(a, b, mask))
        except ValueError:  # for example no lettering that could be compared
            return None
        return value if math.isfinite(value) else None

    def cost(self) -> str:
        """A vision-language model's requests and tokens."""
        return self.scorer.client.usage.summary() if isinstance(self.scorer, VlmScorer) else ""


@dataclass(frozen=True)
class ComparisonAudit:
    """A vision-language model that is asked which of two pictures is better."""

    scorer: VlmScorer

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def tie_band(self) -> float:
        return self.scorer.tie_band

    def distances(self, order: AuditOrder) -> tuple[Distances, Distances]:
        """Shares of the comparisons that a picture loses: the better shown first, and shown second."""
        pictures = torch.cat([to_float(p) for p in order.pictures])
        table = self.scorer.preferences(pictures, to_float(order.truth), order.mask)
        upper = table.triu(1)
        lower = table.tril(-1)
        return _losses(upper + (1 - upper.T).tril(-1)), _losses(lower + (1 - lower.T).triu(1))

    def cost(self) -> str:
        """Requests and tokens."""
        return self.scorer.client.usage.summary()


def _losses(preferences: Tensor) -> Distances:
    """The mean probability of losing, from `G G` probabilities of winning with a diagonal of 0."""
    wins = preferences.sum(1) / (len(preferences) - 1)
    return [None if math.isnan(w) else 1 - w for w in wins.tolist()]


@dataclass(frozen=True)
class AuditedPair:
    """A scorer's answer on two pictures of which `better` is known to be better (or equal)."""

    scorer: str
    kind: str
    case: str
    order: int  # number of the order
    better: int  # numbers of the pictures in the order
    worse: int
    names: tuple[str, str]
    distances: tuple[float, float]
    swapped: tuple[float, float] | None
    tie: bool
    right: bool  # the better one is nearer; for identical pictures: a tie
    biased: bool  # with the pictures swapped the preference is another one


@dataclass(frozen=True)
class Audit:
    """The answers of all scorers."""

    pairs: list[AuditedPair]
    taus: dict[str, list[float]]  # Kendall's tau-b of every order of at least two pictures
    seconds: dict[str, float]  # per picture
    costs: dict[str, str]
    orders: int
    cases: int
    skipped: dict[str, str]  # cases that were left out, with the reason


def audit_scorers(
    data: Path,
    scorers: Sequence[AuditedScorer],
    log: Log,
    *,
    split: str | None = None,
    count: int | None = None,
    results: Path | None = None,
) -> Audit:
    """Ask every scorer about the orders of a data set's cases.

    Raises:
        ValueError: there are no cases with a target.
    """
    cases = open_cases(data, split)
    pairs: list[AuditedPair] = []
    taus: dict[str, list[float]] = {s.name: [] for s in scorers}
    seconds, asked = dict.fromkeys(taus, 0.0), 0
    skipped: dict[str, str] = {}
    orders = done = 0
    for index in range(len(cases.ids) if count is None else min(count, len(cases.ids))):
        try:
            made = read_orders(data, split, index, results)
        except ValueError as e:
            skipped[cases.ids[index]] = str(e)
            log(f"{cases.ids[index]} is left out: {e}")
            continue
        for number, order in enumerate(made):
            asked += 2 * len(order.pictures)
            for scorer in scorers:
                start = time.perf_counter()
                answers = scorer.distances(order)
                seconds[scorer.name] += time.perf_counter() - start
                found = judge_order(scorer, order, number, answers)
                pairs += found
                if order.kind != IDENTICAL and found:
                    taus[scorer.name].append(kendall_tau(found))
        orders, done = orders + len(made), done + 1
        log(f"{cases.ids[index]}: {len(made)} orders")
    if not done:
        raise ValueError(f"{data} has no case with a target, so no order of pictures is known.")
    each = {k: v / max(1, asked) for k, v in seconds.items()}
    costs = {s.name: s.cost() for s in scorers}
    return Audit(pairs, taus, each, costs, orders, done, skipped)


def judge_order(
    scorer: AuditedScorer,
    order: AuditOrder,
    number: int,
    answers: tuple[Distances, Distances],
) -> list[AuditedPair]:
    """The answer on every pair of an order's pictures that the scorer can compare."""
    forward, backward = answers
    out: list[AuditedPair] = []
    for i, j in itertools.combinations(range(len(order.pictures)), 2):
        a, b = forward[i], forward[j]
        if a is None or b is None:
            continue
        preference = _preference(a, b, scorer.tie_band)
        other = backward[i], backward[j]
        swapped = None if other[0] is None or other[1] is None else (other[0], other[1])
        biased = swapped is not None and _preference(*swapped, scorer.tie_band) != preference
        right = preference == (0 if order.kind == IDENTICAL else 1)
        names = (order.names[i], order.names[j])
        out.append(
            AuditedPair(
                scorer.name,
                order.kind,
                order.case,
                number,
                i,
                j,
                names,
                (a, b),
                swapped,
                preference == 0,
                right,
                biased,
            )
        )
    return out


def _preference(a: float, b: float, tie_band: float) -> int:
    """1 if the first is nearer, -1 if the second is, 0 for a tie."""
    return 0 if abs(a - b) <= tie_band else (1 if a < b else -1)


def kendall_tau(pairs: Sequence[AuditedPair]) -> float:
    """Kendall's tau-b between a known order without ties and a scorer's; 0 if all are ties."""
    right = sum(p.right for p in pairs)
    wrong = sum(not p.right and not p.tie for p in pairs)
    if right + wrong == 0:
        return 0.0
    return (right - wrong) / math.sqrt((right + wrong) * len(pairs))


@dataclass(frozen=True)
class ScorerSummary:
    """The figures of one scorer; None where it could not compare anything."""

    name: str
    pairs: int
    accuracy: float | None  # of the pairs that are not identical, a tie counting as half
    tau: float | None  # mean over the orders
    ties: float | None
    bias: float | None  # share of pairs whose preference changes when the pictures are swapped
    by_kind: dict[str, float | None]  # accuracy; of identical pictures: the share called equal
    seconds: float  # per picture
    cost: str


def summarise_audit(audit: Audit) -> list[ScorerSummary]:
    """The figures of every scorer, the most accurate first."""
    kinds = audit_kinds(audit)
    out: list[ScorerSummary] = []
    for name in audit.taus:
        own = [p for p in audit.pairs if p.scorer == name]
        ordered = [p for p in own if p.kind != IDENTICAL]
        taus = audit.taus[name]
        out.append(
            ScorerSummary(
                name,
                len(ordered),
                _accuracy(ordered),
                sum(taus) / len(taus) if taus else None,
                _share([p.tie for p in ordered]),
                _share([p.biased for p in own if p.swapped is not None]),
                {k: _accuracy([p for p in own if p.kind == k]) for k in kinds},
                audit.seconds[name],
                audit.costs[name],
            )
        )
    return sorted(out, key=lambda s: -1.0 if s.accuracy is None else s.accuracy, reverse=True)


def audit_kinds(audit: Audit) -> list[str]:
    """The kinds of orders that occur, in the order in which they were made."""
    return list(dict.fromkeys(p.kind for p in audit.pairs))


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _accuracy(pairs: Sequence[AuditedPair]) -> float | None:
    if not pairs:
        return None
    halves = sum(0.5 for p in pairs if p.tie and p.kind != IDENTICAL)
    return (sum(p.right for p in pairs) + halves) / len(pairs)


def agreement(audit: Audit) -> dict[tuple[str, str], float | None]:
    """For every two scorers, the share of pairs on which they agree among those both decide."""
    answers: dict[str, dict[tuple[str, int, int, int], bool]] = {name: {} for name in audit.taus}
    for p in audit.pairs:
        if not p.tie and p.kind != IDENTICAL:
            answers[p.scorer][(p.case, p.order, p.better, p.worse)] = p.right
    out: dict[tuple[str, str], float | None] = {}
    for first, second in itertools.product(answers, repeat=2):
        shared = answers[first].keys() & answers[second].keys()
        same = [answers[first][k] == answers[second][k] for k in shared]
        out[first, second] = _share(same)
    return out


def write_audit(path: Path, audit: Audit, settings: Mapping[str, object]) -> None:
    """Write figures and answers as JSON, completely or not at all."""
    data = {
        "settings": dict(settings),
        "cases": audit.cases,
        "orders": audit.orders,
        "skipped": audit.skipped,
        "scorers": [asdict(s) for s in summarise_audit(audit)],
        "agreement": [
            {"scorers": list(names), "share": share} for names, share in agreement(audit).items()
        ],
        "pairs": [asdict(p) for p in audit.pairs],
    }
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False))


def audit_table(audit: Audit) -> str:
    """The figures for a terminal, in Markdown."""
    kinds = audit_kinds(audit)
    lines = [
        "| scorer | accuracy | tau | ties | order bias | "
        + " | ".join(kinds)
        + " | s per picture |",
        "|---" * (len(kinds) + 6) + "|",
    ]
    for s in summarise_audit(audit):
        cells = [s.accuracy, s.tau, s.ties, s.bias, *(s.by_kind[k] for k in kinds)]
        lines.append(
            f"| {s.name} | " + " | ".join(map(format_share, cells)) + f" | {s.seconds:.4f} |"
        )
    return "\n".join(lines)


def format_share(value: float | None) -> str:
    """A share for a table; empty without one."""
    return "" if value is None else f"{value:.3f}"
