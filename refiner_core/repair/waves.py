"""Which regions can be repaired at the same time, phase by phase, as if one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from ..images.geometry import Box
from .region import PlannedRegion


def waves(regions: Sequence[PlannedRegion]) -> list[list[int]]:
    """Numbers of one picture's regions, wave by wave, each in order.

    A region whose repair may see what an earlier one changes is in a later wave than that one, and
    none is in an earlier wave than one that may see what it changes. Within a wave all crops are cut
    before anything is stitched, so that the result is the same as region by region.
    """
    numbers: list[int] = []
    for i, later in enumerate(regions):
        number = 0
        for earlier, wave in zip(regions[:i], numbers, strict=True):
            if _overlap(later.seen, earlier.pasted.box):
                number = max(number, wave + 1)
            elif _overlap(earlier.seen, later.pasted.box):
                number = max(number, wave)
        numbers.append(number)
    return [[i for i, own in enumerate(numbers) if own == wave] for wave in range(max(numbers) + 1)]


def _overlap(a: Box, b: Box) -> bool:
    both = a.intersection(b)
    return both.x0 < both.x1 and both.y0 < both.y1
