"""Groups that learn from the mean of their samples: what is scored, and what is learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refiner_core import flow
from refiner_core.models.kontext import Conditioning
from refiner_core.recipes.recipe import OMNIREFINER
from refiner_core.training.config import GrpoConfig
from refiner_core.training.dataset import Item, Pixels
from refiner_core.training.distributed import Processes
from refiner_core.training.grpo import GrpoObjective
from refiner_core.training.objective import Learner
from refiner_core.training.policy import Policy
from refiner_core.training.reinforcement import ReinforcementObjective, ScoredRollout
from refiner_core.training.rollout import rollout_seeds
from refiner_core.training.settings import build, merged
from refiner_core.training.trainable import Trainable
from refiner_core.training.trainer import Trainer
from tests.test_grpo import NONE, ToyCodec, toy_reward, toy_trainer

CPU = torch.device("cpu")
DRAFT_ONLY = replace(OMNIREFINER, order=("draft",), indices=(1,))
TARGET = torch.linspace(-1, 1, 3 * 16).reshape(1, 3, 4, 4)


class Noisy(nn.Module):
    """Paints the draft, a share of the noise it starts from, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.tensor(0.3))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        t, seen = t.reshape(-1, 1, 1, 1), conditioning.references[0]
        noise = (x - (1 - t) * seen) / t
        return (x - seen - self.left * noise - self.offset) / t


class OneItem:
    """One item, whose draft is the answer already."""

    shapes = (((4, 4), (4, 4)),)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Item:
        answer = ToyCodec().decode(TARGET)
        region = torch.ones(1, 1, 4, 4)
        return Item("case", "", TARGET, (TARGET,), region, Pixels(answer, answer, answer, region))


def farness(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    return {k: -v for k, v in toy_reward(images, pixels).items()}


SETTINGS: dict[str, Any] = {
    "rollout": {"groups": 4, "group": 4, "guidance": None, "group_mean": True},
    "objective": {
        "algorithm": "nft",
        "kl": 0.0,
        "nft_levels": 1,
        "rewards": {"pixels": 1.0, **NONE},
    },
    "optimizer": {"rate": 0.01},
    "run": {"micro_batch": 4, "max_steps": 40},
}


class NoisyLearner(Learner):
    """A learner whose schedule stays at high noise."""

    def schedule(self, size: tuple[int, int], steps: int | None = None) -> Tensor:
        return flow.sigmas(4, 4.0)


def trainer(reward: Any = toy_reward, **over: Any) -> Trainer:
    net = Noisy()
    empty = (torch.zeros(1, 1, 1), torch.zeros(1, 1))
    learner = NoisyLearner(
        Policy(net, CPU),
        Trainable(dict(net.named_parameters())),
        OneItem(),
        lambda _: empty,
        ToyCodec().decode,
        DRAFT_ONLY,
        Processes(),
    )
    return toy_trainer(learner, build(GrpoConfig, merged(SETTINGS, over)), reward)


def collected(run: Trainer) -> list[ScoredRollout]:
    """The scored rollouts of the first epoch."""
    assert isinstance(run.objective, ReinforcementObjective)
    return run.objective.collect(pytest.fail)


# --- seeds ----------------------------------------------------------------------------------------

STOCHASTIC: dict[str, Any] = {
    "rollout": {"group": 8, "group_mean": False, "steps": 4, "window": 1},
    "objective": {"algorithm": "grpo", "clip": 10.0},
}
DETERMINISTIC: dict[str, Any] = {"rollout": {"group": 8}}


def group_of(scored: list[ScoredRollout], group: int) -> dict[str, Tensor]:
    """All that a group's samples, in their order, hand on to learning."""
    mine = [s for s in scored if s.group == group and not s.is_mean]
    steps = [list(s.rollout.transitions) for s in mine]
    out = {
        "x0": torch.cat([s.rollout.x0 for s in mine]),
        "start": torch.cat([s.rollout.start for s in mine]),
        "reward": torch.cat([s.rewards["pixels"] for s in mine]),
    }
    if steps[0]:
        out["level"] = torch.cat([torch.full((len(s[0].x),), s[0].t) for s in steps])
        out["next"] = torch.cat([s[0].x_next for s in steps])
        out["log_prob"] = torch.cat([s[0].log_prob for s in steps])
    return out


@pytest.mark.parametrize("over", [STOCHASTIC, DETERMINISTIC], ids=["grpo", "nft"])
@pytest.mark.parametrize("same_noise", [False, True])
def test_what_is_learnt_does_not_depend_on_the_micro_batch(
    over: dict[str, Any], same_noise: bool
) -> None:
    if same_noise and over is DETERMINISTIC:
        return  # refused: identical samples
    over = merged(over, {"rollout": {"same_noise": same_noise}})
    groups, weights = [], []
    for micro_batch in (8, 4, 2, 1):
        run = trainer(**merged(over, {"run": {"micro_batch": micro_batch}}))
        groups.append([group_of(collected(run), g) for g in range(4)])
        run.train_step()
        weights.append(torch.stack([p.detach() for p in run.trainable.parameters.values()]))
    for others, learnt in zip(groups[1:], weights[1:], strict=True):
        for whole, parts in zip(groups[0], others, strict=True):
            assert whole.keys() == parts.keys()
            for key, value in whole.items():
                torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(learnt, weights[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [8, 2, 1])
def test_samples_of_one_noise_differ_by_their_steps(micro_batch: int) -> None:
    over = merged(
        STOCHASTIC, {"rollout": {"same_noise": True}, "run": {"micro_batch": micro_batch}}
    )
    run = trainer(**over)
    for group in (group_of(collected(run), g) for g in range(4)):
        assert torch.equal(group["start"], group["start"][:1].expand_as(group["start"]))
        assert len({tuple(x.flatten().tolist()) for x in group["x0"]}) == 8
        assert len(set(group["level"].tolist())) == 1
    assert run.train_step()["dropped"] == 0


def test_seeds_of_start_steps_and_window_are_apart() -> None:
    seeds = rollout_seeds(3, 1, 2, range(4), False)
    assert len({*seeds.start, *seeds.steps, seeds.window}) == 9
    assert rollout_seeds(3, 1, 2, range(2, 4), False).start == seeds.start[2:]
    shared = rollout_seeds(3, 1, 2, range(4), True)
    assert len(set(shared.start)) == 1 and shared.steps == seeds.steps
    others = (rollout_seeds(*where, range(4), False) for where in ((4, 1, 2), (3, 2, 2), (3, 1, 3)))
    assert all(not {*o.start, *o.steps} & {*seeds.start, *seeds.steps} for o in others)


@pytest.mark.parametrize(("guard", "clip"), [("scaled", 0.001), ("offset", 0.026)])
def test_the_scaled_guard_weighs_all_steps_alike(guard: str, clip: float) -> None:
    over: dict[str, Any] = {"rollout": {"window": 2, "kind": "dance", "eta": 0.3}}
    over = merged(merged(STOCHASTIC, over), {"objective": {"guard": guard, "clip": ""}})
    run = trainer(**merged(over, {"run": {"micro_batch": 8}}))
    assert isinstance(run.objective, GrpoObjective)
    assert run.objective.config.objective.clip_unit == clip
    scored = next(s for s in collected(run) if s.group == 0)
    advantages = torch.tensor([1.0, -0.5, 2.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    for compute, taken in zip(
        run.objective.terms(scored, advantages, 1.0), scored.rollout.transitions, strict=True
    ):
        length = taken.t - taken.t_next if guard == "scaled" else 1.0
        share = len(scored.rollout.transitions)
        expected = -float(advantages.mean()) / length / share  # the ratio is still 1
        assert compute().metrics["loss"] == pytest.approx(expected, rel=1e-5)


# --- the mean of a group --------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_the_mean_is_judged_beside_the_samples_and_learnt_from_every_noise(
    micro_batch: int,
) -> None:
    scored = [j for j in collected(trainer(run={"micro_batch": micro_batch})) if j.group == 0]
    half = len(scored) // 2
    assert [j.is_mean for j in scored] == [False] * half + [True] * half
    samples, means = (
        torch.cat([j.rollout.x0 for j in part]) for part in (scored[:half], scored[half:])
    )
    assert samples.shape == means.shape and not torch.equal(samples[0], samples[1])
    assert torch.allclose(means, samples.mean(0, keepdim=True).expand_as(samples), atol=1e-6)
    starts = [torch.cat([j.rollout.start for j in part]) for part in (scored[:half], scored[half:])]
    assert torch.equal(*starts)
    own, agreed = (
        torch.cat([j.rewards["pixels"] for j in part]) for part in (scored[:half], scored[half:])
    )
    assert float(agreed.min()) > float(own.max())


@pytest.mark.parametrize("adaptive", [True, False])
def test_what_samples_agree_on_is_learnt_and_nothing_else(adaptive: bool) -> None:
    run = trainer(objective={"nft_adaptive": adaptive})
    for _ in range(40):
        run.train_step()
    left, offset = run.trainable.parameters.values()
    assert float(left.detach()) < 0.2
    assert abs(float(offset.detach())) < 0.02


def test_dividing_errors_by_their_size_is_a_setting() -> None:
    losses = {trainer(objective={"nft_adaptive": a}).train_step()["loss"] for a in (True, False)}
    assert len(losses) == 2


def test_the_reward_decides_whether_agreement_is_wanted() -> None:
    run = trainer(farness)
    for _ in range(40):
        run.train_step()
    left, _ = run.trainable.parameters.values()
    assert float(left.detach()) > 0.35


def test_divergence_from_stage_1_holds_the_velocity_back() -> None:
    def moved(kl: float) -> float:
        run = trainer(objective={"kl": kl, "kl_to": "ref"})
        figures = [run.train_step() for _ in range(20)]
        assert figures[-1]["kl"] > 0
        return 0.3 - float(run.trainable.parameters["left"].detach())

    free, held = moved(0.0), moved(10.0)
    assert free > 0.05
    assert 0 < held < 0.7 * free


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"objective": {"algorithm": "grpo"}}, "rollout.group_mean .*objective.algorithm"),
        ({"rollout": {"same_noise": True}}, "rollout.same_noise .*objective.algorithm"),
    ],
)
def test_contradictions(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(GrpoConfig, merged(SETTINGS, over))
