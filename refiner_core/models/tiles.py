"""A model that works on overlapping tiles of a latent, which share one sampling process.

At every step each tile is denoised on its own, and the estimates are fused with weights that fall
towards a tile's edges and add up to 1 everywhere (MultiDiffusion, arXiv 2302.08113). So the tiles
agree at every noise level, and no edge between them remains. Memory is bounded by the tiles that
are denoised at once, not by the size of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..sampling import DenoiserCall
from .clean_storage import StoredKeys
from .kontext import CleanCache, Conditioning

_OVERLAP = 0.25  # of a tile's side, at least
_AT_ONCE = 16  # tiles in one forward pass
KEPT_PASSES = 12  # whose clean keys and values are kept between steps; nano takes 16 MB each


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` begin that cover `length` evenly, overlapping by a quarter or more."""
    if length <= side:
        return [0]
    count = -(-(length - side) // max(1, round(side * (1 - _OVERLAP)))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover a latent."""

    height: int
    """Of the latent."""
    width: int
    """Of the latent."""
    side: int
    """Of a tile; a latent that is smaller has one tile of its own size."""

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Row and column at which each tile begins."""
        columns = tile_starts(self.width, self.side)
        return [(y, x) for y in tile_starts(self.height, self.side) for x in columns]

    @cached_property
    def weights(self) -> list[Tensor]:
        """Of each tile, h w; where tiles overlap they add up to 1."""
        ramps = [_ramp(min(self.side, n)) for n in (self.height, self.width)]
        weight = ramps[0][:, None] * ramps[1][None]
        total = torch.zeros(self.height, self.width)
        for place in self.places:
            total[self._part(place)] += weight
        return [weight / total[self._part(place)] for place in self.places]

    def _part(self, place: tuple[int, int]) -> tuple[slice, slice]:
        y, x = place
        return slice(y, y + self.side), slice(x, x + self.side)

    def covers(self, latents: Sequence[Tensor]) -> bool:
        """Whether all latents have the size that is tiled."""
        return all(z.shape[-2:] == (self.height, self.width) for z in latents)

    def chunks(self, rows: int) -> list[range]:
        """Numbers of the tiles of each forward pass, for latents of `rows` samples."""
        size = max(1, _AT_ONCE // rows)
        count = len(self.places)
        return [range(at, min(at + size, count)) for at in range(0, count, size)]

    def cut(self, x: Tensor, tiles: Sequence[int]) -> Tensor:
        """Tiles of `B C H W`, `(n B) C h w`."""
        return torch.cat([x[(..., *self._part(self.places[i]))] for i in tiles])

    def add(self, total: Tensor, parts: Tensor, tiles: Sequence[int]) -> None:
        """Add tiles, `(n B) C h w`, with their weights to `total`, `B C H W`."""
        for i, part in zip(tiles, parts.split(len(total)), strict=True):
            total[(..., *self._part(self.places[i]))] += self.weights[i].to(part) * part


def _ramp(length: int) -> Tensor:
    """Weights along one side of a tile: rising over the overlap, even, and falling."""
    distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
    return (distance / max(1.0, _OVERLAP * length)).clamp(max=1.0)


class TileCaches(CleanCache):
    """The clean keys and values of each forward pass over tiles.

    The first passes keep theirs from step to step, the others record them at every step.
    """

    def clear(self) -> None:
        super().clear()
        self._passes: dict[int, CleanCache] = {}
        self._number = 0

    def select(self, number: int) -> None:
        """Say which pass comes next."""
        self._number = number

    def get(
        self, conditioning: Conditioning, record: Callable[[Conditioning], StoredKeys]
    ) -> StoredKeys:
        if self._number >= KEPT_PASSES:
            return record(conditioning)
        return self._passes.setdefault(self._number, CleanCache()).get(conditioning, record)


class TiledDenoiser:
    """A denoiser in the samplers' call shape that runs another one tile by tile.

    References that are not aligned have sizes of their own and no tiles: then it runs as it is.

    Args:
        denoise: `denoise(x, sigma, conditioning=...)` -> x0, for tiles.
        side: of a tile, in latent pixels.
        caches: those of `denoise`, told which pass it is.
    """

    def __init__(self, denoise: DenoiserCall, side: int, caches: TileCaches | None = None) -> None:
        self._denoise, self._side, self._caches = denoise, side, caches
        self._known: tuple[Conditioning, list[Conditioning]] | None = None

    def __call__(self, x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        tiling = Tiling(x.shape[-2], x.shape[-1], self._side)
        if not tiling.covers(conditioning.references):
            return self._denoise(x, sigma, conditioning=conditioning)
        chunks = tiling.chunks(len(x))
        parts = self._cut_all(tiling, chunks, conditioning, len(x))
        total = torch.zeros_like(x)
        for number, (tiles, part) in enumerate(zip(chunks, parts, strict=True)):
            if self._caches is not None:
                self._caches.select(number)
            found = self._denoise(tiling.cut(x, tiles), sigma.repeat(len(tiles)), conditioning=part)
            tiling.add(total, found, tiles)
        return total

    def _cut_all(
        self, tiling: Tiling, chunks: list[range], conditioning: Conditioning, rows: int
    ) -> list[Conditioning]:
        """The conditioning of each pass; the same objects for all steps of a run."""
        if self._known is None or self._known[0] is not conditioning:
            whole = conditioning.repeat(rows)
            cut = [cut_conditioning(tiling, tiles, whole) for tiles in chunks]
            self._known = conditioning, cut
        return self._known[1]


def cut_conditioning(tiling: Tiling, tiles: Sequence[int], whole: Conditioning) -> Conditioning:
    """What the network sees beside some tiles of the noisy latent."""
    return replace(
        whole,
        references=tuple(tiling.cut(r, tiles) for r in whole.references),
        text=torch.cat([whole.text] * len(tiles)),
        pooled=torch.cat([whole.pooled] * len(tiles)),
    )
