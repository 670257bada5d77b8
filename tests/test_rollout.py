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
from refiner_core.training.objective import Learner
from refiner_core.training.policy import Policy
from refiner_core.training.reinforcement import ReinforcementObjective, ScoredRollout
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
