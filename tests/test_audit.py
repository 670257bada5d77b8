"""The audit of scorers on pictures of known order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.data.shards import write_shard
from refiner_core.data.triplets import Triplet
from refiner_core.evaluation.audit import (
    ComparisonAudit,
    DistanceAudit,
    agreement,
    audit_scorers,
    kendall_tau,
    summarise_audit,
)
from refiner_core.evaluation.audit_orders import IDENTICAL, audit_orders
from refiner_core.evaluation.held_out_scenes import make_scene
from refiner_core.scoring.pixel_scorers import PIXEL_SCORERS
from refiner_core.scoring.scorer import IncomparableError
from refiner_core.scoring.seam import edge_ring, seam_error
from refiner_core.scoring.vlm_client import VlmClient
from refiner_core.scoring.vlm_scorer import VlmScorer
from tests.vlm_endpoint import endpoint, said_with_tokens

KINDS = [
    "truth over repair over draft",
    "weaker over stronger degradation",
    "right over wrong letters",
    "clean over seamed",
    "kept over changed surroundings",
    IDENTICAL,
]


def triplet(number: int = 0, **changes: Any) -> Triplet:
    scene = make_scene(500 + number, canvas=(96, 72), kind="word", degradation="swap")
    info = {"kind": "word", "degradation": {"name": "swap", "strength": 1.0}}
    values = {
        "id": f"case{number}",
        "draft": scene.draft,
        "reference": scene.reference,
        "target": scene.target,
        "mask": scene.mask,
        "info": info,
    }
    return Triplet(**{**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_shard(folder / "train-00000.tar", [triplet(i) for i in range(2)])
    return folder


def test_every_kind_of_order_and_what_is_known_of_it() -> None:
    orders = {o.kind: o for o in audit_orders(triplet(), 3)}
    assert list(orders) == KINDS
    rms = PIXEL_SCORERS["pixels"]
    for order in orders.values():
        assert len({p.shape for p in (*order.pictures, order.truth)}) == 1
    steps = orders["weaker over stronger degradation"]
    errors = [float(rms.distance(p / 255, steps.truth / 255, steps.mask)) for p in steps.pictures]
    assert errors == sorted(errors) and errors[0] < errors[-1]
    clean, seamed = orders["clean over seamed"].pictures
    truth, mask = orders["clean over seamed"].truth, orders["clean over seamed"].mask
    inside = [float(rms.distance(p / 255, truth / 255, mask)) for p in (clean, seamed)]
    assert inside[0] == pytest.approx(inside[1], rel=0.12), "only the seam tells them apart"
    once, twice = orders[IDENTICAL].pictures
    assert torch.equal(once, twice)


def test_orders_are_the_same_every_time_and_need_what_they_say() -> None:
    first, second = (list(audit_orders(triplet(), 3)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.pictures, b.pictures, strict=True))
    right = triplet(draft=triplet().target)
    assert [o.kind for o in audit_orders(right, 3)] == [KINDS[1], *KINDS[3:]]
    everything = triplet(mask=np.full_like(triplet().mask, 255))
    assert KINDS[4] not in [o.kind for o in audit_orders(everything, 3)]


def test_a_repair_of_another_size_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (50, 40)).save(tmp_path / "case0.png")
    with pytest.raises(ValueError, match=r"50x40.*96x72"):
        list(audit_orders(triplet(), 0, tmp_path))


class Oracle:
    """Knows the error inside the region, or its opposite."""

    def __init__(self, name: str, sign: float = 1.0) -> None:
        self.name, self.sign = name, sign

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.sign * (a - b).square().flatten(1).mean(1)


class Blind:
    """Sees no difference in anything, or has no answer."""

    def __init__(self, answers: bool) -> None:
        self.name, self.answers = f"blind {answers}", answers

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.answers:
            raise IncomparableError("nothing to compare")
        return torch.zeros(len(a))


class Lopsided:
    """Its answer depends on which picture comes first."""

    name = "lopsided"

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        return (a - b).mean((1, 2, 3)) + 10


def test_a_perfect_a_contrary_a_blind_and_a_mute_scorer(data: Path) -> None:
    scorers = [DistanceAudit(s) for s in (Oracle("right"), Oracle("wrong", -1.0), Blind(True))]
    scorers += [DistanceAudit(Blind(False)), DistanceAudit(Lopsided())]
    audit = audit_scorers(data, scorers, lambda _: None)
    found = {s.name: s for s in summarise_audit(audit)}
    assert found["right"].accuracy == pytest.approx(1 - found["wrong"].accuracy)
    assert found["right"].tau == pytest.approx(-found["wrong"].tau)
    degradation = found["right"].by_kind["weaker over stronger degradation"]
    assert degradation == 1.0 and found["right"].bias == 0
    blind, mute = found["blind True"], found["blind False"]
    assert (blind.accuracy, blind.tau, blind.ties) == (0.5, 0.0, 1.0)
    assert blind.by_kind[IDENTICAL] == 1.0
    assert (mute.pairs, mute.accuracy, mute.tau) == (0, None, None)
    assert found["lopsided"].bias == pytest.approx(0.9), "all pairs but the identical ones"
    shares = agreement(audit)
    assert shares["right", "right"] == 1 and shares["right", "wrong"] == 0
    assert shares["right", "blind True"] is None


def test_kendalls_tau_b() -> None:
    scorer = DistanceAudit(Oracle("x"))
    from refiner_core.evaluation.audit import judge_order

    order = next(iter(audit_orders(triplet(), 3)))
    for distances, tau in (
        ((1.0, 2.0, 3.0), 1.0),
        ((3.0, 2.0, 1.0), -1.0),
        ((1.0, 3.0, 2.0), 1 / 3),
    ):
        pairs = judge_order(scorer, order, 0, (list(distances), list(distances)))
        assert kendall_tau(pairs) == pytest.approx(tau)
    tied = judge_order(scorer, order, 0, ([1.0, 1.0, 2.0], [1.0, 1.0, 2.0]))
    assert kendall_tau(tied) == pytest.approx(2 / 6**0.5)  # scipy.stats.kendalltau's variant b


def test_a_judge_of_pairs_with_a_preference_for_the_first(data: Path) -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return 200, said_with_tokens("A", {"A": 0.9, "B": 0.1})

    with endpoint(answer) as (url, _):
        scorer = ComparisonAudit(VlmScorer(VlmClient(url, "m"), "pairs"))
        audit = audit_scorers(data, [scorer], lambda _: None, count=1)
    (found,) = summarise_audit(audit)
    assert found.bias == 1.0 and found.accuracy == 1.0, "the better one is shown first"
    assert "requests" in found.cost


def test_the_command_writes_figures_and_a_page(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorers = ["structural", "pixels", "edges", "seam", "background"]
    arguments = ["audit", "--data", str(data), "--out", str(tmp_path), "--count", "1"]
    assert main([*arguments, "--scorers", ",".join(scorers)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert [len(s["by_kind"]) for s in found["scorers"]] == [6] * 5 and found["cases"] == 1
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    for scorer in found["scorers"]:
        assert scorer["name"] in page and scorer["name"] in printed
    assert "http" not in page and page.count("<img") >= 3
    by_name = {s["name"]: s for s in found["scorers"]}
    assert by_name["seam"]["by_kind"]["clean over seamed"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorers", "taste"], "taste"),
        (["--scorers", ""], "none"),
        (["--scorers", "vlm"], "--vlm"),
        (["--scorers", "dreamsim"], "--dreamsim"),
        (["--results", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--count", "0"], "--count"),
    ],
)
def test_bad_arguments(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["audit", "--data", str(data), "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_cases_without_a_target_are_no_orders(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00000.tar", [triplet(target=None)])
    with pytest.raises(ValueError, match="target"):
        audit_scorers(tmp_path, [DistanceAudit(Oracle("x"))], lambda _: None)


# --- the seam --------------------------------------------------------------------------------------


def test_the_seam_is_on_a_ring_around_the_edge() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 10:30] = 1
    ring = edge_ring(mask, 2)
    assert ring[0, 0, 20].tolist() == [float(8 <= x < 12 or 28 <= x < 32) for x in range(40)]
    assert edge_ring(torch.ones(1, 1, 40, 40), 2).sum() == 0
    a = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    deep, step = a.clone(), a.clone()
    deep[..., 18:22, 18:22] = 0
    step[..., 10:30, 10:30] += 0.2
    assert float(seam_error(a, a, mask)) == float(seam_error(deep, a, mask)) == 0
    assert float(seam_error(step, a, mask)) > 1e-3
    assert float(seam_error(step, a, torch.ones_like(mask))) == 0
    assert float(seam_error(step, a)) == 0
