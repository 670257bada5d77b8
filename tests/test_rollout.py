"""Rollouts whose siblings differ by the strength of their starting noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refiner_core.models.kontext import Conditioning
from refiner_core.recipes import NANO
from refiner_core.training.config import GrpoConfig, RolloutSettings
from refiner_core.training.policy import Policy
from refiner_core.training.rollout import noise_strengths, roll_out
from refiner_core.training.settings import build
from refiner_core.training.views import View, stack

CPU = torch.device("cpu")
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


class Copy(nn.Module):
    """Paints what it sees as the draft, and a tenth of the noise."""

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        t, seen = t.reshape(-1, 1, 1, 1), conditioning.references[0]
        return (x - seen - 0.1 * (x - (1 - t) * seen)) / t


def test_strengths_are_spread_over_their_range() -> None:
    settings = RolloutSettings(group=8, explore_noise=0.5)
    found = noise_strengths(settings, 3)
    assert found is not None and found.shape == (8, 1, 1, 1)
    expected = 1 - 0.5 * (np.arange(8)[::-1] + 0.5) / 8
    assert sorted(found.flatten().tolist()) == pytest.approx(list(expected))
    again, other = noise_strengths(settings, 3), noise_strengths(settings, 4)
    assert again is not None and torch.equal(found, again)
    assert other is not None and not torch.equal(found, other)
    assert noise_strengths(RolloutSettings(), 3) is None


def test_the_strength_reaches_the_sample_and_the_rest_stays() -> None:
    g = torch.Generator().manual_seed(0)
    target, draft, reference = (torch.rand(1, 3, 4, 4, generator=g) for _ in range(3))
    view = View("v", "", target, (draft, reference), torch.ones(1, 1, 4, 4))
    text = (torch.zeros(1, 1, 1), torch.zeros(1, 1))
    batch = stack([view] * 2, [text] * 2, NANO, None, CPU)
    settings = RolloutSettings(same_noise=True)
    strengths = torch.tensor([1.0, 0.0]).reshape(-1, 1, 1, 1)
    done = roll_out(
        Policy(Copy(), CPU), batch, SIGMAS, settings, 5, random=False, strengths=strengths
    )
    assert done.transitions == (), "the ODE alone"
    assert torch.equal(done.start[0], done.start[1]), "learning shows the noise at full strength"
    loud, quiet = done.x0
    assert torch.allclose(quiet, draft[0], atol=1e-5)
    assert not torch.allclose(loud, draft[0], atol=1e-2)


def test_ratios_of_other_inputs_mean_nothing() -> None:
    rollout = {"explore_noise": 0.5}
    with pytest.raises(
        ValueError, match=r"explore_noise = 0.5 .* GRPO's ratios.*algorithm = 'nft'"
    ):
        build(GrpoConfig, {"rollout": rollout})
    build(GrpoConfig, {"rollout": rollout, "objective": {"algorithm": "nft"}})
