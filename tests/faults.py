"""Measures for what published refiners do wrong: moved, stretched and cut pictures, hard seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.images.filters import blur
from refiner_core.images.geometry import Extent
from refiner_core.interfaces import SamplingJob
from refiner_core.recipes.recipe import Recipe

BLOCK, REACH = 64, 40  # px


def checkerboard(size: Extent, square: int = 12, seed: int = 0) -> Tensor:
    """1 3 H W: squares of random grey, so that no shift maps the picture onto itself."""
    rows, columns = -(-size.height // square), -(-size.width // square)
    generator = torch.Generator().manual_seed(seed)
    grey = torch.rand(1, 1, rows, columns, generator=generator)
    board = grey.repeat_interleave(square, 2).repeat_interleave(square, 3)
    return board[..., : size.height, : size.width].expand(1, 3, -1, -1).clone()


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three values at -1, 0, 1 has its least."""
    bend = left - 2 * middle + right
    return 0.0 if bend <= 0 else 0.5 * (left - right) / bend


def displacement(before: Tensor, after: Tensor, box: tuple[int, int, int, int]) -> float:
    """The farthest that any block of `box` (x0, y0, x1, y1) moved, px; blocks are matched alone.

    Blocks move by up to REACH; the pictures are 1 3 H W in [0, 1].
    """
    x0, y0, x1, y1 = box
    a, b = (blur(p.mean(1, keepdim=True), 2.0).double() for p in (before, after))
    a = F.pad(a, (REACH,) * 4, mode="replicate")
    side = 2 * REACH + 1
    worst = 0.0
    for y in sorted({y0, (y0 + y1 - BLOCK) // 2, y1 - BLOCK}):
        for x in sorted({x0, (x0 + x1 - BLOCK) // 2, x1 - BLOCK}):
            block = b[..., y : y + BLOCK, x : x + BLOCK]
            window = a[..., y : y + BLOCK + 2 * REACH, x : x + BLOCK + 2 * REACH]
            # Sum of squared differences, but for the block's own square, which is the same for all.
            cost = F.conv2d(window.square(), torch.ones_like(block)) - 2 * F.conv2d(window, block)
            cost = cost.reshape(side, side)
            v, u = divmod(int(cost.argmin()), side)
            c = F.pad(cost[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
            dx = u + _vertex(*(float(c[v + 1, u + i]) for i in range(3))) - REACH
            dy = v + _vertex(*(float(c[v + i, u + 1]) for i in range(3))) - REACH
            worst = max(worst, (dx * dx + dy * dy) ** 0.5)
    return worst


def seam(before: Tensor, after: Tensor) -> float:
    """The largest step between neighbouring pixels in what was added to a picture."""
    added = after - before
    across = (added[..., 1:] - added[..., :-1]).abs().max()
    return float(torch.maximum(across, (added[..., 1:, :] - added[..., :-1, :]).abs().max()))


@dataclass
class ModelThat:
    """An engine without weights that returns what `does` makes of the draft's crop."""

    recipe: Recipe
    does: Callable[[Tensor], Tensor] = lambda x: x
    jobs: list[SamplingJob] = field(default_factory=list)

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def encode_text(self, jobs: Sequence[SamplingJob]) -> None:
        pass

    def sample(self, job: SamplingJob, step: Callable[[int, int, Tensor], None]) -> Tensor:
        self.jobs.append(job)
        return self.does(job.draft)

    def describe(self) -> dict[str, str]:
        return {"kind": "no weights"}
