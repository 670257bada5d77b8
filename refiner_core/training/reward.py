"""The reward of samples, part by part: the scores of `scoring.patchwise`, the seam, a judge."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..images.masks import bounds
from ..scoring.dreamsim_scorer import DreamSimScorer
from ..scoring.patchwise import PatchScores, patch_scores
from ..scoring.preparation import square_view
from ..scoring.scorer import Scorer
from ..scoring.seam import seam_error
from ..scoring.structural import StructuralScorer
from ..scoring.vlm_client import VlmClient
from ..scoring.vlm_scorer import VlmScorer
from .adversarial import AdversarialReward, Features, structural_features
from .config import JudgeSettings, RewardSettings
from .dataset import Pixels

# Samples of one item G 3 H W and its pictures -> G scores.
Part = Callable[[Tensor, Pixels], Tensor]
PATCH_PARTS = tuple(PatchScores.__dataclass_fields__)
SEAM, JUDGE, ADVERSARIAL = "seam", "judge", "adversarial"
_CONTEXT = 1.3  # side of the square view over the longer side of the region's box
_SEAM_ERROR = 5e-4  # squared gradient on the ring that gives 1/e


class PatchReward:
    """A scorer on the whole picture and on the region; errors of pixels, edges and background; and
    further parts by name.

    Differentiable where its scorer and its further parts are.
    """

    def __init__(self, scorer: Scorer, further: Mapping[str, Part] | None = None) -> None:
        self.scorer, self.further = scorer, dict(further or {})
        learning = [p for p in self.further.values() if isinstance(p, AdversarialReward)]
        self.adversary = learning[0] if learning else None

    def __call__(self, images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
        """The parts of `PatchScores` and the further ones, B values each."""
        target, draft, mask = (v.to(images) for v in (pixels.target, pixels.draft, pixels.mask))
        parts = patch_scores(self.scorer, images, target, mask, draft).parts()
        return parts | {name: part(images, pixels) for name, part in self.further.items()}


def seam_reward(images: Tensor, pixels: Pixels) -> Tensor:
    """`exp(-e / 5e-4)` of the squared gradient error on the ring around the region's edge."""
    target, mask = pixels.target.to(images), pixels.mask.to(images)
    target, mask = (v.expand(len(images), *v.shape[1:]) for v in (target, mask))
    return (-seam_error(images, target, mask) / _SEAM_ERROR).exp()


def embedding_features(scorer: DreamSimScorer) -> Features:
    """DreamSim's embeddings of the square around the region, scaled to unit size."""

    def features(images: Tensor, region: Tensor) -> Tensor:
        box = bounds(region if bool(region.any()) else torch.ones_like(region))
        assert box is not None, "a region that is not empty"
        found = scorer.embed(square_view(images, box, _CONTEXT, scorer.model.side))
        return found * found.shape[1] ** 0.5

    return features


class JudgeReward:
    """The score of a vision-language model; with the form "pairs" the share of siblings beaten.

    NaN where it gives no usable answer.
    """

    def __init__(self, scorer: VlmScorer) -> None:
        self.scorer = scorer

    @torch.no_grad()
    def __call__(self, images: Tensor, pixels: Pixels) -> Tensor:
        """B values in [0, 1]; the images are siblings."""
        images, target, mask = (v.cpu().float() for v in (images, pixels.target, pixels.mask))
        region = mask if bool(mask.any()) else None
        if self.scorer.form == "pairs" and len(images) > 1:
            return self.scorer.compare(images, target, region)
        return 1 - self.scorer.distance(images, target, region)


def make_reward(
    settings: RewardSettings,
    device: torch.device,
    judge: JudgeSettings | None = None,
    cache: Path | None = None,
    *,
    differentiable: bool = False,
) -> PatchReward:
    """The reward of the settings: it uses DreamSim if weights are given, else the structural score.

    Args:
        judge: the model behind the part "judge".
        cache: a JSON-lines file of its replies.
        differentiable: whether every part must have a gradient.

    Raises:
        ValueError: DreamSim weights that cannot be read, an unknown part, or one without a gradient.
    """
    weighted = [name for name, weight in settings.rewards.items() if weight]
    known = (*PATCH_PARTS, SEAM, JUDGE, ADVERSARIAL)
    unknown = sorted(set(weighted) - set(known))
    if unknown:
        raise ValueError(
            f"objective.rewards names {', '.join(unknown)}, but the parts are {', '.join(known)}."
        )
    further: dict[str, Part] = {}
    if SEAM in weighted:
        further[SEAM] = seam_reward
    if differentiable:
        _check_differentiable(settings.rewards)
    if JUDGE in weighted:
        further[JUDGE] = JudgeReward(_judge(judge or JudgeSettings(), cache))
    scorer = _scorer(settings, device, not differentiable)
    if ADVERSARIAL in weighted:
        is_dreamsim = not isinstance(scorer, StructuralScorer)
        features = embedding_features(scorer) if is_dreamsim else structural_features
        further[ADVERSARIAL] = AdversarialReward(features)
    return PatchReward(scorer, further)


def _check_differentiable(weights: Mapping[str, float]) -> None:
    """Refuse parts that train reward cannot use.

    Raises:
        ValueError: names the part and its weight.
    """
    for name, reason in (
        (JUDGE, "a vision-language model behind an endpoint has no gradient"),
        (ADVERSARIAL, "its head is trained by the epochs of train grpo alone"),
    ):
        if weights.get(name):
            raise ValueError(
                f"objective.rewards gives {name} the weight {weights[name]:g}, but {reason}. Set it to "
                "0, or use train grpo."
            )


def _scorer(
    settings: RewardSettings, device: torch.device, exact: bool
) -> StructuralScorer | DreamSimScorer:
    if settings.dreamsim is None:
        return StructuralScorer()
    from ..scoring.dreamsim_files import load_dreamsim

    return DreamSimScorer(load_dreamsim(settings.dreamsim, device), exact=exact)


def _judge(settings: JudgeSettings, cache: Path | None) -> VlmScorer:
    if settings.url is None or not settings.model:
        raise ValueError(
            "objective.rewards gives judge a weight, which needs judge.url (an OpenAI-compatible "
            f"endpoint) and judge.model, got {settings.url!r} and {settings.model!r}."
        )
    key = os.environ.get(settings.key) if settings.key else None
    client = VlmClient(
        settings.url,
        settings.model,
        key,
        settings.timeout,
        retries=settings.retries,
        cache=cache,
    )
    return VlmScorer(client, settings.form, settings.passes, settings.tie_band)
