"""What a sample is worth to GRPO: the patch-wise scores of `scoring.patchwise`, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..scoring.patchwise import patch_scores
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .config import ObjectiveSettings
from .dataset import Pixels

# Samples B 3 H W and what they are compared with -> named scores of B values, higher is better.
Reward = Callable[[Tensor, Pixels], Mapping[str, Tensor]]


class PatchReward:
    """Scores by a scorer on the whole and on the region, pixels, edges and background."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @torch.no_grad()
    def __call__(self, images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
        """The parts of `PatchScores`, `B` each."""
        target, draft, mask = (v.to(images) for v in (pixels.target, pixels.draft, pixels.mask))
        return patch_scores(self.scorer, images, target, mask, draft).parts()


def make_reward(settings: ObjectiveSettings, device: torch.device) -> PatchReward:
    """The reward of the settings: DreamSim sees the pictures if its weights are given, else the
    structural score does.

    Raises:
        ValueError: DreamSim weights that cannot be read.
    """
    if settings.dreamsim is None:
        return PatchReward(StructuralScorer())
    from ..scoring.dreamsim_files import load_dreamsim
    from ..scoring.dreamsim_scorer import DreamSimScorer

    return PatchReward(DreamSimScorer(load_dreamsim(settings.dreamsim, device)))
