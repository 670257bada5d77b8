"""The reward of a sample: the patch-wise scores of `scoring.patchwise`, part by part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scoring.patchwise import patch_scores
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .config import ObjectiveSettings
from .dataset import Pixels


class PatchReward:
    """A scorer on the whole picture and on the region, and errors of pixels, edges and background."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @torch.no_grad()
    def __call__(self, images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
        """The parts of `PatchScores`, B values each."""
        target, draft, mask = (v.to(images) for v in (pixels.target, pixels.draft, pixels.mask))
        return patch_scores(self.scorer, images, target, mask, draft).parts()


def make_reward(settings: ObjectiveSettings, device: torch.device) -> PatchReward:
    """The reward of the settings: it uses DreamSim if weights are given, else the structural score.

    Raises:
        ValueError: DreamSim weights that cannot be read.
    """
    if settings.dreamsim is None:
        return PatchReward(StructuralScorer())
    from ..scoring.dreamsim_files import load_dreamsim
    from ..scoring.dreamsim_scorer import DreamSimScorer

    return PatchReward(DreamSimScorer(load_dreamsim(settings.dreamsim, device)))
