"""Siblings that differ by more than their noise: what turns, what it reaches, what must stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refiner_core.models.kontext import Conditioning
from refiner_core.recipes import NANO, OMNIREFINER
from refiner_core.training.config import GrpoConfig, RolloutSettings
from refiner_core.training.exploration import Knobs, explores, make_siblings, turn_knobs
from refiner_core.training.policy import Policy
from refiner_core.training.rollout import roll_out
from refiner_core.training.settings import build
from refiner_core.training.views import Pixels, View, stack

CPU = torch.device("cpu")
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


class PlainCodec:
    """Latents are the pixels."""

    def encode(self, images: Tensor) -> Tensor:
        return images.clone()

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Copy(nn.Module):
    """Paints what it sees as the draft, and a tenth of the noise."""

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        t, seen = t.reshape(-1, 1, 1, 1), conditioning.references[0]
        return (x - seen - 0.1 * (x - (1 - t) * seen)) / t


def a_view() -> View:
    g = torch.Generator().manual_seed(0)
    target, draft, reference = (torch.rand(1, 3, 4, 4, generator=g) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    seen = draft + 0.6 * mask * (reference - draft)
    return View("v", "", target, (seen, reference), mask, Pixels(target, draft, reference, mask))


def samples(knobs: list[Knobs], **settings: Any) -> Tensor:
    view, text = a_view(), (torch.zeros(1, 1, 1), torch.zeros(1, 1))
    batch = stack([view] * len(knobs), [text] * len(knobs), NANO, None, CPU)
    siblings = make_siblings(view, knobs, PlainCodec(), NANO, CPU)
    chosen = RolloutSettings(same_noise=True, **settings)
    done = roll_out(Policy(Copy(), CPU), batch, SIGMAS, chosen, 5, random=False, siblings=siblings)
    assert done.transitions == (), "the ODE alone"
    assert torch.equal(done.start, done.start[:1].expand_as(done.start))
    assert torch.equal(done.batch.conditioning.references[0][0], view.references[0][0])
    return done.x0


def test_knobs_are_spread_over_their_ranges() -> None:
    settings = RolloutSettings(
        group=8, explore_noise=0.5, explore_share=0.3, explore_background=0.25
    )
    knobs = turn_knobs(settings, 0.6, 3)
    assert sorted(k.noise for k in knobs) == pytest.approx(1 - 0.5 * (np.arange(8)[::-1] + 0.5) / 8)
    assert sorted(k.share for k in knobs) == pytest.approx(0.3 + 0.6 * (np.arange(8) + 0.5) / 8)
    assert sum(k.held for k in knobs) == 2
    assert knobs == turn_knobs(settings, 0.6, 3) != turn_knobs(settings, 0.6, 4)
    assert explores(settings) and not explores(RolloutSettings())


def test_every_knob_reaches_the_sample() -> None:
    plain = Knobs(1.0, 0.6, False)
    base, quiet, other, held = samples(
        [plain, replace(plain, noise=0.0), replace(plain, share=0.1), replace(plain, held=True)]
    )
    view = a_view()
    assert view.pixels is not None
    clean = view.references[0][0]
    assert torch.allclose(quiet, clean, atol=1e-5) and not torch.allclose(base, clean, atol=1e-2)
    inside = view.mask[0].expand(3, 4, 4) > 0
    assert not torch.allclose(other[inside], base[inside], atol=1e-2)
    assert torch.allclose(other[~inside], base[~inside], atol=1e-5)
    assert torch.allclose(held[inside], base[inside], atol=1e-5)
    assert torch.allclose(held[~inside], view.pixels.draft[0][~inside], atol=1e-5)
    assert not torch.allclose(base[~inside], view.pixels.draft[0][~inside], atol=1e-2)


def test_a_recipe_that_lays_nothing_over_the_draft_keeps_what_it_sees() -> None:
    view = a_view()
    siblings = make_siblings(view, [Knobs(1.0, 0.9, False)] * 2, PlainCodec(), OMNIREFINER, CPU)
    assert torch.equal(siblings.references[0], view.references[0].expand(2, -1, -1, -1))
    assert torch.equal(siblings.references[1], view.references[1].expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    "rollout", [{"explore_noise": 0.5}, {"explore_share": 0.1}, {"explore_background": 0.5}]
)
def test_ratios_of_other_inputs_mean_nothing(rollout: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"explore_.* GRPO's ratios.*algorithm = 'nft'"):
        build(GrpoConfig, {"rollout": rollout})
    build(GrpoConfig, {"rollout": rollout, "objective": {"algorithm": "nft"}})
