"""Part `steps` of the figures: one-way attention with and without its cache, by step and by run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from refiner_core.images.geometry import Extent
from refiner_core.models.flux_transformer import FluxTransformer
from refiner_core.models.kontext import Conditioning, Denoiser
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO, Attention
from refiner_core.sampling import sample
from tests.synthetic import zero_text

from .measuring import Figure

_STEPS = 8
_LARGE = 512  # px from which on one run is enough
# Attention, and whether the clean tokens are kept: cached, not cached, and the published way.
_WAYS: tuple[tuple[Attention, bool], ...] = (
    ("one way", True),
    ("one way", False),
    ("both ways", False),
)


class _Timed(Denoiser):
    """Keeps the seconds of every step; without `keeps_clean` it computes the clean tokens in each."""

    def __init__(self, model: FluxTransformer, attention: Attention, keeps_clean: bool) -> None:
        super().__init__(model, attention)
        self.keeps_clean, self.seconds = keeps_clean, list[float]()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.keeps_clean:
            self.cache.clear()
        begun = time.process_time()
        x0 = super().__call__(*args, **kwargs)
        self.seconds.append(time.process_time() - begun)
        return x0


def _steps(
    model: FluxTransformer,
    tokens: int,
    text: int,
    rounds: int,
    attention: Attention,
    keeps_clean: bool,
) -> list[float]:
    """Seconds of the processor of each of eight steps with two clean pictures of `tokens` x `tokens`."""
    side = 2 * tokens
    generator = torch.Generator().manual_seed(0)
    x, draft, reference = torch.randn(3, 1, 16, side, side, generator=generator).unbind(0)
    conditioning = Conditioning((draft, reference), (1, 2), *zero_text(model, 1, text))
    sigmas = NANO.sigmas(Extent(8 * tokens, 8 * tokens), _STEPS)
    runs: list[list[float]] = []
    for _ in range(rounds):
        denoiser = _Timed(model, attention, keeps_clean)
        sample(denoiser, x, sigmas, {"conditioning": conditioning})
        runs.append(denoiser.seconds)
    return [statistics.median(step) for step in zip(*runs, strict=True)]


def _beside(title: str, cached: list[float], other: list[float], what: str) -> Iterator[Figure]:
    """A step with the cache filled, and whole runs: one of four steps is the first half of eight."""
    yield Figure(
        f"{title}, a step, cached", statistics.median(cached[1:]), statistics.median(other), what
    )
    for steps in (4, _STEPS):
        yield Figure(
            f"{title}, {steps} steps, cached", sum(cached[:steps]), sum(other[:steps]), what
        )


@torch.inference_mode()
def figures(largest: int, rounds: int) -> Iterator[Figure]:
    """One-way runs with the cache beside those without it, and beside runs both ways: nano, and a
    Kontext of the width of one head with 2 of its 19 and 4 of its 38 blocks.
    """
    torch.set_num_threads(1)
    narrow = FluxTransformer(num_attention_heads=1, num_layers=2, num_single_layers=4).eval()
    nano: Any = load_nano().model
    cases = [("nano", nano, s, s // 8, 1) for s in (128, 256, 512, 1024)]
    cases += [("Kontext's shapes, narrow", narrow, s, s // 16, 512) for s in (512, 1024)]
    for name, model, size, tokens, text in cases:
        if size > largest:
            continue
        times = rounds if size < _LARGE else 1
        cached, anew, both = (_steps(model, tokens, text, times, *way) for way in _WAYS)
        yield from _beside(f"{name}, {size} px", cached, anew, "not cached")
        yield from _beside(f"{name}, {size} px", cached, both, "both ways")
