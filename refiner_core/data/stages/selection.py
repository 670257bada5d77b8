"""The select stage for real pictures: sharpness, likeness, and optionally a model's verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ...scoring.scorer import Scorer
from ...scoring.vlm_client import VlmClient, json_objects, png_url
from ..pair_files import shrink
from ..sample import RejectedError, Sample
from ..triplets import encode_png

SCORERS = ("structural", "dreamsim", "dinov2")
_SCORED_SIDE = 224
_QUESTION = """Two pictures: 1. a reference of a product, logo, text or pattern; 2. a scene that \
should show the same thing. Is the thing in the scene the same, with the same shapes, colours and \
lettering, large enough to be checked? Answer with one JSON object only, for example \
{"same": 85, "why": "..."}: 0 = another thing, 100 = the same in every detail."""


@cache
def load_scorer(kind: str, weights: str | None) -> Scorer:
    """The scorer of that kind, loaded once per process.

    Raises:
        ValueError: it needs weights that are not given or missing, or the kind is unknown.
    """
    if kind == "structural":
        from ...scoring.structural import StructuralScorer

        return StructuralScorer()
    if not weights or not Path(weights).exists():
        raise ValueError(f"The scorer {kind} needs --scorer-weights, got {weights or 'none'}.")
    if kind == "dreamsim":
        from ...scoring.dreamsim_files import load_dreamsim
        from ...scoring.dreamsim_scorer import DreamSimScorer

        return DreamSimScorer(load_dreamsim(weights))
    if kind == "dinov2":
        from ...scoring.dinov2 import load_dinov2

        return load_dinov2(Path(weights))
    raise ValueError(f"Unknown scorer {kind!r}; choose from {', '.join(SCORERS)}.")


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of the luminance, of 255 squared; under about 20 is blurry."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(ndimage.laplace(grey).var())


def _square(pixels: np.ndarray) -> Tensor:
    """A picture uint8 H W 3 as float 1 3 S S, for scorers."""
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    size = (_SCORED_SIDE, _SCORED_SIDE)
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class VlmVerdict:
    """Asks a vision-language model whether two pictures show the same thing."""

    client: VlmClient
    min_score: float = 60.0  # of 100, for a pair to be kept

    def __call__(self, reference: np.ndarray, target: np.ndarray) -> tuple[float, str]:
        """Score 0 to 100 and the reason.

        Raises:
            ConnectionError: the endpoint does not reply.
            ValueError: the reply has no score.
        """
        pictures = [png_url(encode_png(shrink(p, 768))) for p in (reference, target)]
        try:
            reply = self.client.ask(_QUESTION, pictures, max_tokens=200)
        except OSError as e:
            raise ConnectionError(f"{self.client.url} gives no verdict: {e}") from e
        return _read_verdict(reply)


def _read_verdict(reply: str) -> tuple[float, str]:
    for answer in json_objects(reply):
        try:
            return float(np.clip(answer["same"], 0, 100)), str(answer.get("why", ""))
        except (ValueError, KeyError, TypeError):
            continue
    raise ValueError(f"the model's reply has no score: {reply[:200]!r}")


@dataclass(frozen=True)
class ScoreSelect:
    """Keeps pairs that are large and sharp enough and whose distance is in a range."""

    scorer: str = "structural"  # one of `SCORERS`
    weights: str | None = None  # of the scorer
    min_distance: float = 0.02  # under it the target is a copy of the reference
    # Over it the target shows something else. None = any: the structural scorer cannot tell two
    # views of one thing from two things.
    max_distance: float | None = None
    min_side: int = 64  # px
    min_sharpness: float = 15.0  # see `sharpness`
    verdict: VlmVerdict | None = None
    name: str = field(default="select", init=False)
    version: str = field(default="scores/1", init=False)

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "scorer": self.scorer,
            "nearest": self.min_distance,
            "farthest": self.max_distance,
            "side": self.min_side,
            "sharp": self.min_sharpness,
        }
        if self.verdict:
            settings["verdict"] = {
                "model": self.verdict.client.model,
                "least": self.verdict.min_score,
            }
        return settings

    @torch.inference_mode()
    def __call__(self, sample: Sample) -> Sample:
        reference, target = sample.pair()
        shortest = min(*reference.shape[:2], *target.shape[:2])
        if shortest < self.min_side:
            raise RejectedError(f"a side of {shortest} px is less than {self.min_side}")
        sharp = min(sharpness(reference), sharpness(target))
        if sharp < self.min_sharpness:
            raise RejectedError(f"sharpness {sharp:.1f} is less than {self.min_sharpness:g}")
        scorer = load_scorer(self.scorer, self.weights)
        distance = float(scorer.distance(_square(reference), _square(target))[0])
        self._check_distance(distance)
        scores: dict[str, Any] = {"sharpness": round(sharp, 2), scorer.name: round(distance, 5)}
        if self.verdict:
            scores |= self._ask(self.verdict, reference, target)
        return replace(sample, info=sample.noted(scores=scores))

    def _check_distance(self, distance: float) -> None:
        if distance < self.min_distance:
            raise RejectedError(
                f"distance {distance:.4f} is less than {self.min_distance:g}: a copy"
            )
        if self.max_distance is not None and distance > self.max_distance:
            raise RejectedError(
                f"distance {distance:.4f} is more than {self.max_distance:g}: another thing"
            )

    def _ask(
        self, verdict: VlmVerdict, reference: np.ndarray, target: np.ndarray
    ) -> dict[str, Any]:
        same, why = verdict(reference, target)
        if same < verdict.min_score:
            raise RejectedError(f"verdict {same:g} is less than {verdict.min_score:g}: {why}")
        return {"verdict": same, "verdict_reason": why}
