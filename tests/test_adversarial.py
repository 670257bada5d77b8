"""The reward that learns: its head, what it tells apart, and a run that goes on with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refiner_core.images.filters import blur
from refiner_core.scoring.dreamsim_files import load_dreamsim
from refiner_core.scoring.dreamsim_release import convert_release
from refiner_core.training.adversarial import (
    AdversarialReward,
    accuracy,
    hinge_loss,
    structural_features,
)
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.config import RewardSettings
from refiner_core.training.dataset import Pixels
from refiner_core.training.distributed import Processes
from refiner_core.training.reward import make_reward
from tests.dreamsim_release import LAYOUTS, TINY, write_release
from tests.tiny_training import TinyDataset, final, tiny_run

MASK = torch.zeros(1, 1, 32, 40)
MASK[..., 8:24, 10:30] = 1
CPU = torch.device("cpu")


def pictures(seed: int, count: int = 4) -> Tensor:
    """Noise in which neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    return blur(torch.rand(count, 3, 32, 40, generator=generator), 0.7)


def pixels(target: Tensor) -> Pixels:
    return Pixels(target, target, target, MASK)


def trained(rounds: int = 6) -> tuple[AdversarialReward, list[dict[str, float]]]:
    """A reward whose samples are too soft, and what it says of each round."""
    reward, said = AdversarialReward(structural_features), []
    for seed in range(rounds):
        reward.show(blur(pictures(seed), 0.8), pictures(100 + seed, 1), MASK)
        said.append(reward.learn(Processes()))
    return reward, said


def test_without_a_head_everything_is_0_and_the_hinge_loss_1() -> None:
    reward = AdversarialReward(structural_features)
    assert not reward(pictures(0), pixels(pictures(1, 1))).any()
    _, said = trained(1)
    assert said[0] == {"adversarial/hinge": 1.0, "adversarial/accuracy": 0.5}
    assert float(hinge_loss(torch.zeros(3), torch.zeros(5))) == 1


def test_swapped_kinds_have_the_opposite_accuracy() -> None:
    real, fake = torch.tensor([0.4, -0.1, 2.0]), torch.tensor([-1.0, 0.0])
    assert accuracy(real, fake) == pytest.approx((2 / 3 + 0.75) / 2)
    assert accuracy(fake, real) == pytest.approx(1 - accuracy(real, fake))


def test_it_learns_to_prefer_what_looks_like_the_truth() -> None:
    reward, said = trained()
    assert said[-1]["adversarial/accuracy"] > 0.9, "on pictures that it has not seen"
    assert said[-1]["adversarial/hinge"] < said[0]["adversarial/hinge"]
    new = pictures(50)
    sharp, soft = (reward(x, pixels(new[:1])) for x in (new, blur(new, 0.8)))
    assert sharp.shape == (4,) and bool((sharp > soft).all())


@pytest.mark.parametrize("mask", [MASK, torch.zeros_like(MASK), torch.ones_like(MASK)])
def test_features_are_of_unit_size_for_every_region(mask: Tensor) -> None:
    for images in (pictures(0), torch.zeros(2, 3, 32, 40), pictures(0)[..., :9, :11]):
        found = structural_features(images, mask[..., : images.shape[-2], : images.shape[-1]])
        assert found.shape == (len(images), 12) and float(found.abs().max()) < 4


def test_what_is_not_finite_is_not_learnt_from() -> None:
    reward, _ = trained()
    before = reward.head
    assert before is not None
    samples = pictures(0)
    samples[1, :, 9, 11] = math.nan
    values = reward(samples, pixels(samples[:1]))
    assert values.isnan().tolist() == [False, True, False, False]
    reward.show(samples[1:2], pictures(1, 1), MASK)
    assert reward.learn(Processes()) == {} and reward.head is before, "no sample is left"
    reward.show(samples, pictures(1, 1), MASK)
    reward.learn(Processes())
    assert reward.head is not None and bool(reward.head.isfinite().all())
    assert not torch.equal(reward.head, before)


def test_the_state_is_exact_and_leaves_other_numbers_alone() -> None:
    reward, _ = trained()
    again = AdversarialReward(structural_features)
    assert again.restore({"pixels/7": 0.5, **reward.state()}) == {"pixels/7": 0.5}
    assert again.head is not None and reward.head is not None
    assert torch.equal(again.head, reward.head)
    again.features = lambda images, _: torch.zeros(len(images), 5)
    with pytest.raises(ValueError, match=r"12 features.* 5\b"):
        again(pictures(0), pixels(pictures(1, 1)))


def test_features_are_dreamsims_if_it_has_weights(tmp_path: Path) -> None:
    variant = "dino_vitb16"
    release = write_release(tmp_path / "release", variant, TINY)
    side = 2 * LAYOUTS[variant][0][0][1]
    weights = tmp_path / "dreamsim.safetensors"
    convert_release(release, weights, side=side)
    settings = RewardSettings(dreamsim=str(weights), rewards={"adversarial": 1.0})
    adversary = make_reward(settings, CPU).adversary
    case = TinyDataset()[0].pixels
    assert adversary is not None and case is not None
    adversary.show(case.draft, case.target, case.mask)
    adversary.learn(Processes())
    assert adversary.head is not None
    assert (
        len(adversary.head)
        == load_dreamsim(weights).embed(torch.zeros(1, 3, side, side)).shape[1] + 1
    )
    truth, draft = adversary(torch.cat([case.target, case.draft]), case)
    assert truth > 0 > draft


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_a_run_goes_on_with_its_head_to_the_bit(tmp_path: Path, algorithm: str) -> None:
    objective: dict[str, Any] = {"rewards": {"adversarial": 1.0}, "spread": "running"}
    over = {"objective": objective, "rollout": {"groups": 2, "group": 2}}
    once, twice = tmp_path / "once", tmp_path / "twice"
    tiny_run(algorithm, once, 3, over)
    for steps in (1, 3):
        tiny_run(algorithm, twice, steps, over)
    a, b = (read_facts(out / "checkpoint.safetensors")["objective"] for out in (once, twice))
    assert a == b and sum(name.startswith("head:") for name in a) == 13
    assert any(name.startswith("adversarial/") for name in a), "its spread"
    one, other = final(once), final(twice)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_it_has_a_weight_or_is_not_there_and_train_reward_refuses_it() -> None:
    assert make_reward(RewardSettings(), CPU).adversary is None
    settings = RewardSettings(rewards={"adversarial": 0.5})
    assert make_reward(settings, CPU).adversary is not None
    with pytest.raises(ValueError, match=r"adversarial the weight 0.5"):
        make_reward(settings, CPU, differentiable=True)
