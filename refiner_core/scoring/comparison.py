"""Compares batches of pictures in chunks, with a policy for different sizes and a heatmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..images.geometry import Extent
from ..images.tensors import resize
from .dreamsim_scorer import DreamSimScorer
from .scorer import MapScorer, check_pictures

SizePolicy = Literal["refuse", "stretch", "crop"]
SIZE_POLICIES: tuple[SizePolicy, ...] = get_args(SizePolicy)
_CHUNK = 16


@dataclass(frozen=True)
class PairDistances:
    """The distances of a batch of pairs."""

    name: str  # of the scorer
    distances: Tensor  # float32 B
    heat: Tensor | None  # B 1 h w on the scorer's grid, if asked for

    @property
    def distance(self) -> float:
        """The mean over the pairs."""
        return float(self.distances.mean())

    @property
    def similarity(self) -> float:
        """1 minus the distance, and 0 where the distance is larger."""
        return max(0.0, 1 - self.distance)

    def summary(self) -> str:
        """One line: the distance, or the mean, the range and the distance of every pair."""
        values = self.distances.tolist()
        if len(values) == 1:
            return f"{self.name}: distance {values[0]:.4f}, similarity {self.similarity:.4f}"
        each = ", ".join(f"{v:.4f}" for v in values)
        return (
            f"{self.name}: mean distance {self.distance:.4f} of {len(values)} pairs "
            f"({min(values):.4f} to {max(values):.4f}): {each}"
        )


def match_size(image: Tensor, like: Tensor, policy: SizePolicy) -> Tensor:
    """`image` B 3 h w at the size of `like`: stretched, or scaled to cover it and cropped.

    Raises:
        ValueError: the sizes differ and the policy is "refuse"; names both.
    """
    size, wanted = Extent(image.shape[-1], image.shape[-2]), Extent(like.shape[-1], like.shape[-2])
    if size == wanted:
        return image
    if policy == "refuse":
        raise ValueError(
            f"The pictures have different sizes, {wanted} and {size}. Choose what is "
            'done with different sizes: "stretch" resizes the second picture, "crop" scales it to '
            "cover the first and crops it."
        )
    if policy == "stretch":
        return resize(image, wanted).clamp(0, 1)
    scale = max(wanted.width / size.width, wanted.height / size.height)
    cover = Extent(
        max(wanted.width, round(size.width * scale)), max(wanted.height, round(size.height * scale))
    )
    image = resize(image, cover).clamp(0, 1)
    x, y = (cover.width - wanted.width) // 2, (cover.height - wanted.height) // 2
    return image[..., y : y + wanted.height, x : x + wanted.width]


def compare(
    scorer: MapScorer,
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
    *,
    sizes: SizePolicy = "refuse",
    heatmap: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairDistances:
    """Score pairs of pictures B 3 H W, a batch of one against every item of the other.

    DreamSim resizes whole pictures to a square anyway: with "stretch" it does so from each
    picture's own pixels, which gives the dreamsim package's figures for any two sizes.

    Args:
        mask: B 1 H W in the first picture's frame, or None.
        sizes: the policy if the sizes differ.
        heatmap: also compute where they differ (of whole pictures; the mask is ignored).
        progress: `progress(pairs done, pairs)` after each chunk; raising from it stops the work.

    Raises:
        ValueError: as `Scorer.distance` and `match_size`.
    """
    count = max(check_pictures(a, b, any_size=True), 0 if mask is None else len(mask))
    resized_by_scorer = isinstance(scorer, DreamSimScorer) and mask is None and sizes == "stretch"
    if not resized_by_scorer:
        b = match_size(b, a, sizes)
    distances, heats = [], []
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        x, y = (v if len(v) == 1 else v[chunk] for v in (a, b))
        m = mask if mask is None or len(mask) == 1 else mask[chunk]
        distances.append(scorer.distance(x, y, m))
        if heatmap:
            heats.append(scorer.heatmap(x, y))
        progress(min(start + _CHUNK, count), count)
    heat = torch.cat(heats) if heats else None
    return PairDistances(scorer.name, torch.cat(distances).float(), heat)
