"""The protocol of everything that compares pictures, and the checks that all scorers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..images.tensors import check_finite


class IncomparableError(ValueError):
    """A picture shows nothing that the scorer could compare, for example no lettering."""


class Scorer(Protocol):
    """Measures the distance between pictures."""

    @property
    def name(self) -> str:
        """What is measured, for reports."""
        ...

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """One number per pair, float32 `B`: 0 = the same, lower is better.

        Args:
            a, b: float B 3 H W in [0, 1], of the same size. A batch of one is compared with every
                item of the other.
            mask: B 1 H W (or 1 1 H W) in [0, 1]: only differences where it is over 0 count.

        Raises:
            ValueError: sizes or batches do not match, a value is not finite, or a mask is empty.
            IncomparableError: `b` shows nothing that this scorer could compare with.
        """
        ...


class MapScorer(Scorer, Protocol):
    """A scorer that can also show where pictures differ."""

    def heatmap(self, a: Tensor, b: Tensor) -> Tensor:
        """Local distances B 1 h w on the scorer's own grid over the picture, 0 = the same."""
        ...


def check_pictures(a: Tensor, b: Tensor, any_size: bool = False) -> int:
    """The number of pairs in two batches.

    Raises:
        ValueError: a tensor is not a batch of pictures or not finite, or the batches or (without
            `any_size`) the sizes differ; names both.
    """
    for name, image in (("first picture", a), ("second picture", b)):
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ValueError(
                f"The {name} needs 3 channels of floating point values from 0 to 1, got {image.dtype} "
                f"of the shape {tuple(image.shape)}."
            )
        check_finite(image, name)
    if a.shape[-2:] != b.shape[-2:] and not any_size:
        raise ValueError(
            f"The pictures have different sizes: {a.shape[-1]}x{a.shape[-2]} and "
            f"{b.shape[-1]}x{b.shape[-2]}. Resize or crop one of them first."
        )
    return _common_batch(len(a), len(b), "pictures")


def check_pair(
    a: Tensor, b: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The pair and its mask, expanded to the same batch size.

    Raises:
        ValueError: as `check_pictures`; or the mask has another size or is empty (names the item).
    """
    count = check_pictures(a, b)
    if mask is not None:
        count = _common_batch(count, len(mask), "pictures and masks")
        mask = _check_mask(mask, a).expand(count, -1, -1, -1)
    return a.expand(count, -1, -1, -1), b.expand(count, -1, -1, -1), mask


def _common_batch(a: int, b: int, what: str) -> int:
    if min(a, b) < 1 or (a != b and 1 not in (a, b)):
        raise ValueError(
            f"The batches of {what} do not match: {a} and {b}. Give one, or the same number."
        )
    return max(a, b)


def _check_mask(mask: Tensor, like: Tensor) -> Tensor:
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[-2:] != like.shape[-2:]:
        raise ValueError(
            f"The mask needs one channel and the size of the pictures, {like.shape[-1]}x"
            f"{like.shape[-2]}, got the shape {tuple(mask.shape)}."
        )
    check_finite(mask, "mask")
    empty = (mask.flatten(1).amax(1) <= 0).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"The mask of item {int(empty[0])} is empty: there is nothing to compare. Paint the "
            "region, or leave the mask out to compare whole pictures."
        )
    return mask.to(like)


def only_inside(a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both pictures, with the mean of the two where the mask is 0.

    Nothing outside counts, neither picture is favoured, and what they share stays as context.
    """
    inside, mean = mask > 0, (a + b) / 2
    return torch.where(inside, a, mean), torch.where(inside, b, mean)
