"""How rewards are balanced, where they count, and where samples branch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from refiner_core import flow
from refiner_core.sampling import sample
from refiner_core.training.advantages import (
    RunningSpread,
    advantage_maps,
    group_advantages,
    pareto_set,
    placed_advantages,
)
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.config import GrpoConfig, RolloutSettings
from refiner_core.training.losses import (
    Guard,
    clip_range,
    log_ratio,
    log_ratio_map,
    nft_loss,
    policy_loss,
)
from refiner_core.training.rollout import (
    RolloutSeeds,
    eta_schedule,
    moving_window,
    roll_out,
    rollout_seeds,
)
from refiner_core.training.settings import build, merged
from tests.test_grpo import TOY, learner_of, normal, toy
from tests.tiny_training import final, largest_difference, tiny_run

GROUPS = torch.arange(4).repeat_interleave(6)


def rewards(seed: int, parts: int) -> dict[str, Tensor]:
    return {f"r{k}": normal(seed + k, 24) for k in range(parts)}


WEIGHTS = {f"r{k}": 1.0 for k in range(5)}


# --- balance ---------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 200))
def test_gdpos_last_normalisation(parts: int, seed: int) -> None:
    table = rewards(seed, parts)
    found, kept = group_advantages(table, GROUPS, WEIGHTS, combine="gdpo")
    each, _ = group_advantages(table, GROUPS, WEIGHTS, combine="each")
    assert bool(kept.all())
    assert float(found.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-4)
    ratio = found / each
    torch.testing.assert_close(ratio, ratio[:1].expand(24), rtol=1e-3, atol=1e-4)


def test_the_pareto_set_is_what_no_sibling_beats() -> None:
    table = torch.tensor([[3.0, 1.0, 2.0, 0.0, 9.0], [1.0, 3.0, 2.0, 0.5, 9.0]])
    groups = torch.tensor([0, 0, 0, 0, 1])
    assert pareto_set(table, groups).tolist() == [True, True, True, False, True]
    assert pareto_set(table[:1], groups).tolist() == [True, False, False, False, True]
    equal = torch.ones(2, 3)
    assert pareto_set(equal, torch.zeros(3, dtype=torch.long)).tolist() == [True] * 3


def test_pareto_learns_from_the_set_alone() -> None:
    table = rewards(3, 2)
    found, _ = group_advantages(table, GROUPS, WEIGHTS, combine="pareto")
    each, _ = group_advantages(table, GROUPS, WEIGHTS, combine="each")
    best = pareto_set(torch.stack(list(table.values())), GROUPS)
    assert 0 < int(best.sum()) < 24
    assert torch.equal(found[best], each[best]) and not found[~best].any()


def test_the_running_spread_is_averaged_over_epochs_for_each_kind() -> None:
    running = RunningSpread(0.75)
    words_and_logos, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])

    def advantages(*rewards: float) -> list[float]:
        found, _ = group_advantages(
            {"r": torch.tensor(rewards)}, groups, {"r": 1.0}, spread=running, kinds=words_and_logos
        )
        return found.tolist()

    assert advantages(2.0, 0.0, 0.2, 0.0) == pytest.approx([1, -1, 1, -1])
    assert running.values == pytest.approx({"r/0": 1.0, "r/1": 0.1})
    # A louder group of words: 0.75 * 1 + 0.25 * 5; one without spread says nothing of logos.
    assert advantages(10.0, 0.0, 0.7, 0.7) == pytest.approx([2.5, -2.5, 0, 0])
    assert running.values == pytest.approx({"r/0": 2.0, "r/1": 0.1})


@given(st.integers(1, 4), st.integers(0, 200))
def test_a_constant_running_spread_is_the_groups_own(parts: int, seed: int) -> None:
    table = rewards(seed, parts)
    for k, v in table.items():
        v = v.reshape(4, 6) - v.reshape(4, 6).mean(1, keepdim=True)
        table[k] = (0.3 * v / v.std(1, keepdim=True)).flatten()
    running = RunningSpread(0.5)
    group, _ = group_advantages(table, GROUPS, WEIGHTS)
    for _ in range(3):
        found, _ = group_advantages(table, GROUPS, WEIGHTS, spread=running)
        torch.testing.assert_close(found, group)


def test_the_first_running_spread_of_one_kind_is_the_batchs() -> None:
    table = rewards(3, 2)
    batch, _ = group_advantages(table, GROUPS, WEIGHTS, spread="batch")
    found, _ = group_advantages(table, GROUPS, WEIGHTS, spread=RunningSpread(0.9))
    torch.testing.assert_close(found, batch)


@pytest.mark.slow
def test_a_run_goes_on_with_its_running_spreads(tmp_path: Path) -> None:
    over = {"objective": {"spread": "running"}}
    tiny_run("grpo", tmp_path / "whole", 3, over)
    for steps in (1, 3):
        tiny_run("grpo", tmp_path / "halves", steps, over)
    whole, halves = final(tmp_path / "whole"), final(tmp_path / "halves")
    assert largest_difference(whole, halves) == 0
    facts = [read_facts(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "halves")]
    assert facts[0]["objective"] == facts[1]["objective"]
    assert {key.partition("/")[0] for key in facts[0]["objective"]} >= {"pixels", "edges"}


def test_taming_keeps_the_order_and_quiets_the_loud_part() -> None:
    table = {"quiet": 1 + 0.01 * normal(1, 24), "loud": normal(2, 24).exp()}
    weights = {"quiet": 1.0, "loud": 1.0}
    plain, _ = group_advantages(table, GROUPS, weights, combine="sum")
    tamed, _ = group_advantages(table, GROUPS, weights, combine="sum", tame=True)
    own = {"sum": table["quiet"] + table["loud"].log1p()}
    expected, _ = group_advantages(own, GROUPS, {"sum": 1.0}, combine="sum")
    torch.testing.assert_close(tamed, expected)
    assert not torch.equal(plain, tamed)
    with pytest.raises(ValueError, match="loud"):
        group_advantages({"loud": table["loud"] - 9}, GROUPS, weights, tame=True)


# --- places ----------------------------------------------------------------------------------------


def test_advantages_of_each_place_sum_to_zero() -> None:
    maps = normal(1, 6, 1, 3, 4)
    maps[:, :, 0, 0] = 0.5  # no spread
    found = advantage_maps(maps)
    torch.testing.assert_close(found.sum(0), torch.zeros(1, 3, 4), rtol=0, atol=1e-5)
    assert not found[:, :, 0, 0].any()
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = advantage_maps(maps.flatten(2)[..., shuffled].reshape_as(maps))
    assert torch.equal(moved.flatten(2), found.flatten(2)[..., shuffled])


def test_a_constant_map_is_the_scalar_algorithm() -> None:
    v_old, x, x0 = (normal(s, 4, 2, 3, 3) for s in (1, 2, 3))
    t, share = torch.full((4,), 0.7), torch.tensor([0.1, 0.4, 0.8, 1.0])

    def loss(share: Tensor) -> tuple[Tensor, Tensor]:
        v = v_old.clone().requires_grad_()
        value = nft_loss(v, v_old, x, t, x0, share, 0.5, adaptive=False)
        value.sum().backward()
        assert v.grad is not None
        return value.detach(), v.grad

    scalar = loss(share)
    placed = loss(share.reshape(4, 1, 1, 1).expand(4, 1, 3, 3))
    for a, b in zip(scalar, placed, strict=True):
        torch.testing.assert_close(a, b)


def test_the_share_of_places_blends() -> None:
    a, maps = torch.tensor([1.0, -2.0]), normal(1, 2, 1, 2, 2)
    assert placed_advantages(a, None, 0.5) is a
    torch.testing.assert_close(
        placed_advantages(a, maps, 0.0), a.reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    )
    torch.testing.assert_close(placed_advantages(a, maps, 1.0), maps)


@pytest.mark.parametrize("guard", ["offset", "scaled", "off"])
def test_the_mean_ratio_of_places_is_the_samples(guard: Guard) -> None:
    x, v_old, v_new = (normal(s, 3, 2, 4, 4).double() for s in (1, 2, 3))
    old = flow.step(x, v_old, 0.8, 0.6, kind="flow", eta=0.7, noise=normal(4, 3, 2, 4, 4).double())
    new = flow.step(x, v_old + 0.1 * v_new, 0.8, 0.6, kind="flow", eta=0.7, x_next=old.x)
    assert old.log_prob is not None
    whole = log_ratio(new, old.log_prob, old.mean, guard)
    places = log_ratio_map(new, old.x, old.mean, guard)
    assert places.shape == (3, 1, 4, 4) and float(places.std()) > 0
    torch.testing.assert_close(places.mean((1, 2, 3)), whole)
    assert not log_ratio_map(old, old.x, old.mean, guard).any(), "the same policy has ratio 1"


def test_constant_advantages_of_places_have_the_scalar_policy_gradient() -> None:
    """Before the first update, where every ratio is 1 and nothing is clipped."""
    advantages = torch.tensor([1.0, -0.5, 2.0])

    def gradient(placed: bool) -> Tensor:
        places = torch.zeros(3, 1, 4, 4, requires_grad=True)
        value = advantages.reshape(-1, 1, 1, 1).expand_as(places) if placed else advantages
        ratios = places if placed else places.mean((1, 2, 3))
        policy_loss(ratios, value, clip_range(0.026, 2)).loss.backward()
        assert places.grad is not None
        return places.grad

    torch.testing.assert_close(gradient(True), gradient(False))


@pytest.mark.parametrize(
    "over",
    [
        {"algorithm": "nft", "nft_adaptive": False, "map_share": 0.5},
        {"algorithm": "grpo", "map_share": 0.5},
    ],
)
def test_the_toy_learns_from_places(over: dict[str, Any]) -> None:
    trainer = toy(objective=over)
    figures = [trainer.train_step() for _ in range(3)]
    assert all(math.isfinite(f["loss"]) for f in figures)
    plain = toy(objective={**over, "map_share": 0.0})
    assert plain.train_step()["loss"] != figures[0]["loss"]


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ({"objective": {"map_share": 0.5, "algorithm": "nft"}}, "0.5.*True"),
        ({"rollout": {"kind": "cps", "eta": 0.5, "eta_end": 1.5}}, "1.5"),
    ],
)
def test_contradictory_settings(over: dict[str, Any], values: str) -> None:
    with pytest.raises(ValueError, match=values):
        build(GrpoConfig, merged(TOY, over))


# --- rollouts --------------------------------------------------------------------------------------


def test_the_window_moves_over_the_first_half_and_again() -> None:
    assert [moving_window(10, 2, p) for p in range(5)] == [(0, 2), (1, 3), (2, 4), (3, 5), (0, 2)]
    assert moving_window(10, 5, 3) == (0, 5), "a window that fills the half stays"


def test_eta_falls_over_the_window_and_a_constant_one_is_todays() -> None:
    assert eta_schedule(6, (1, 4), 0.9, 0.3) == pytest.approx([0.9, 0.9, 0.6, 0.3, 0.3, 0.3])
    assert eta_schedule(4, (0, 1), 0.9, 0.3)[0] == 0.9
    model, x = lambda x, t: x * 0.5, normal(1, 2, 2, 2, 2)  # noqa: E731
    levels = flow.sigmas(5, 0.6)
    one = sample(model, x, levels, kind="flow", eta=0.7, noise_seed=3)
    each = sample(model, x, levels, kind="flow", eta=[0.7] * 5, noise_seed=3)
    assert torch.equal(one, each)


def toy_rollout(**settings: Any) -> Any:
    trainer = toy()
    learner = learner_of(trainer)
    item = learner.dataset[0]
    from refiner_core.training.dataset import collate

    texts = [learner.text("")] * 4
    batch = collate([item] * 4, texts, learner.recipe, None, learner.policy.device)
    seeds: RolloutSeeds = rollout_seeds(0, settings.pop("epoch", 0), 0, range(4), True)
    chosen = RolloutSettings(steps=6, window=1, guidance=None, same_noise=True, **settings)
    return roll_out(learner.policy, batch, flow.sigmas(6, 0.6), chosen, seeds)


def test_siblings_are_equal_to_the_bit_up_to_the_branch_and_differ_after() -> None:
    found = toy_rollout(window_every=1, epoch=2)
    (taken,) = found.transitions
    levels = [float(s) for s in flow.sigmas(6, 0.6)]
    assert taken.t == levels[2], "the third position"
    assert all(torch.equal(taken.x[0], taken.x[i]) for i in range(4))
    assert not torch.equal(taken.x_next[0], taken.x_next[1])
    assert not torch.equal(found.x0[0], found.x0[1])


def test_the_prefix_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from refiner_core.training.policy import Policy

    rows: list[int] = []
    plain = Policy.velocity

    def counted(self: Policy, x: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        rows.append(len(x))
        return plain(self, x, t, conditioning)

    monkeypatch.setattr(Policy, "velocity", counted)
    toy_rollout(window_every=1, epoch=2)
    assert rows == [1, 1, 4, 4, 4, 4], "k + G (N - k) samples"


def test_a_falling_eta_replays_to_the_bit() -> None:
    """At unchanged weights every ratio is 1, so nothing is clipped and the divergence is 0."""
    trainer = toy(rollout={"eta_end": 0.3}, objective={"updates": 1, "kl": 0.1})
    metrics = trainer.train_step()
    assert metrics["kl"] == 0 and metrics["clipped"] == 0
