"""Comparing batches of pictures: sizes by a stated policy, in chunks, with a heatmap to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..images.geometry import Extent
from ..images.tensors import resize
from .dreamsim import DreamSimScorer
from .interface import MapScorer, check_pictures

SizePolicy = Literal["refuse", "stretch", "crop"]
SIZE_POLICIES: tuple[SizePolicy, ...] = get_args(SizePolicy)
_CHUNK = 16
_FAINT = 0.05  # local distance under which nothing is drawn as hot

# Cold to hot, RGB: readable in grey as well, each step brighter than the last.
_COLORS = (
    (0.0, 0.0, 0.1),
    (0.35, 0.0, 0.45),
    (0.85, 0.15, 0.2),
    (1.0, 0.65, 0.1),
    (1.0, 1.0, 0.75),
)


@dataclass(frozen=True)
class Comparison:
    """`distances` float32 B; `heat` B 1 h w on the scorer's grid, or None if not asked for."""

    name: str
    distances: Tensor
    heat: Tensor | None

    @property
    def distance(self) -> float:
        """The mean over the pairs."""
        return float(self.distances.mean())

    def summary(self) -> str:
        """One line: the number, or the mean, the range and every pair's number."""
        values = self.distances.tolist()
        if len(values) == 1:
            return f"{self.name}: distance {values[0]:.4f}, similarity {1 - values[0]:.4f}"
        each = ", ".join(f"{v:.4f}" for v in values)
        return (
            f"{self.name}: mean distance {self.distance:.4f} of {len(values)} pairs "
            f"({min(values):.4f} to {max(values):.4f}): {each}"
        )


def match_size(image: Tensor, like: Tensor, policy: SizePolicy) -> Tensor:
    """`image` B 3 h w at the size of `like`: stretched, or scaled to cover it and cut centrally.

    Raises:
        ValueError: the sizes differ and the policy is "refuse"; names both.
    """
    size, wanted = Extent(image.shape[-1], image.shape[-2]), Extent(like.shape[-1], like.shape[-2])
    if size == wanted:
        return image
    if policy == "refuse":
        raise ValueError(
            f"The pictures have different sizes, {wanted} and {size}. Choose what is to happen: "
            '"stretch" resizes the second, "crop" scales it to cover the first and cuts the rest.'
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
) -> Comparison:
    """Score pairs of pictures B 3 H W, a batch of one against every item of the other.

    DreamSim sees whole pictures squeezed to a square anyway: there "stretch" leaves each its own
    pixels, which gives the dreamsim package's number for pictures of any two sizes.

    Args:
        mask: B 1 H W in the first picture's frame, or None.
        sizes: what to do if the sizes differ.
        heatmap: also find where (whole pictures; the mask plays no part).
        progress: `progress(pairs done, pairs)` after each chunk; raising from it stops the work.

    Raises:
        ValueError: as `Scorer.distance` and `match_size`.
    """
    count = max(check_pictures(a, b, any_size=True), 0 if mask is None else len(mask))
    squeezed = isinstance(scorer, DreamSimScorer) and mask is None and sizes == "stretch"
    if not squeezed:
        b = match_size(b, a, sizes)
    distances, heats = [], []
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        x, y = (v if len(v) == 1 else v[part] for v in (a, b))
        m = mask if mask is None or len(mask) == 1 else mask[part]
        distances.append(scorer.distance(x, y, m))
        if heatmap:
            heats.append(scorer.heatmap(x, y))
        progress(min(start + _CHUNK, count), count)
    heat = torch.cat(heats) if heats else None
    return Comparison(scorer.name, torch.cat(distances).float(), heat)


def draw_heat(image: Tensor, heat: Tensor, scale: float = 0.0) -> Tensor:
    """The heatmap over the picture, B 3 H W.

    Args:
        image: B 3 H W or 1 3 H W in [0, 1].
        heat: B 1 h w, smoothly enlarged.
        scale: the local distance drawn hottest, the same for all; 0 = each picture's largest (at
            least 0.05, so that rounding does not glow).
    """
    size = Extent(image.shape[-1], image.shape[-2])
    heat = heat.float().cpu()
    top = heat.flatten(1).amax(1).clamp_min(_FAINT) if scale <= 0 else heat.new_full((1,), scale)
    value = (resize(heat, size) / top.reshape(-1, 1, 1, 1)).clamp(0, 1)
    position = value * (len(_COLORS) - 1)
    color = torch.zeros(len(heat), 3, size.height, size.width)
    for i, rgb in enumerate(_COLORS):
        near = (1 - (position - i).abs()).clamp_min(0)
        color = color + near * torch.tensor(rgb).reshape(1, 3, 1, 1)
    opacity = 0.85 * value.sqrt()
    return (image.float().cpu() * (1 - opacity) + color * opacity).clamp(0, 1)
