"""One-way attention with and without its cache: seconds of a run, by crop and number of steps."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch

from refiner_core.images.geometry import Extent
from refiner_core.models.flux_transformer import FluxTransformer
from refiner_core.models.kontext import Conditioning, Denoiser
from refiner_core.nano.nano_engine import load_nano
from refiner_core.recipes.recipe import NANO
from refiner_core.sampling import sample
from tests.synthetic import zero_text

from .measuring import Figure, median_seconds


class _Forgetful(Denoiser):
    """Computes the clean tokens anew at every step."""

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.cache.clear()
        return super().__call__(*args, **kwargs)


def measure(
    model: FluxTransformer, tokens: int, steps: int, text: int, repeats: int
) -> list[float]:
    """Seconds of the processor of a run with two clean pictures of `tokens` x `tokens`: both ways, one
    way without and with the cache.
    """
    side = 2 * tokens
    x, draft, reference = torch.randn(3, 1, 16, side, side).unbind(0)
    c = Conditioning((draft, reference), (1, 2), *zero_text(model, 1, text))
    sigmas = NANO.sigmas(Extent(8 * tokens, 8 * tokens), steps)
    makers = (
        lambda: Denoiser(model),
        lambda: _Forgetful(model, "one way"),
        lambda: Denoiser(model, "one way"),
    )
    return [
        median_seconds(
            lambda make=make: sample(make(), x, sigmas, {"conditioning": c}),
            repeats,
            time.process_time,
        )
        for make in makers
    ]


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("one-way", help="one-way attention with and without its cache")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--largest", type=int, default=1024, help="px, of nano's crops")
    p.set_defaults(run=run)


@torch.no_grad()
def _measured(largest: int, repeats: int) -> Iterator[tuple[str, int, int, list[float]]]:
    """Model, px, steps and what `measure` gives."""
    narrow = FluxTransformer(num_attention_heads=1, num_layers=2, num_single_layers=4).eval()
    nano: Any = load_nano().model
    sizes = [s for s in (128, 256, 512, 1024) if s <= largest]
    cases = [("nano", nano, s, s // 8, 1, n) for s in sizes for n in (4, 8)]
    cases += [("Kontext, 1 head", narrow, s, s // 16, 512, 8) for s in (512, 1024) if s <= largest]
    for name, model, size, tokens, text, steps in cases:
        yield name, size, steps, measure(model, tokens, steps, text, repeats)


def figures(largest: int, repeats: int) -> Iterator[Figure]:
    """A run with the cache beside one without it, and beside one both ways."""
    for name, size, steps, (both, one, cached) in _measured(largest, repeats):
        title = f"{name}, cached, {size} px, {steps} steps"
        yield Figure(title, cached, one, "the same, not cached")
        yield Figure(title, cached, both, "both ways")


def run(chosen: argparse.Namespace) -> None:
    """Print a table of seconds and ratios."""
    print("| model | px | steps | both ways s | one way s | cached s | cached / both ways |")
    print("|---|---|---|---|---|---|---|")
    for name, size, steps, (both, one, cached) in _measured(chosen.largest, chosen.repeats):
        print(
            f"| {name} | {size} | {steps} | {both:.2f} | {one:.2f} | {cached:.2f} | "
            f"{cached / both:.2f} |",
            flush=True,
        )
