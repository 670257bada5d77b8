"""The contrast of references: the loss, which other references it takes, and the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refiner_core.training.config import SftConfig
from refiner_core.training.losses import contrast_loss
from refiner_core.training.memory_estimate import CARDS, estimate_memory
from refiner_core.training.settings import build, merged
from refiner_core.training.sft import SftObjective
from refiner_core.training.supervised_loss import with_others
from refiner_core.training.trainer import Trainer
from tests.tiny_training import SETTINGS, tiny_session, tiny_trainer

ALWAYS = {"reference_dropout": 0.0, "caption_dropout": 0.0}


def trainer(out: Path, *, micro_batch: int = 2, **loss: Any) -> Trainer:
    over = {"loss": {**ALWAYS, **loss}, "run": {"micro_batch": micro_batch}}
    config = build(SftConfig, merged(SETTINGS, over))
    return tiny_trainer(config, tiny_session(config, out))


def gradients(run: Trainer) -> tuple[dict[str, float], list[Tensor]]:
    """The metrics and the gradients of the first update."""
    run.objective.begin(0, lambda _: None)
    sums: dict[str, float] = {}
    for compute in run.objective.update(0).terms:
        term = compute()
        term.value.backward()
        for key, value in term.metrics.items():
            sums[key] = sums.get(key, 0.0) + value
    found = [p.grad for p in run.trainable.parameters.values()]
    return sums, [g for g in found if g is not None]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_errors_cannot_be_told_apart(count: int) -> None:
    found = contrast_loss(torch.full((3, count), 0.2), 0.07, 4.0)
    torch.testing.assert_close(found, torch.full((3,), math.log(count)))


def test_own_and_other_pull_against_each_other() -> None:
    errors = torch.tensor([[0.03, 0.05], [0.05, 0.03]], requires_grad=True)
    loss = contrast_loss(errors, 0.07, 4.0)
    assert loss[0] < math.log(2) < loss[1]
    torch.testing.assert_close((-loss[0]).exp() + (-loss[1]).exp(), torch.tensor(1.0))
    loss.sum().backward()
    assert errors.grad is not None
    assert (errors.grad[:, 0] > 0).all(), "the own error is to fall"
    assert (errors.grad[:, 1] < 0).all(), "that of the other reference is to rise"


def test_without_weight_nothing_changes(tmp_path: Path) -> None:
    plain = gradients(trainer(tmp_path / "a"))
    other = gradients(trainer(tmp_path / "b", contrast=0.0, contrast_others=3))
    assert plain[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], other[1], strict=True))


def test_it_adds_its_cross_entropy_whatever_the_micro_batch(tmp_path: Path) -> None:
    plain, _ = gradients(trainer(tmp_path / "plain"))
    found = [gradients(trainer(tmp_path / str(n), micro_batch=n, contrast=0.5)) for n in (1, 2, 4)]
    (metrics, grads), *others = found
    assert metrics["loss"] == pytest.approx(plain["loss"] + 0.5 * metrics["contrast"], rel=1e-5)
    assert metrics["contrast"] > 0
    for other_metrics, other_grads in others:
        assert other_metrics == pytest.approx(metrics, rel=1e-5)
        for a, b in zip(grads, other_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_others_are_different_items_of_the_batch(tmp_path: Path) -> None:
    """Five items of each shape in batches of four: the second batch of a shape repeats some."""
    run = trainer(tmp_path, contrast=0.5, contrast_others=3)
    objective = run.objective
    assert isinstance(objective, SftObjective)
    dataset, at = objective.learner.dataset, objective.learner.recipe.order.index("reference")
    for step in range(4):
        objective.begin(step, lambda _: None)
        indices = objective.indices()
        items = [dataset[i] for i in indices]
        batch = objective._loss._batch(items, objective.generators(range(4)), step)
        others = objective.others(range(4), 3)
        shown = [c.references[at] for c in with_others(batch, others, objective.learner.recipe)]
        assert len(shown) == len(set(indices)) - 1
        for row, item in enumerate(items):
            rows = [s[row : row + 1] for s in shown]
            own = item.references[at]
            assert not any(torch.equal(own, r) for r in rows)
            assert len({r.numpy().tobytes() for r in rows}) == len(rows)


def test_a_batch_without_references_has_no_contrast(tmp_path: Path) -> None:
    dropped = {"reference_dropout": 1.0, "caption_dropout": 0.0}
    plain, _ = gradients(trainer(tmp_path / "plain", **dropped))
    found, _ = gradients(trainer(tmp_path / "contrast", contrast=0.5, **dropped))
    assert found == {**plain, "contrast": 0.0}


def test_the_plan_counts_every_reference() -> None:
    def plan(**loss: Any) -> Any:
        return estimate_memory(build(SftConfig, {"loss": loss}), CARDS["cpu"])

    plain, contrast = plan(), plan(contrast=0.1, contrast_others=2)
    assert contrast.flops == pytest.approx(3 * plain.flops)
    assert contrast.memory["activations"] == pytest.approx(3 * plain.memory["activations"])
