"""Group-relative policy optimisation: the invariants its mathematics promises, and a toy that learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refiner_core import flow
from refiner_core.models.kontext import Conditioning
from refiner_core.recipes.recipe import OMNIREFINER
from refiner_core.sampling import Transition, advance, draw_noise, sample
from refiner_core.training.advantages import group_advantages
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.config import (
    GRPO_PRESETS,
    GrpoConfig,
    ObjectiveSettings,
    RolloutSettings,
)
from refiner_core.training.dataset import Batch, Item, Pixels
from refiner_core.training.distributed import Processes
from refiner_core.training.losses import (
    clip_range,
    gaussian_kl,
    log_ratio,
    nft_loss,
    nft_share,
    policy_loss,
)
from refiner_core.training.objective import Learner
from refiner_core.training.optimizers import rate_at
from refiner_core.training.policy import Policy
from refiner_core.training.reinforcement import ReinforcementObjective
from refiner_core.training.reward import make_reward
from refiner_core.training.rollout import (
    RolloutSeeds,
    item_order,
    place_window,
    roll_out,
    rollout_seeds,
)
from refiner_core.training.settings import build, merged
from refiner_core.training.train import Patience, make_objective
from refiner_core.training.trainable import Trainable
from refiner_core.training.trainer import Trainer, ema_decay
from refiner_core.weights.safetensors_io import read_header
from tests.tiny_training import final, tiny_run

CPU = torch.device("cpu")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- a toy: 8 numbers, two cases, a small network -------------------------------------------------


class Toy(nn.Module):
    """A velocity network over B 2 2 2 states that sees its case's answer only as a hint."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        hint = conditioning.references[0].expand(len(x), 2, 2, 2)
        t = t.reshape(-1, 1).expand(len(x), 1)
        return self.body(torch.cat([x.flatten(1), hint.flatten(1), t], 1)).reshape(x.shape)


ONE = replace(OMNIREFINER, order=("draft",), indices=(1,))


class ToyDataset:
    """Two cases; the answer is 0.8 in one, 0.3 in the other."""

    shapes = (((2, 2), (2, 2)),) * 2

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Item:
        answer = torch.full((1, 2, 2, 2), (0.8, 0.3)[index])
        pixels = Pixels(answer, answer, answer, torch.ones(1, 1, 2, 2))
        return Item(f"toy{index}", "", answer, (answer,), torch.ones(1, 1, 2, 2), pixels)


class ToyCodec:
    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + latents / 6

    def encode(self, images: Tensor) -> Tensor:
        return 6 * (images - 0.5)


def toy_reward(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    return {"pixels": -(images - pixels.target).abs().flatten(1).mean(1)}


NONE = dict.fromkeys(("whole", "patch", "edges", "background"), 0.0)
TOY: dict[str, Any] = {
    "rollout": {"groups": 4, "group": 16, "steps": 6, "window": 2, "guidance": None},
    "objective": {"rewards": {"pixels": 1.0, **NONE}, "kl": 0.0, "clip": 0.02, "updates": 2},
    "optimizer": {"rate": 1e-2, "clip": 10.0},
    "run": {"micro_batch": 16, "max_steps": 40},
}


class ToyLearner(Learner):
    """A learner whose schedule has six steps."""

    def schedule(self, size: tuple[int, int], steps: int | None = None) -> Tensor:
        return flow.sigmas(6, 0.6)


def toy(**over: Any) -> Trainer:
    torch.manual_seed(0)
    net = Toy()
    empty = (torch.zeros(1, 1, 1), torch.zeros(1, 1))
    learner = ToyLearner(
        Policy(net, CPU),
        Trainable(dict(net.named_parameters())),
        ToyDataset(),
        lambda _: empty,
        ToyCodec().decode,
        ONE,
        Processes(),
    )
    return toy_trainer(learner, build(GrpoConfig, merged(TOY, over)), toy_reward)


def toy_trainer(learner: Learner, config: GrpoConfig, reward: Any) -> Trainer:
    objective = make_objective(config, learner, reward)
    return Trainer(objective, learner.trainable, config.optimizer, config.run.max_steps)


def learner_of(trainer: Trainer) -> Learner:
    assert isinstance(trainer.objective, ReinforcementObjective)
    return trainer.objective.learner


def reward_of(trainer: Trainer) -> float:
    """Mean reward of deterministic samples."""
    values = []
    for i in range(2):
        item = learner_of(trainer).dataset[i]
        c = Conditioning(item.references, (1,), torch.zeros(1, 1, 1), torch.zeros(1, 1))
        x = draw_noise((64, 2, 2, 2), i)
        with torch.no_grad():
            x = sample(learner_of(trainer).policy, x, flow.sigmas(6, 0.6), {"conditioning": c})
        assert item.pixels is not None
        images = learner_of(trainer).decode(x).clamp(0, 1)
        values.append(float(toy_reward(images, item.pixels)["pixels"].mean()))
    return sum(values) / 2


# Rewards are negative: what is left of the first one. DanceGRPO's noise is small early on.
@pytest.mark.parametrize(
    ("kind", "eta", "left"), [("flow", 0.7, 0.6), ("dance", 0.3, 0.95), ("cps", 0.8, 0.6)]
)
def test_the_toy_learns_from_rewards_alone(kind: str, eta: float, left: float) -> None:
    trainer = toy(rollout={"kind": kind, "eta": eta})
    before = reward_of(trainer)
    figures = [trainer.train_step() for _ in range(30)]
    assert all(math.isfinite(f["loss"]) and f["kl"] >= 0 for f in figures)
    assert reward_of(trainer) > left * before


def test_the_toy_learns_with_diffusion_nft() -> None:
    trainer = toy(objective={"algorithm": "nft", "nft_levels": 2})
    before = reward_of(trainer)
    for _ in range(30):
        trainer.train_step()
    assert reward_of(trainer) > 0.7 * before


def test_the_rate_follows_its_schedule() -> None:
    trainer = toy(optimizer={"warmup": 4, "schedule": "cosine"}, run={"max_steps": 4})
    rates = []
    for _ in range(4):
        trainer.train_step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    # Two updates an epoch: the rate of the second is the one that is left.
    expected = [rate_at(trainer.settings, step, 8) for step in (1, 3, 5, 7)]
    assert rates == expected
    assert rates[0] < rates[1] > rates[2] > rates[3]


def test_divergence_holds_the_policy_back() -> None:
    def drift(kl: float) -> float:
        trainer = toy(objective={"kl": kl, "kl_to": "ref"})
        for _ in range(15):
            trainer.train_step()
        moved = zip(
            trainer.trainable.parameters.values(),
            trainer.trainable.copies["ref"].values(),
            strict=True,
        )
        return sum(float((p.detach() - r).square().sum()) for p, r in moved)

    assert drift(30.0) < 0.7 * drift(0.0)


def test_an_epoch_is_reproducible_and_only_learning_weights_move() -> None:
    a, b = toy(), toy()
    old = {k: v.clone() for k, v in a.trainable.copies["ref"].items()}
    assert a.train_step() == b.train_step()
    assert all(
        torch.equal(p, q)
        for p, q in zip(
            a.trainable.parameters.values(), b.trainable.parameters.values(), strict=True
        )
    )
    assert all(torch.equal(old[k], v) for k, v in a.trainable.copies["ref"].items())
    assert any(not torch.equal(old[k], p) for k, p in a.trainable.parameters.items())


# DiffusionNFT samples by its copy "old", which is not the present weights: it has to come back too.
@pytest.mark.slow
@pytest.mark.parametrize(
    "over",
    [
        {},
        {"objective": {"algorithm": "nft"}, "rollout": {"group_mean": True}},
    ],
)
def test_a_run_goes_on_to_the_bit(tmp_path: Path, over: dict[str, Any]) -> None:
    tiny_run("grpo", tmp_path / "whole", 3, over)
    for steps in (2, 3):
        tiny_run("grpo", tmp_path / "halves", steps, over)
    a, b = final(tmp_path / "whole"), final(tmp_path / "halves")
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert {k.partition(".")[0] for k in a} >= {"now", "copy:old", "copy:ref", "copy:ema"}


@pytest.mark.slow
def test_a_run_that_only_loses_stops_and_does_not_start_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over: dict[str, Any] = {
        "objective": {"patience": 2},
        "run": {"validate_every": 1},
        "optimizer": {"rate": 0.3},
    }
    for _ in range(2):
        tiny_run("grpo", tmp_path, 9, over)
        assert "has not risen for 2 validations" in capsys.readouterr().out
    facts = read_facts(tmp_path / "checkpoint.safetensors")
    assert facts["failures"] == 2 and facts["step"] < 9
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    ssim = [row["held_out/ssim"] for row in rows if "held_out/ssim" in row]
    assert len(ssim) == facts["step"] + 1
    assert max(ssim[-2:]) <= max(ssim[:-2]) == facts["best"]
    _, metadata = read_header(tmp_path / "best.safetensors", "refiner")
    assert int(metadata["step"]) == ssim.index(max(ssim))
    assert json.loads(metadata["figures"])["held_out/ssim"] == facts["best"]


def test_patience_counts_validations_without_a_gain() -> None:
    patience = Patience(2, None)
    seen = [patience.see({"held_out/ssim": v}) for v in (0.5, 0.6, 0.55, 0.61, 0.6, 0.6)]
    assert seen == [True, True, False, True, False, False]
    assert patience.spent and patience.facts() == {"best": 0.61, "failures": 2}
    again = Patience(2, {**patience.facts(), "step": 6})
    assert again.spent
    # A run that had none so far begins to count when it gets some.
    assert not Patience(2, {"step": 6}).spent
    assert Patience(0, None).facts() == {} and not Patience(0, patience.facts()).spent


# --- rollouts -------------------------------------------------------------------------------------


def toy_batch(count: int = 4) -> Batch:
    c = Conditioning((normal(1, 1, 2, 2, 2),), (1,), torch.zeros(1, 1, 1), torch.zeros(1, 1))
    return Batch(torch.zeros(count, 2, 2, 2), torch.ones(count, 1, 2, 2), c)


def seeds_of(seed: int, count: int = 4) -> RolloutSeeds:
    return rollout_seeds(seed, 0, 0, range(count), False)


def test_random_steps_lie_in_the_window_and_the_last_is_never_one() -> None:
    policy, sigmas = learner_of(toy()).policy, flow.sigmas(6, 0.6)
    levels = [float(s) for s in sigmas]
    for seed in range(8):
        seeds = seeds_of(seed)
        first, end = place_window(6, 2, seeds.window)
        done = roll_out(policy, toy_batch(), sigmas, RolloutSettings(window=2), seeds)
        assert [(t.t, t.t_next) for t in done.transitions] == [
            (levels[i], levels[i + 1]) for i in range(first, end)
        ]
        assert end <= 3
        again = roll_out(policy, toy_batch(), sigmas, RolloutSettings(window=2), seeds)
        assert torch.equal(done.x0, again.x0)


def test_an_item_comes_again_only_after_all_others() -> None:
    seen = [item_order(6, 4, 0, epoch) for epoch in range(3)]
    flat = sum(seen, [])
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))
    assert item_order(6, 4, 0, 1) == seen[1]
    assert item_order(6, 4, 1, 0) != seen[0] or item_order(6, 4, 1, 1) != seen[1]


def replay(policy: Policy, taken: Transition, conditioning: Conditioning) -> flow.Step:
    step, _ = advance(
        policy,
        taken.x,
        taken.t,
        taken.t_next,
        {"conditioning": conditioning},
        kind="flow",
        eta=0.7,
        x_next=taken.x_next,
    )
    return step


@pytest.mark.parametrize("guard", ["offset", "scaled", "off"])
def test_a_replay_with_the_same_weights_changes_nothing(guard: Any) -> None:
    policy = learner_of(toy()).policy
    batch = toy_batch()
    done = roll_out(policy, batch, flow.sigmas(6, 0.6), RolloutSettings(), seeds_of(3))
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.5])
    for taken in done.transitions:
        step = replay(policy, taken, batch.conditioning)
        ratios = log_ratio(step, taken.log_prob, taken.mean, guard)
        assert float(ratios.abs().max()) == 0.0
        kl = gaussian_kl(step.mean, taken.mean, step.std)
        assert float(kl.abs().max()) == 0.0
        loss = policy_loss(ratios, advantages, 0.01).loss
        assert float(loss) == pytest.approx(-float(advantages.mean()))
        net = policy.net
        found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        assert step.log_prob is not None
        scale = step.std if guard == "scaled" else 1.0
        wanted = torch.autograd.grad(
            -(advantages * step.log_prob * scale).mean(), list(net.parameters())
        )
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


# --- advantages -----------------------------------------------------------------------------------

GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
REWARD = torch.tensor([0.1, 0.5, 0.9, 0.2, 0.2, 0.5, 0.4, 0.4])


def test_advantages_are_relative_to_siblings() -> None:
    value, alive = group_advantages({"r": REWARD}, GROUPS, {"r": 1.0})
    for g in range(3):
        assert float(value[g == GROUPS].sum()) == pytest.approx(0, abs=1e-6)
    assert alive.tolist() == [True] * 6 + [False] * 2
    assert value[6:].tolist() == [0, 0]
    shifted, _ = group_advantages({"r": 3 * REWARD + GROUPS}, GROUPS, {"r": 1.0})
    torch.testing.assert_close(shifted, value)
    order = torch.tensor([5, 2, 0, 7, 4, 1, 6, 3])
    mixed, _ = group_advantages({"r": REWARD[order]}, GROUPS[order], {"r": 1.0})
    torch.testing.assert_close(mixed, value[order])


def test_every_reward_counts_by_its_weight_not_by_its_spread() -> None:
    small = 0.01 * REWARD.flip(0)[torch.tensor([5, 6, 7, 2, 1, 0, 3, 4])]
    both = {"a": REWARD, "b": small}
    each, _ = group_advantages(both, GROUPS, {"a": 1.0, "b": 1.0})
    alone = [group_advantages({k: v}, GROUPS, {k: 1.0})[0] for k, v in both.items()]
    torch.testing.assert_close(each, (alone[0] + alone[1]) / 2)
    summed, _ = group_advantages(both, GROUPS, {"a": 1.0, "b": 1.0}, combine="sum")
    assert float((summed - alone[0]).abs().max()) < 0.1
    ignored, _ = group_advantages(both, GROUPS, {"a": 1.0})
    torch.testing.assert_close(ignored, alone[0])


def test_advantages_are_clamped_and_can_share_the_batchs_spread() -> None:
    reward = torch.zeros(64)
    reward[0] = 1.0
    value, _ = group_advantages({"r": reward}, torch.zeros(64, dtype=torch.long), {"r": 1.0})
    assert float(value.max()) == 5.0
    batch, _ = group_advantages({"r": REWARD}, GROUPS, {"r": 1.0}, spread="batch")
    ratio = batch[:6] / group_advantages({"r": REWARD}, GROUPS, {"r": 1.0})[0][:6]
    assert float(ratio[:3].std()) == pytest.approx(0, abs=1e-5)
    assert float(ratio[0]) != pytest.approx(float(ratio[3]))


# --- objective ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "logratio", "moves"),
    [
        (1.0, 0.1, False),
        (-1.0, -0.1, False),
        (1.0, -0.1, True),
        (-1.0, 0.1, True),
        (1.0, 0.0, True),
    ],
)
def test_the_clip_takes_the_gradient_of_what_went_far_enough(
    advantage: float, logratio: float, moves: bool
) -> None:
    ratio = torch.tensor([logratio], requires_grad=True)
    found = policy_loss(ratio, torch.tensor([advantage]), 0.05)
    found.loss.backward()
    assert ratio.grad is not None
    assert bool(ratio.grad[0] != 0) == moves
    assert found.clipped == (0.0 if moves else 1.0)


def test_clip_is_flow_grpos_at_512_px() -> None:
    assert clip_range(0.026, 64 * 1024) == pytest.approx(1e-4, rel=0.02)


def test_divergence_is_torchs_and_flat_where_equal() -> None:
    mean, other = normal(0, 3, 4, 5), normal(1, 3, 4, 5)
    normals = [torch.distributions.Normal(m, torch.tensor(0.3)) for m in (mean, other)]
    expected = torch.distributions.kl_divergence(*normals).flatten(1).mean(1)
    torch.testing.assert_close(gaussian_kl(mean, other, 0.3), expected)
    same = mean.clone().requires_grad_()
    gaussian_kl(same, mean, 0.3).sum().backward()
    assert same.grad is not None
    assert float(same.grad.abs().max()) == 0


@pytest.mark.parametrize("kind", ["flow", "dance", "cps"])
def test_guard_centres_the_log_ratio(kind: flow.StepKind) -> None:
    d, n, t, t2 = 64, 4000, 0.7, 0.55
    x, v = normal(0, 1, d).expand(n, d), normal(1, 1, d)
    eta = {"flow": 0.7, "dance": 0.3, "cps": 0.8}[kind]
    noise = normal(2, n, d)
    old = flow.step(x, v.expand(n, d), t, t2, eta=eta, kind=kind, noise=noise)
    other = (v + 0.3 * normal(3, 1, d)).expand(n, d)
    new = flow.step(x, other, t, t2, eta=eta, kind=kind, x_next=old.x)
    assert old.log_prob is not None
    apart = float(gaussian_kl(new.mean, old.mean, new.std)[0])
    plain = log_ratio(new, old.log_prob, old.mean, "off")
    error = 4 * float(plain.std()) / math.sqrt(n)
    assert float(plain.mean()) == pytest.approx(-apart, abs=error)
    assert float(plain.mean()) < -2 * error
    guarded = log_ratio(new, old.log_prob, old.mean, "offset")
    assert float(guarded.mean()) == pytest.approx(0, abs=error)


@pytest.mark.parametrize("adaptive", [True, False])
def test_nft_pulls_by_how_good_a_sample_is(adaptive: bool) -> None:
    x0, noise, t = normal(0, 4, 2, 3, 3), normal(1, 4, 2, 3, 3), torch.tensor([0.3, 0.5, 0.7, 0.9])
    x = flow.interpolate(x0, noise, t)
    old = normal(2, 4, 2, 3, 3)
    share = nft_share(torch.tensor([5.0, 0.0, -5.0, 2.5]))
    assert share.tolist() == [1.0, 0.5, 0.0, 0.75]

    def gradient(s: Tensor, beta: float) -> Tensor:
        v = old.clone().requires_grad_()
        nft_loss(v, old, x, t, x0, s, beta, adaptive=adaptive).sum().backward()
        assert v.grad is not None
        return v.grad

    plain = gradient(torch.ones(4), 1.0)
    for beta in (1.0, 0.1):
        wanted = (2 * share - 1).reshape(-1, 1, 1, 1) * plain
        torch.testing.assert_close(gradient(share, beta), wanted, rtol=1e-4, atol=1e-6)
    assert float(gradient(torch.full((4,), 0.5), 1.0).abs().max()) < 1e-6


def test_what_siblings_have_in_common_cancels_unless_errors_are_divided_by_their_size() -> None:
    x, old = (normal(seed, 1, 2, 3, 3).expand(4, -1, -1, -1) for seed in (0, 1))
    t, own, common = torch.full((4,), 0.9), normal(2, 4, 2, 3, 3), normal(3, 1, 2, 3, 3)
    share = nft_share(torch.tensor([1.5, 0.5, -0.5, -1.5]))

    def pull(x0: Tensor, adaptive: bool) -> Tensor:
        v = old.clone().requires_grad_()
        nft_loss(v, old, x, t, x0, share, adaptive=adaptive).sum().backward()
        assert v.grad is not None
        return v.grad.sum(0)

    torch.testing.assert_close(pull(own, False), pull(own + common, False), rtol=1e-4, atol=1e-6)
    assert float((pull(own, True) - pull(own + common, True)).abs().max()) > 1e-3


# --- the reward -----------------------------------------------------------------------------------


def pictures() -> Pixels:
    g = torch.Generator().manual_seed(0)
    target, draft, reference = (torch.rand(1, 3, 16, 16, generator=g) for _ in range(3))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return Pixels(target, torch.where(mask > 0, draft, target), reference, mask)


PARTS = ("whole", "patch", "pixels", "edges", "background")


def reward(images: Tensor, p: Pixels) -> dict[str, float]:
    found = make_reward(ObjectiveSettings(), CPU)(images, p)
    assert tuple(found) == PARTS
    return {k: float(v) for k, v in found.items()}


def test_the_truth_is_worth_one_and_the_draft_a_third() -> None:
    p = pictures()
    assert reward(p.target, p) == pytest.approx(dict.fromkeys(PARTS, 1.0), abs=1e-5)
    broken = reward(p.draft, p)
    assert broken["pixels"] == pytest.approx(math.exp(-1), abs=1e-4)
    assert broken["background"] == 1
    assert reward(p.target, replace(p, draft=p.target))["pixels"] == 1


def test_each_part_looks_at_its_own_place() -> None:
    p = pictures()
    outside = p.target + 0.3 * (1 - p.mask)
    assert reward(outside, p)["pixels"] == 1
    assert reward(outside, p)["background"] < 0.1
    blurred = p.target * (1 - p.mask) + p.mask * p.target.mean()
    assert reward(blurred, p)["edges"] < 0.7


def test_every_default_weight_names_a_part() -> None:
    assert set(ObjectiveSettings().rewards) == set(PARTS)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_presets_are_settings(name: str) -> None:
    build(GrpoConfig, GRPO_PRESETS[name])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"rollout": {"groups": 5}}, "rollout.groups = 5 .* objective.updates = 2"),
        ({"run": {"micro_batch": 5}}, "rollout.group = 16 .* run.micro_batch = 5"),
        ({"rollout": {"steps": 1}}, "rollout.steps .* got 1"),
        ({"objective": {"rewards": {"pixels": 0.0}}}, "objective.rewards"),
        ({"objective": {"clips": 1.0}}, "nearest is objective.clip"),
        ({"rollout": {"kind": "cps", "eta": 1.5}}, "rollout.eta must be from 0.001 to 1, got 1.5"),
        ({"rollout": {"kind": "sde"}}, "must be one of flow, dance, cps"),
    ],
)
def test_bad_settings(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(GrpoConfig, merged(TOY, over))


def test_cps_reaches_the_fully_random_step() -> None:
    trainer = toy(rollout={"kind": "cps", "eta": 1.0})
    rows = [trainer.train_step() for _ in range(3)]
    assert all(math.isfinite(v) for row in rows for v in row.values())


@pytest.mark.parametrize(
    ("algorithm", "weight", "reference"), [("grpo", 0.01, "old"), ("nft", 2e-5, "ref")]
)
@pytest.mark.parametrize("preset", ["kontext-24gb", "kontext-80gb"])
def test_each_algorithm_has_its_own_divergence(
    preset: str, algorithm: str, weight: float, reference: str
) -> None:
    over: dict[str, Any] = {"objective": {"algorithm": algorithm}}
    o = build(GrpoConfig, merged(GRPO_PRESETS[preset], over)).objective
    assert (o.kl_weight, o.kl_reference) == (weight, reference)
    over["objective"] |= {"kl": 0.5, "kl_to": "old"}
    o = build(GrpoConfig, merged(GRPO_PRESETS[preset], over)).objective
    assert (o.kl_weight, o.kl_reference) == (0.5, "old")


def test_old_names_of_settings_are_read() -> None:
    old: dict[str, Any] = {
        "data": {"views": 3, "grow": 2},
        "rollout": {"consensus": True},
        "objective": {"algorithm": "nft"},
        "run": {"sample_every": 7},
    }
    found = build(GrpoConfig, merged(GRPO_PRESETS["kontext-24gb"], old))
    assert (found.data.crops, found.data.dilate, found.run.validate_every) == (3, 2, 7)
    assert found.rollout.group_mean
    # A later value wins, whatever name either has.
    newer = merged(merged(old, {"data": {"crops": 5}}), {"run": {"sample_every": 9}})
    assert build(GrpoConfig, newer).data.crops == 5
    assert build(GrpoConfig, newer).run.validate_every == 9
    with pytest.raises(ValueError, match="data.views .* data.crops"):
        build(GrpoConfig, {"data": {"views": 1, "crops": 1}})


def test_the_average_warms_up_by_updates() -> None:
    trainer = toy(optimizer={"ema": 0.9, "ema_every": 4})
    start = {k: v.clone() for k, v in trainer.trainable.copies["ema"].items()}
    for _ in range(2):  # two updates each
        trainer.train_step()
    for key, now in trainer.trainable.parameters.items():
        expected = start[key].lerp(now.detach(), 1 - 5 / 14)
        torch.testing.assert_close(trainer.trainable.copies["ema"][key], expected)
    assert ema_decay(0.9, 8) == 0.5 and ema_decay(0.9, 10_000) == 0.9


def test_an_unknown_reward_is_named() -> None:
    trainer = toy(objective={"rewards": {"dreamsim": 1.0}})
    with pytest.raises(ValueError, match="dreamsim.* pixels"):
        trainer.train_step()
