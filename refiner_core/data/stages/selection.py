"""The select stage for real pictures: sharp enough, alike enough, and if wanted a model's verdict."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ...scoring.interface import Scorer
from ...scoring.vlm_client import ask, png_url
from ..triplets import encode_png
from .files import shrunk
from .interface import RejectedError, Sample

SCORERS = ("structural", "dreamsim", "dinov2")
_SCORED_SIDE = 224
_QUESTION = """Two pictures: 1. a reference of a product, logo, text or pattern; 2. a scene that \
should show the same thing. Is the thing in the scene the same, with the same shapes, colours and \
lettering, large enough to be checked? Answer with one JSON object only, for example \
{"same": 85, "why": "..."}: 0 = another thing, 100 = the same in every detail."""


@cache
def load_scorer(kind: str, weights: str | None) -> Scorer:
    """The scorer of that kind, loaded once a process.

    Raises:
        ValueError: it needs weights that are not given or not there, or there is no such kind.
    """
    if kind == "structural":
        from ...scoring.structural import StructuralScorer

        return StructuralScorer()
    if not weights or not Path(weights).exists():
        raise ValueError(f"The scorer {kind} needs --scorer-weights, got {weights or 'none'}.")
    if kind == "dreamsim":
        from ...scoring.dreamsim import DreamSimScorer
        from ...scoring.dreamsim_files import load_dreamsim

        return DreamSimScorer(load_dreamsim(weights))
    if kind == "dinov2":
        from ...scoring.dinov2 import load_dinov2

        return load_dinov2(Path(weights))
    raise ValueError(f"No scorer {kind!r}; there are: {', '.join(SCORERS)}.")


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of the luminance, of 255 squared; under about 20 is blurred."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(ndimage.laplace(grey).var())


def _square(pixels: np.ndarray) -> Tensor:
    """A picture uint8 H W 3 as float 1 3 S S: what scorers compare."""
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    size = (_SCORED_SIDE, _SCORED_SIDE)
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class Verdict:
    """A vision-language model behind an OpenAI-compatible endpoint.

    `url` base address (".../v1"), `model`, `least` score of 100, `key` or None, `timeout` seconds.
    """

    url: str
    model: str
    least: float = 60.0
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def __call__(self, reference: np.ndarray, target: np.ndarray) -> tuple[float, str]:
        """Score 0 to 100 and the reason.

        Raises:
            ConnectionError: no answer.
            ValueError: an answer without a score.
        """
        pictures = [png_url(encode_png(shrunk(p, 768))) for p in (reference, target)]
        try:
            text = ask(
                self.url, self.model, _QUESTION, pictures, key=self.key, timeout=self.timeout,
                tokens=200,
            )  # fmt: skip
        except OSError as e:
            raise ConnectionError(f"{self.url} gives no verdict: {e}") from e
        return _score(text)


def _score(text: str) -> tuple[float, str]:
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        answer = json.loads(found.group(0) if found else "")
        return float(np.clip(answer["same"], 0, 100)), str(answer.get("why", ""))
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"the model's verdict has no score: {text[:200]!r}") from e


@dataclass(frozen=True)
class ScoreSelect:
    """Keeps pairs that are large and sharp enough and as far apart as wanted.

    `scorer` one of `SCORERS` with its `weights`; a pair is kept between `nearest` (under it the
    target is a copy of the reference) and `farthest` (over it, it shows something else; None =
    any: the structural scorer cannot tell two views of a thing from two things). `side` least
    shorter side in pixels, `sharp` least `sharpness`. `verdict` asks a model as well.
    """

    scorer: str = "structural"
    weights: str | None = None
    nearest: float = 0.02
    farthest: float | None = None
    side: int = 64
    sharp: float = 15.0
    verdict: Verdict | None = None
    name: str = field(default="select", init=False)
    version: str = field(default="scores/1", init=False)

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "scorer": self.scorer, "nearest": self.nearest, "farthest": self.farthest,
            "side": self.side, "sharp": self.sharp,
        }  # fmt: skip
        if self.verdict:
            settings["verdict"] = {"model": self.verdict.model, "least": self.verdict.least}
        return settings

    @torch.inference_mode()
    def __call__(self, sample: Sample) -> Sample:
        reference, target = sample.pair()
        least = min(*reference.shape[:2], *target.shape[:2])
        if least < self.side:
            raise RejectedError(f"a side of {least} px is under {self.side}")
        sharp = min(sharpness(reference), sharpness(target))
        if sharp < self.sharp:
            raise RejectedError(f"sharpness {sharp:.1f} is under {self.sharp:g}")
        scorer = load_scorer(self.scorer, self.weights)
        distance = float(scorer.distance(_square(reference), _square(target))[0])
        if distance < self.nearest:
            raise RejectedError(f"distance {distance:.4f} is under {self.nearest:g}: a copy")
        if self.farthest is not None and distance > self.farthest:
            raise RejectedError(f"distance {distance:.4f} is over {self.farthest:g}: another thing")
        scores: dict[str, Any] = {"sharpness": round(sharp, 2), scorer.name: round(distance, 5)}
        if self.verdict:
            same, why = self.verdict(reference, target)
            scores |= {"verdict": same, "verdict_reason": why}
            if same < self.verdict.least:
                raise RejectedError(f"verdict {same:g} is under {self.verdict.least:g}: {why}")
        return replace(sample, info=sample.noted(scores=scores))
