"""The reward: what each part sees, what it does not, and that it can be climbed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refiner_core.images.filters import blur
from refiner_core.scoring.dreamsim import VARIANTS, DreamSim, tower_config
from refiner_core.scoring.dreamsim_scorer import DreamSimScorer
from refiner_core.scoring.patchwise import PatchScores, patch_scores
from refiner_core.scoring.structural import StructuralScorer

SCORER = StructuralScorer()


def mean(scores: PatchScores) -> Tensor:
    return torch.stack(list(scores.parts().values())).mean(0)


def picture(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return ((blur(torch.rand(1, 3, 80, 96, generator=g), 2.0) - 0.5) * 4 + 0.5).clamp(0, 1)


TARGET = picture(0)
MASK = torch.zeros(1, 1, 80, 96)
MASK[..., 20:50, 30:70] = 1
DRAFT = torch.where(MASK > 0, picture(1), TARGET)


def values(scores: PatchScores) -> dict[str, float]:
    return {k: round(float(v[0]), 6) for k, v in scores.parts().items()}


def test_the_truth_is_perfect_and_the_draft_is_the_measure() -> None:
    truth = values(patch_scores(SCORER, TARGET, TARGET, MASK, DRAFT))
    assert truth == dict.fromkeys(("whole", "patch", "pixels", "edges", "background"), 1.0)
    draft = values(patch_scores(SCORER, DRAFT, TARGET, MASK, DRAFT))
    assert draft["pixels"] == draft["edges"] == pytest.approx(0.367879, abs=1e-5)
    assert draft["background"] == 1.0
    assert draft["patch"] < draft["whole"] < 1  # the region is seen larger alone


def test_each_part_sees_its_own() -> None:
    inside = torch.where(MASK > 0, blur(TARGET, 1.5), TARGET)
    blurred = values(patch_scores(SCORER, inside, TARGET, MASK, DRAFT))
    assert blurred["background"] == 1 and blurred["edges"] < blurred["pixels"] < 1
    cast = values(patch_scores(SCORER, TARGET + 0.05, TARGET, MASK, DRAFT))
    assert cast["edges"] == pytest.approx(1, abs=1e-5) and cast["pixels"] < 0.99
    outside = torch.where(MASK > 0, TARGET, TARGET.flip(-1))
    moved = values(patch_scores(SCORER, outside, TARGET, MASK, DRAFT))
    assert moved["pixels"] == 1 and moved["background"] < 1e-3 and moved["whole"] < 0.7


def test_a_batch_is_its_items() -> None:
    samples = torch.cat([DRAFT, TARGET, 0.5 * DRAFT + 0.5 * TARGET])
    together = patch_scores(SCORER, samples, TARGET, MASK, DRAFT)
    for i, sample in enumerate(samples.split(1)):
        alone = patch_scores(SCORER, sample, TARGET, MASK, DRAFT)
        for name, part in together.parts().items():
            assert torch.allclose(part[i : i + 1], alone.parts()[name], atol=1e-5), name
    total = mean(together)
    assert float(total[1]) > float(total[2]) > float(total[0])


def test_nothing_to_repair_is_the_whole_picture() -> None:
    empty = torch.zeros_like(MASK)
    scores = values(patch_scores(SCORER, TARGET, TARGET, empty, TARGET))
    assert set(scores.values()) == {1.0}
    mixed = patch_scores(SCORER, DRAFT, TARGET, torch.cat([empty, MASK]), DRAFT)
    assert all(bool(torch.isfinite(p).all()) for p in mixed.parts().values())
    assert float(mixed.background[0]) == 1


@pytest.mark.parametrize("kind", ["structural", "dreamsim"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_reward_can_be_climbed(kind: str, empty: bool) -> None:
    scorer: StructuralScorer | DreamSimScorer = SCORER
    if kind == "dreamsim":
        torch.manual_seed(0)
        tower = tower_config("dino", patch=16, grid=4, width=64, depth=2, projection=None)
        model = DreamSim(VARIANTS["dino_vitb16"], [tower]).requires_grad_(False)
        for p in model.parameters():
            p.normal_(0, 0.1)
        scorer = DreamSimScorer(model, exact=False)
    sample = DRAFT.clone().requires_grad_()
    mask = torch.zeros_like(MASK) if empty else MASK
    before = mean(patch_scores(scorer, sample, TARGET, mask, DRAFT))
    before.sum().backward()
    assert sample.grad is not None and bool(torch.isfinite(sample.grad).all())
    step = (sample + 0.1 * sample.grad / sample.grad.abs().max()).detach().clamp(0, 1)
    after = mean(patch_scores(scorer, step, TARGET, mask, DRAFT))
    assert float(after) > float(before.detach())


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        patch_scores(SCORER, TARGET[..., :64], TARGET, MASK, DRAFT)
    with pytest.raises(ValueError, match="second picture.* 1 values that are NaN"):
        broken = TARGET.clone()
        broken[0, 0, 0, 0] = float("nan")
        patch_scores(SCORER, TARGET, broken, MASK, DRAFT)
