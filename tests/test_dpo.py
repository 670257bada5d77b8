"""Learning from kept and rejected repairs: the loss, the folders it reads, and the run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.data.preferences import (
    Preference,
    Repair,
    RepairInputs,
    comparisons,
    read_preference,
    record_verdict,
)
from refiner_core.data.shards import write_shard
from refiner_core.training.config_dpo import DPO_PRESETS, DpoConfig
from refiner_core.training.dpo import DpoObjective, dpo_loss, place_weights, rank_weight
from refiner_core.training.memory_estimate import CARDS, estimate_memory
from refiner_core.training.open_session import open_session
from refiner_core.training.preference_data import (
    preference_readers,
    read_ranks,
    write_preferences,
)
from refiner_core.training.settings import build, merged
from tests.test_audit import triplet
from tests.tiny_training import final, largest_difference, write_preference


def preference(number: int = 0, repairs: int = 2) -> Preference:
    """The target, and mixtures of it with the draft, each worse than the one before."""
    t = triplet(number)
    assert t.target is not None
    shares = np.linspace(0, 1, repairs)
    mixed = [((1 - s) * t.target + s * t.draft).astype(np.uint8) for s in shares]
    made = tuple(Repair(rank, pixels) for rank, pixels in enumerate(mixed, 1))
    return Preference(f"case{number}", t.draft, t.reference, t.mask, made, prompt="a word")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    for i in range(4):
        write_preference(folder, preference(i, 3))
    return folder


SETTINGS: dict[str, Any] = {
    "data": {"held_out": 1, "megapixels": 0.004},
    "run": {"batch": 2, "micro_batch": 1, "max_steps": 2, "save_every": 1, "validate_every": 0},
}


def config(**over: Any) -> DpoConfig:
    return build(DpoConfig, merged(merged(DPO_PRESETS["nano"], SETTINGS), over))


# --- the loss --------------------------------------------------------------------------------------


def test_the_loss_is_ln_2_at_the_reference_and_its_gradient_is_known() -> None:
    kept, rejected = (torch.zeros(3, requires_grad=True) for _ in range(2))
    loss = dpo_loss(kept, rejected, 50.0)
    torch.testing.assert_close(loss, torch.full((3,), math.log(2)))
    loss.sum().backward()
    assert kept.grad is not None and rejected.grad is not None
    torch.testing.assert_close(kept.grad, torch.full((3,), 50.0 / 4))
    torch.testing.assert_close(rejected.grad, torch.full((3,), -50.0 / 4))


def test_a_swapped_pair_has_the_other_probability() -> None:
    a, b = torch.tensor([0.03, -0.01]), torch.tensor([-0.02, 0.04])
    one, other = dpo_loss(a, b, 30.0), dpo_loss(b, a, 30.0)
    torch.testing.assert_close((-one).exp() + (-other).exp(), torch.ones(2))


def test_ranks_weigh_pairs() -> None:
    assert comparisons([1, 2, 2, 3]) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    expected = (2 - 1) * (1 / math.log(2) - 1 / math.log(3))
    assert rank_weight(1, 2, 2) == pytest.approx(expected)
    assert rank_weight(2, 1, 2) == pytest.approx(expected)
    assert rank_weight(1, 4, 4) > rank_weight(1, 2, 4) > rank_weight(3, 4, 4) > 0


def test_places_weigh_by_how_much_the_repairs_differ_there() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    kept, everywhere = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.7)
    constant = place_weights(kept, everywhere, mask, 0.6)
    torch.testing.assert_close(constant, torch.ones(1, 1, 4, 4))
    above = everywhere.clone()
    above[..., 2:, :2] = 0  # the lower half of the region is the same in both
    weights = place_weights(kept, above, mask, 0.6)
    torch.testing.assert_close(weights[..., :2, :2], torch.full((1, 1, 2, 2), 0.4 + 0.6 * 2))
    torch.testing.assert_close(weights[..., 2:, :2], torch.full((1, 1, 2, 2), 0.4))
    torch.testing.assert_close(weights[..., 2:], torch.ones(1, 1, 4, 2))
    torch.testing.assert_close(place_weights(above, kept, mask, 0.6), weights)
    assert float((weights * mask).sum() / mask.sum()) == pytest.approx(1)
    assert torch.equal(place_weights(kept, above, mask, 0.0), torch.ones(1, 1, 4, 4))
    same = place_weights(kept, kept, mask, 1.0)
    assert not same.any(), "what is equal everywhere has no weight, rather than NaN"


@pytest.mark.slow
@pytest.mark.parametrize("ranked", [False, True])
def test_a_constant_weight_of_places_is_the_plain_loss(
    data: Path, tmp_path: Path, ranked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(share: float) -> float:
        settings = config(objective={"ranked": ranked, "map_share": share})
        session = open_session(settings, data, tmp_path / "run", "cpu")
        objective = DpoObjective(settings, session)
        session.trainable.snapshot("ref")
        for n, p in enumerate(session.trainable.parameters.values()):
            p.data.mul_(1 + 0.05 * (-1) ** n)  # no longer the reference
        objective.begin(0, lambda _: None)
        return sum(float(t().value.detach()) for t in objective.update(0).terms)

    plain, placed = value(0.0), value(0.5)
    assert plain != pytest.approx(placed, rel=1e-6) and plain != pytest.approx(math.log(2))
    monkeypatch.setattr(
        "refiner_core.training.dpo.place_weights", lambda a, b, m, share: torch.ones_like(m)
    )
    assert value(0.5) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(("ranked", "share"), [(False, 0.0), (True, 0.7)])
def test_the_first_update_of_a_run_starts_from_ln_2(
    data: Path, tmp_path: Path, ranked: bool, share: float
) -> None:
    settings = config(objective={"ranked": ranked, "map_share": share})
    objective = DpoObjective(settings, open_session(settings, data, tmp_path, "cpu"))
    objective.learner.trainable.snapshot("ref")
    objective.begin(0, lambda _: None)
    terms = [t() for t in objective.update(0).terms]
    weights = [rank_weight(i, j, 3) for i, j in ((1, 2), (1, 3), (2, 3))]
    expected = math.log(2) * (sum(weights) if ranked else 1)
    assert sum(float(t.value.detach()) for t in terms) == pytest.approx(expected, rel=1e-5)
    assert sum(t.metrics["kept"] for t in terms) == 0
    for t in terms:
        t.value.backward()
    grads = [p.grad for p in objective.learner.trainable.parameters.values()]
    assert any(g is not None and bool(g.any()) for g in grads)


def test_repairs_of_a_case_are_cropped_alike(data: Path, tmp_path: Path) -> None:
    session = open_session(config(), data, tmp_path, "cpu")
    from refiner_core.training.preference_dataset import PreferenceDataset

    assert isinstance(session.dataset, PreferenceDataset) and len(session.dataset) == 3
    repairs = session.dataset.repairs(0)
    assert [rank for rank, _ in repairs] == [1, 2, 3]
    first, *others = (item for _, item in repairs)
    for other in others:
        assert torch.equal(first.mask, other.mask)
        assert all(
            torch.equal(a, b) for a, b in zip(first.references, other.references, strict=True)
        )
        assert not torch.equal(first.target, other.target)
    assert len(session.held_out) == 1


# --- folders ---------------------------------------------------------------------------------------


def write(folder: Path, **pictures: Any) -> Path:
    """A case of 16x16 grey pictures by file name."""
    folder.mkdir(parents=True)
    for name, grey in {"draft": 90, "reference": 120, "mask": 255, **pictures}.items():
        if grey is not None:
            mode = "L" if "mask" in name else "RGB"
            colour = grey if mode == "L" else (grey,) * 3
            size = (16, 20) if name.endswith("_large") else (16, 16)
            Image.new(mode, size, colour).save(folder / f"{name}.png")
    return folder


def test_kept_and_rejected_files_are_two_ranks(tmp_path: Path) -> None:
    case = write(tmp_path / "a", kept_1=100, kept_2=101, rejected_1=50, **{"rejected_2": 51})
    found = read_preference(case)
    assert [r.rank for r in found.repairs] == [1, 1, 2, 2]
    assert comparisons([r.rank for r in found.repairs]) == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_verdicts_on_the_same_inputs_share_a_folder(tmp_path: Path) -> None:
    p = preference(0, 3)
    inputs = RepairInputs(p.draft, p.reference, p.mask, "a word")
    best, middle, _ = (r.pixels for r in p.repairs)
    kept = record_verdict(tmp_path, inputs, best, True)
    rejected = record_verdict(tmp_path, inputs, middle, False)
    assert kept.parent == rejected.parent
    found = read_preference(kept.parent)
    assert [r.rank for r in found.repairs] == [1, 2] and found.prompt == "a word"
    assert np.array_equal(found.repairs[0].pixels, best)
    changed = record_verdict(tmp_path, inputs, best, False)
    assert changed.is_file() and not kept.exists(), "the second verdict counts"
    other = record_verdict(tmp_path, inputs._replace(mask=255 - p.mask), best, True)
    assert other.parent != kept.parent
    with pytest.raises(ValueError, match="96x72"):
        record_verdict(tmp_path, inputs, best[:-4], True)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({"kept": 100}, "1 repairs"),
        ({}, "0 repairs"),
        ({"kept": 100, "rejected": 100}, "identical"),
        ({"kept": 100, "rejected": 50, "draft": None}, r"draft\.png"),
        ({"kept": 100, "rejected": 50, "mask": None}, r"mask\.png"),
        ({"kept": 100, "rejected_large": 50}, "16x20.*16x16"),
    ],
)
def test_cases_that_teach_nothing(tmp_path: Path, pictures: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_preference(write(tmp_path / "a", **pictures))


def test_unusable_cases_are_counted_and_left_out(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for i in range(2):
        write_preference(folder, preference(i))
    write(folder / "same", kept=100, rejected=100)
    lines: list[str] = []
    made, held = write_preferences(folder, tmp_path / "cache", 8, lines.append)
    assert held == 1 and "1 of 3" in lines[0] and "same" in lines[0]
    assert json.loads((made / "preferences.json").read_text())["left_out"].keys() == {"same"}
    assert write_preferences(folder, tmp_path / "cache", 8, lines.append) == (made, held)
    assert len(lines) == 1, "written once"


def test_a_prompt_with_a_line_separator_keeps_the_order_readable(tmp_path: Path) -> None:
    made = replace(preference(0, 3), prompt="two\u2028lines\x85of a word")
    write_preference(tmp_path / "data", made)
    folder, _ = write_preferences(tmp_path / "data", tmp_path / "cache", 0, print)
    assert sorted(rank for _, rank in read_ranks(folder).values()) == [1, 2, 3]


def test_a_folder_without_preferences(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=str(folder)):
            preference_readers(folder)
    write(tmp_path / "same", kept=1, rejected=1)
    with pytest.raises(ValueError, match="identical"):
        write_preferences(tmp_path, tmp_path / "cache", 0, print)


def test_orders_come_from_an_audit_and_from_an_evaluation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_shard(source / "train-00000.tar", [triplet(i) for i in range(2)])
    arguments = ["--data", str(source), "--out", str(tmp_path / "audit"), "--scorers", "pixels"]
    assert main(["audit", *arguments]) == 0
    found = preference_readers(tmp_path / "audit")["case0"]()
    assert [r.rank for r in found.repairs] == [1, 2, 3]
    assert np.array_equal(found.repairs[0].pixels, triplet(0).target)
    assert np.array_equal(found.repairs[2].pixels, triplet(0).draft)

    results = tmp_path / "repairs"
    results.mkdir()
    for i in range(2):
        Image.fromarray(triplet(i).target).save(results / f"case{i}.png")
    arguments = ["--data", str(source), "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", *arguments, "--results", str(results)]) == 0
    (tmp_path / "evaluation" / "cases" / "case0" / "refined.png").write_bytes(
        (results / "case0.png").read_bytes()
    )
    found = preference_readers(tmp_path / "evaluation")["case0"]()
    assert np.array_equal(found.repairs[0].pixels, triplet(0).target), "the truth is the best"
    assert len(found.repairs) == 4


# --- the run ---------------------------------------------------------------------------------------


def run(data: Path, out: Path, steps: int, *settings: str) -> dict[str, Tensor]:
    values = {"held_out": "1", "megapixels": "0.004"}
    assignments = [f"data.{k}={v}" for k, v in values.items()]
    assignments += ["run.batch=2", "run.micro_batch=1", "run.save_every=1", *settings]
    chosen = [x for a in assignments for x in ("--set", a)]
    arguments = ["train", "dpo", "--preset", "nano", "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--device", "cpu", "--max-steps", str(steps), *chosen]) == 0
    return final(out)


@pytest.mark.slow
def test_an_interrupted_run_is_equal_to_the_bit(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", 3)
    run(data, tmp_path / "halves", 1)
    halves = run(data, tmp_path / "halves", 3)
    assert largest_difference(whole, halves) == 0
    assert (tmp_path / "whole" / "refiner.safetensors").is_file()
    rows = [json.loads(x) for x in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "kept", "rejected"} <= {k for r in rows for k in r}


def test_settings_that_preferences_do_not_have() -> None:
    with pytest.raises(ValueError, match=r"data\.variants = 4"):
        config(data={"variants": 4})
    with pytest.raises(ValueError, match=r"loss\.contrast = 0\.1"):
        config(loss={"contrast": 0.1})


def test_the_plan_counts_both_repairs() -> None:
    one = estimate_memory(config(run={"batch": 2}), CARDS["cpu"])
    two = estimate_memory(config(run={"batch": 4}), CARDS["cpu"])
    assert two.flops == pytest.approx(2 * one.flops)
    ranked = estimate_memory(config(objective={"ranked": True}), CARDS["cpu"])
    assert ranked.memory["activations"] == pytest.approx(4 * one.memory["activations"])


def test_a_written_preference_is_read_again(tmp_path: Path) -> None:
    made = preference(0, 3)
    found = read_preference(write_preference(tmp_path, made))
    assert found.prompt == "a word" and found.reference_mask is None
    for a, b in zip(made.repairs, found.repairs, strict=True):
        assert a.rank == b.rank and np.array_equal(a.pixels, b.pixels)
    assert np.array_equal(replace(made).mask, found.mask)
