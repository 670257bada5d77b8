"""Learning through the reward: what the unrolled sampler computes, and what its gradient is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refiner_core import flow
from refiner_core.__main__ import main
from refiner_core.models.kontext import Conditioning
from refiner_core.sampling import sample
from refiner_core.training.config import RewardSettings
from refiner_core.training.config_unrolled import UnrolledConfig
from refiner_core.training.dataset import Item, Pixels
from refiner_core.training.distributed import Processes
from refiner_core.training.losses import masked_flow_errors
from refiner_core.training.objective import Learner
from refiner_core.training.policy import Policy
from refiner_core.training.reward import make_reward
from refiner_core.training.settings import build, merged
from refiner_core.training.trainable import Trainable
from refiner_core.training.trainer import Trainer
from refiner_core.training.unrolled import (
    UnrolledObjective,
    clamp_straight_through,
    first_gradient_step,
)
from tests.test_grpo import NONE, ONE, Toy, ToyCodec
from tests.tiny_training import final, largest_difference, tiny_run

CPU = torch.device("cpu")
LEVELS = flow.sigmas(5, 0.6)
SETTINGS: dict[str, Any] = {
    "objective": {
        "rewards": {"pixels": 1.0, "whole": 0.0, "patch": 0.0, "edges": 0.0, "background": 0}
    },
    "unroll": {"steps": 5, "gradient_steps": None, "checkpointing": False, "guidance": 1.0},
    "optimizer": {"rate": 1e-2},
    "run": {"batch": 4, "micro_batch": 2, "max_steps": 40},
}


class ToyItems:
    """Four cases whose answers differ."""

    shapes = (((2, 2), (2, 2)),) * 4

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Item:
        answer = torch.full((1, 2, 2, 2), (0.8, 0.3, -0.2, 0.5)[index])
        shown = ToyCodec().decode(answer)
        mask = torch.ones(1, 1, 2, 2)
        return Item(f"toy{index}", "", answer, (answer,), mask, Pixels(shown, shown, shown, mask))


class ToyLearner(Learner):
    """A learner whose schedule has five steps."""

    def schedule(self, size: tuple[int, int], steps: int | None = None) -> Tensor:
        return LEVELS


class DoublePolicy(Policy):
    """Computes in float64, for finite differences."""

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.net(x.double(), t.double(), conditioning)


def squared_error(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    """Minus the mean squared error in the latent, in which the toy's codec is a factor of 6."""
    return {"pixels": -36 * (images - pixels.target).square().flatten(1).mean(1)}


def objective(reward: Any = squared_error, double: bool = False, **over: Any) -> UnrolledObjective:
    torch.manual_seed(0)
    net: nn.Module = Toy().double() if double else Toy()
    empty = (torch.zeros(1, 1, 1), torch.zeros(1, 1))
    learner = ToyLearner(
        (DoublePolicy if double else Policy)(net, CPU),
        Trainable(dict(net.named_parameters())),
        ToyItems(),
        lambda _: empty,
        lambda z: ToyCodec().decode(z),
        ONE,
        Processes(),
    )
    return UnrolledObjective(build(UnrolledConfig, merged(SETTINGS, over)), learner, reward)


def gradient(made: UnrolledObjective) -> list[Tensor]:
    """Of the current batch."""
    made.begin(0, lambda _: None)
    parameters = list(made.learner.trainable.parameters.values())
    for p in parameters:
        p.grad = None
    for term in made.update(0).terms:
        term().value.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def test_the_forward_value_is_the_samplers_to_the_bit() -> None:
    made = objective()
    items = [made.learner.dataset[i] for i in (0, 1)]
    made.begin(0, lambda _: None)
    images, _ = made.unroll(items, [0, 1])
    noise = torch.cat([torch.randn((1, 2, 2, 2), generator=g) for g in made.generators([0, 1])])
    c = made._batch(items).conditioning
    with torch.no_grad():
        x = sample(made.learner.policy, noise, LEVELS, {"conditioning": c})
    assert torch.equal(images, made.learner.decode(x).clamp(0, 1)) and images.requires_grad


@pytest.mark.parametrize("steps", [1, 2, None])
def test_the_gradient_is_that_of_finite_differences(steps: int | None) -> None:
    """With fewer steps than all, the state before them is held as it is."""
    made = objective(double=True, unroll={"gradient_steps": steps})
    found = gradient(made)
    bias = list(made.learner.trainable.parameters.values())[-1]
    first = 5 - (steps or 5)

    def value() -> float:
        return sum(float(term().value.detach()) for term in made.update(0).terms)

    if first:  # only the last steps may see the changed weights
        starts = _states(made, first)
    change = 1e-5
    sums: list[float] = []
    for sign in (1, -1):
        bias.data[0] += sign * change
        sums.append(_tail(made, starts, first) if first else value())
        bias.data[0] -= sign * change
    assert float(found[-1][0]) == pytest.approx((sums[0] - sums[1]) / (2 * change), rel=1e-3)


def _states(made: UnrolledObjective, first: int) -> list[Tensor]:
    """The states of every micro-batch before step `first`."""
    out: list[Tensor] = []
    for places in ([0, 1], [2, 3]):
        items = [made.learner.dataset[made.indices()[p]] for p in places]
        x = torch.cat([torch.randn((1, 2, 2, 2), generator=g) for g in made.generators(places)])
        c = made._batch(items).conditioning
        with torch.no_grad():
            out.append(sample(made.learner.policy, x, LEVELS[: first + 1], {"conditioning": c}))
    return out


def _tail(made: UnrolledObjective, states: list[Tensor], first: int) -> float:
    """The loss of the batch from the given states on."""
    total = 0.0
    for places, x in zip(([0, 1], [2, 3]), states, strict=True):
        items = [made.learner.dataset[made.indices()[p]] for p in places]
        c = made._batch(items).conditioning
        with torch.no_grad():
            images = made.learner.decode(
                sample(made.learner.policy, x.double(), LEVELS[first:], {"conditioning": c})
            )
        target = torch.cat([i.pixels.target for i in items if i.pixels is not None])
        total += 36 * float((images - target).square().flatten(1).mean(1).sum()) / 4
    return total


def test_one_step_of_the_pixel_reward_is_weighted_matching() -> None:
    """`mean (x0' - x0)^2 = t^2 mean (v - (e - x0))^2`, so the two gradients are equal."""
    made = objective(unroll={"gradient_steps": 1})
    found = gradient(made)
    policy, parameters = made.learner.policy, list(made.learner.trainable.parameters.values())
    t = float(LEVELS[-2])
    losses: list[Tensor] = []
    for places, x in zip(([0, 1], [2, 3]), _states(made, 4), strict=True):
        items = [made.learner.dataset[made.indices()[p]] for p in places]
        batch = made._batch(items)
        noise = (x - (1 - t) * batch.target) / t
        v = policy.velocity(x, x.new_full((2,), t), batch.conditioning)
        target = flow.velocity_target(batch.target, noise)
        losses.append(t * t * masked_flow_errors(v, target, batch.mask).mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "over",
    [{"unroll": {"checkpointing": True}}, {"run": {"micro_batch": 1}}, {"run": {"micro_batch": 4}}],
)
def test_memory_settings_change_nothing(over: dict[str, Any]) -> None:
    for a, b in zip(gradient(objective()), gradient(objective(**over)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_start_level_one_is_plain_noise_and_a_lower_one_a_shorter_chain() -> None:
    made = objective()
    items = [made.learner.dataset[0]]
    made.begin(0, lambda _: None)
    batch = made._batch(items)
    start, levels = made._start(batch, LEVELS, made.generators([0]))
    assert torch.equal(levels, LEVELS)
    assert torch.equal(start, torch.randn((1, 2, 2, 2), generator=made.generators([0])[0]))
    late = objective(unroll={"start_level": float(LEVELS[2]) + 1e-6})
    _, levels = late._start(batch, LEVELS, late.generators([0]))
    assert torch.equal(levels, LEVELS[2:])
    _, levels = objective(unroll={"start_level": 0.01})._start(batch, LEVELS, late.generators([0]))
    assert len(levels) == 2, "one step is left"


@pytest.mark.parametrize("truncation", ["random", "single"])
def test_truncation_draws_every_step_alike(truncation: str) -> None:
    drawn = [first_gradient_step(5, 3, seed, truncation) for seed in range(300)]
    assert set(drawn) == {2, 3, 4} and min(drawn.count(k) for k in (2, 3, 4)) > 70
    assert [first_gradient_step(5, k, 0, "fixed") for k in (1, 3, 9, None)] == [4, 2, 0, 0]


def test_a_single_step_is_rewarded_for_its_estimate() -> None:
    made = objective(unroll={"truncation": "single", "gradient_steps": 1})
    whole = objective(unroll={"gradient_steps": 1})
    for a, b in zip(gradient(made), gradient(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_clamp_passes_its_gradient_at_black_and_white() -> None:
    x = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.3], requires_grad=True)
    y = clamp_straight_through(x)
    y.backward(torch.arange(5.0))
    assert y.tolist() == [0, 0, 0.5, 1, 1] and x.grad is not None
    assert x.grad.tolist() == [0, 1, 2, 3, 4]


def _half(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    return {"pixels": images.flatten(1).mean(1) * 0 + 0.5}


def test_uncertainty_weighs_the_loss() -> None:
    """With equal readings nothing changes but the logged metric; else exp(-U) and the penalty."""
    plain = objective()
    same = objective(_half, unroll={"uncertainty": 0.1})
    made = objective(unroll={"uncertainty": 0.1})
    for one in (plain, same, made):
        one.begin(0, lambda _: None)
    terms = [[t() for t in one.update(0).terms] for one in (plain, same, made)]
    metrics = [{k: sum(t.metrics[k] for t in ts) for k in ts[0].metrics} for ts in terms]
    assert metrics[0]["uncertainty"] == 0 and metrics[1]["uncertainty"] == 0
    assert metrics[1]["loss"] == pytest.approx(-0.5)
    assert metrics[2]["uncertainty"] > 0 and metrics[2]["reward"] == pytest.approx(
        metrics[0]["reward"]
    )
    assert metrics[2]["loss"] != pytest.approx(metrics[0]["loss"])


def test_it_learns_and_only_what_is_trainable_gets_a_gradient() -> None:
    made = objective(run={"batch": 4, "micro_batch": 4})
    trainer = Trainer(made, made.learner.trainable, made.config.optimizer, 60)
    rewards = [trainer.train_step()["reward"] for _ in range(60)]
    assert rewards[-1] > 0.5 * rewards[0], "rewards are negative errors"
    net = made.learner.policy.net
    frozen = [p for p in net.parameters() if not p.requires_grad]
    assert not frozen
    first = next(iter(net.parameters()))
    first.requires_grad_(False)
    first.grad = None
    gradient(made)
    assert first.grad is None


def test_the_scale_of_a_reward_hardly_matters() -> None:
    """AdamW divides by the size of the gradient, so that only its direction counts."""

    def learnt(factor: float) -> list[Tensor]:
        made = objective(lambda x, p: {"pixels": factor * squared_error(x, p)["pixels"]})
        trainer = Trainer(made, made.learner.trainable, made.config.optimizer, 2)
        found = [trainer.train_step() for _ in range(2)]
        assert all(math.isfinite(v) for f in found for v in f.values())
        return [p.detach().clone() for p in made.learner.trainable.parameters.values()]

    for a, b in zip(learnt(1.0), learnt(1e6), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-4)


def test_a_constant_reward_changes_nothing_but_the_decay() -> None:
    made = objective(lambda x, p: {"pixels": 0 * x.flatten(1).sum(1) + 0.3})
    start = [p.detach().clone() for p in made.learner.trainable.parameters.values()]
    no_decay = replace(made.config.optimizer, weight_decay=0.0)
    trainer = Trainer(made, made.learner.trainable, no_decay, 1)
    assert trainer.train_step()["norm"] == 0
    after = made.learner.trainable.parameters.values()
    assert all(torch.equal(a, b) for a, b in zip(start, after, strict=True))


def test_a_reward_that_is_not_finite_is_skipped_and_then_stops_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = objective(lambda x, p: {"pixels": x.flatten(1).sum(1) * float("nan")})
    start = [p.detach().clone() for p in made.learner.trainable.parameters.values()]
    trainer = Trainer(made, made.learner.trainable, made.config.optimizer, 30)
    with pytest.raises(ValueError, match="20"):
        for _ in range(30):
            trainer.train_step()
    after = made.learner.trainable.parameters.values()
    assert all(torch.equal(a, b) for a, b in zip(start, after, strict=True))
    assert trainer.updates == 0 and "toy0" in capsys.readouterr().out


# --- refusals --------------------------------------------------------------------------------------


def test_a_part_without_a_gradient_is_refused_by_name() -> None:
    def reward(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
        return {"pixels": squared_error(images.detach(), pixels)["pixels"]}

    with pytest.raises(ValueError, match="pixels"):
        gradient(objective(reward))
    settings = RewardSettings(rewards={"judge": 0.5, "pixels": 1.0})
    with pytest.raises(ValueError, match=r"judge.*0\.5"):
        make_reward(settings, CPU, differentiable=True)


def test_a_decoder_without_a_gradient_does_not_pass_in_silence() -> None:
    made = objective()
    decode = made.learner.decode
    made.learner.decode = torch.no_grad()(decode)
    with pytest.raises(RuntimeError, match="grad"):
        gradient(made)


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ({"unroll": {"steps": 4, "gradient_steps": 5}}, "5.*4"),
        ({"unroll": {"uncertainty": 0.2, "truncation": "single"}}, "0.2.*single"),
        ({"unroll": {"start_level": 0.0}}, "start_level"),
        ({"objective": {"rewards": {**NONE, "pixels": 0.0}}}, "objective.rewards"),
    ],
)
def test_contradictory_settings(over: dict[str, Any], values: str) -> None:
    with pytest.raises(ValueError, match=values):
        build(UnrolledConfig, merged(SETTINGS, over))


def test_no_more_steps_than_the_recipe_takes_have_a_gradient() -> None:
    """Where the settings name no number of steps, the recipe's is known once the model is."""
    most = ONE.steps
    objective(unroll={"steps": None, "gradient_steps": most})
    with pytest.raises(ValueError, match=rf"{most + 1}\D+{most}\D"):
        objective(unroll={"steps": None, "gradient_steps": most + 1})


def test_a_contrast_needs_stage_ones_loss() -> None:
    with pytest.raises(ValueError, match=r"0\.1.*objective\.sft"):
        build(UnrolledConfig, merged(SETTINGS, {"loss": {"contrast": 0.1}}))
    build(UnrolledConfig, merged(SETTINGS, {"loss": {"contrast": 0.1}, "objective": {"sft": 0.5}}))


def test_an_unknown_part_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="taste"):
        make_reward(RewardSettings(rewards={"taste": 1.0}), CPU)


# --- the run ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("over", [{}, {"unroll": {"truncation": "random", "gradient_steps": 3}}])
def test_an_interrupted_run_is_equal_to_the_bit(tmp_path: Path, over: dict[str, Any]) -> None:
    tiny_run("reward", tmp_path / "whole", 4, over)
    tiny_run("reward", tmp_path / "halves", 2, over)
    tiny_run("reward", tmp_path / "halves", 4, over)
    assert largest_difference(final(tmp_path / "whole"), final(tmp_path / "halves")) == 0
    moved = [k for k, v in final(tmp_path / "whole").items() if k.startswith("now.") and v.any()]
    assert moved


def test_stage_ones_loss_beside_the_reward(tmp_path: Path) -> None:
    tiny_run("reward", tmp_path / "without", 1, {})
    tiny_run("reward", tmp_path / "with", 1, {"objective": {"sft": 1.0}})
    assert largest_difference(final(tmp_path / "without"), final(tmp_path / "with")) > 0


def test_the_plan_knows_what_unrolling_costs(capsys: pytest.CaptureFixture[str]) -> None:
    from refiner_core.training.config_unrolled import UNROLLED_PRESETS
    from refiner_core.training.memory_estimate import CARDS, estimate_memory

    def plan(**over: Any) -> Any:
        config = build(UnrolledConfig, merged(UNROLLED_PRESETS["nano"], over))
        return estimate_memory(config, CARDS["cpu"])

    one = plan(unroll={"gradient_steps": 1, "checkpointing": False})
    every = plan(unroll={"gradient_steps": None, "checkpointing": False})
    recomputed = plan(unroll={"gradient_steps": None, "checkpointing": True})
    assert every.memory["activations"] == pytest.approx(4 * one.memory["activations"])
    assert recomputed.memory["activations"] == pytest.approx(one.memory["activations"])
    assert every.flops == pytest.approx(one.flops * 4 * 3 / (3 + 3))
    assert recomputed.flops > every.flops and math.isfinite(recomputed.seconds)
    assert main(["train", "plan", "--stage", "reward", "--preset", "nano", "--card", "cpu"]) == 0
    assert "decoder" in capsys.readouterr().out
