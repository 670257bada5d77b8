"""What a metric is, and a case as metrics see it.

A metric sees one case with the results of all systems, so that what they share (the target's
embedding, for example) is computed once. Every metric is optional: one that cannot be computed
raises `MetricUnavailable` when it is created, and its columns stay empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..data.triplets import Triplet, mask_tensor, picture_tensor
from ..images.geometry import Box, Extent
from ..images.masks import bounds

MAX_PSNR = 60.0  # dB; the PSNR of an exact match would be infinite and make every mean infinite
_CONTEXT = 1.3  # of the region's box: how much of the surroundings a crop shows

# Per system, per column; None where there is no value.
Scores = dict[str, dict[str, float | None]]


class MetricUnavailable(Exception):  # noqa: N818 (a state of the installation, not an error)
    """A metric that cannot be computed here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Column:
    """A column of the tables."""

    key: str  # in files
    title: str  # in tables
    higher: bool  # whether a higher value is better
    digits: int  # after the decimal point
    paper: float | None = None  # the figure that the paper reports


def region_box(mask: Tensor, context: float = _CONTEXT) -> Box:
    """The box of a mask 1 1 H W with its surroundings, inside the picture.

    Raises:
        ValueError: the mask is empty.
    """
    tight = bounds(mask)
    if tight is None:
        raise ValueError("the mask is empty: there is no region to measure")
    w, h = tight.extent
    x, y = (math.ceil(side * (context - 1) / 2 - 1e-9) for side in (w, h))
    return tight.grown(x, y, Extent(mask.shape[-1], mask.shape[-2]))


def cut(image: Tensor, box: Box) -> Tensor:
    """The box of a picture B C H W."""
    return image[..., box.y0 : box.y1, box.x0 : box.x1]


@dataclass(frozen=True)
class EvaluationCase:
    """A case as metrics see it: uint8 pictures 1 3 H W, float masks 1 1 H W."""

    id: str
    draft: Tensor
    reference: Tensor
    target: Tensor | None
    mask: Tensor
    reference_mask: Tensor | None
    prompt: str = ""

    @classmethod
    def of(cls, triplet: Triplet) -> EvaluationCase:
        """From the stored triplet."""
        target, reference_mask = triplet.target, triplet.reference_mask
        return cls(
            triplet.id,
            picture_tensor(triplet.draft),
            picture_tensor(triplet.reference),
            None if target is None else picture_tensor(target),
            mask_tensor(triplet.mask),
            None if reference_mask is None else mask_tensor(reference_mask),
            triplet.prompt,
        )

    @property
    def box(self) -> Box:
        """The region with its surroundings, in the draft."""
        return region_box(self.mask)

    @property
    def reference_crop(self) -> Tensor:
        """The detail in the reference with its surroundings, 1 3 h w."""
        mask = self.reference_mask
        if mask is None or bounds(mask) is None:
            return self.reference
        return cut(self.reference, region_box(mask))


class Metric(Protocol):
    """One or more columns for all results of a case."""

    columns: tuple[Column, ...]

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        """The columns of every system's result, each uint8 1 3 H W."""
        ...

    def describe(self) -> dict[str, str]:
        """What was used: names, versions, digests of files."""
        ...
