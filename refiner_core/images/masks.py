"""Masks and regions. Work follows the mask's bounds, never the whole picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .geometry import Box, Extent
from .tensors import all_finite

MAX_REGIONS = 64


@dataclass(frozen=True)
class Region:
    """One connected piece of what is to be repaired: its tight box and its mask in that box.

    `mask` float32 1 1 h w in [0, 1], over 0 where pixels may change.
    """

    box: Box
    mask: Tensor


def bounds(mask: Tensor, threshold: float = 0.0) -> Box | None:
    """Tight box of `mask > threshold`, over batch and channels; None if nothing is."""
    flat = mask.reshape(-1, *mask.shape[-2:])
    on_rows = torch.zeros(mask.shape[-2], dtype=torch.bool)
    on_cols = torch.zeros(mask.shape[-1], dtype=torch.bool)
    for m in flat:
        on_rows |= (m.amax(1) > threshold).cpu()
        on_cols |= (m.amax(0) > threshold).cpu()
    rows, cols = on_rows.nonzero().flatten(), on_cols.nonzero().flatten()
    if len(rows) == 0:
        return None
    return Box(int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)


def _distance(inside: np.ndarray) -> np.ndarray:
    """Euclidean distance of every True pixel to the nearest False one, 0 at False."""
    return np.asarray(ndimage.distance_transform_edt(inside), np.float64)


def grow(mask: Tensor, pixels: float) -> Tensor:
    """Grow (or with negative `pixels` shrink) `1 1 H W` by a Euclidean distance; the result is 0/1
    where it grew or shrank and keeps the mask's own values elsewhere.
    """
    if pixels == 0:
        return mask
    m = mask[0, 0].numpy()
    if pixels > 0:
        near = _distance(m <= 0) <= pixels if (m > 0).any() else m > 0
        out = np.where(m > 0, m, near.astype(np.float32))
    else:
        # The picture's own edge is no edge of the mask: pad with its values.
        padded = np.pad(m > 0, 1, mode="edge")
        if padded.all():
            return mask
        deep = _distance(padded)[1:-1, 1:-1]
        out = np.where(deep > -pixels, m, 0)
    return torch.from_numpy(np.ascontiguousarray(out, np.float32))[None, None]


def dilate(mask: Tensor, reach: int) -> Tensor:
    """The largest value of `1 1 H W` within a square of `2 * reach + 1` pixels around each pixel."""
    m = ndimage.maximum_filter(mask[0, 0].cpu().numpy(), 2 * reach + 1, mode="nearest")
    return torch.from_numpy(m)[None, None]


def feather(mask: Tensor, pixels: float, open_sides: tuple[bool, bool, bool, bool]) -> Tensor:
    """Blend weights `1 1 H W` that rise from the mask's edge inwards over `pixels`.

    The weights are over 0 only where the mask is, so a feathered paste stays in the mask.
    `open_sides` (left, top, right, bottom) marks borders of the tensor that are borders of the
    picture: there the mask does not end, so nothing fades.
    """
    if pixels <= 0:
        return (mask > 0).float() * mask
    m = mask[0, 0].numpy()
    left, top, right, bottom = (1 if side else 0 for side in open_sides)
    padded = np.pad(m > 0, 1, constant_values=False)
    for on, index in ((left, np.s_[:, 0]), (right, np.s_[:, -1])):
        if on:
            padded[index] = padded[:, 1 if index[1] == 0 else -2]
    for on, index in ((top, 0), (bottom, -1)):
        if on:
            padded[index] = padded[1 if index == 0 else -2]
    depth = np.full(m.shape, np.inf) if padded.all() else _distance(padded)[1:-1, 1:-1]
    ramp = np.clip((depth - 0.5) / max(pixels, 1e-3), 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    # The outermost pixel keeps a trace of weight: it belongs to the region.
    ramp = np.where(m > 0, np.maximum(ramp, 1 / 512), 0)
    return torch.from_numpy((ramp * m).astype(np.float32))[None, None]


def fill_holes(mask: Tensor) -> Tensor:
    """Holes enclosed by the mask become part of it."""
    m = mask[0, 0].numpy()
    filled = np.asarray(ndimage.binary_fill_holes(m > 0))
    return torch.from_numpy(np.where(filled & (m <= 0), 1.0, m).astype(np.float32))[None, None]


def _groups(boxes: list[Box], merge: int) -> list[list[int]]:
    """Which boxes are one region: those whose gap is at most `merge`, again with their union."""
    left = np.asarray(boxes, np.int64)
    members = [[i] for i in range(len(boxes))]
    i = 0
    while i < len(left):
        gap = np.maximum(left[:, :2] - left[i, 2:], left[i, :2] - left[:, 2:]).max(1).clip(0)
        near = np.flatnonzero(gap <= merge)
        if len(near) <= 1:
            i += 1
            continue
        i = int(near[0])
        left[i] = [*left[near, :2].min(0), *left[near, 2:].max(0)]
        members[i] = [m for j in near for m in members[j]]
        gone = set(near[1:].tolist())
        left = np.delete(left, near[1:], axis=0)
        members = [m for j, m in enumerate(members) if j not in gone]
    return members


def find_regions(
    mask: Tensor,
    *,
    grow_pixels: float = 0,
    holes: bool = True,
    smallest: int = 1,
    merge: int = 24,
    split: bool = True,
) -> list[Region]:
    """The regions of a mask `1 1 H W`, left to right within top to bottom.

    Args:
        mask: float in [0, 1]; everything over 0 belongs to a region.
        grow_pixels: grow (or shrink) every region by that many pixels first.
        holes: fill enclosed holes.
        smallest: pieces of fewer pixels are dropped as specks.
        merge: pieces closer than that (pixels) are one region: letters of a word belong together.
        split: False makes everything one region.

    Raises:
        ValueError: the mask is empty (or became so), carries NaN, or falls apart into over 64
            regions.
    """
    if not all_finite(mask):
        raise ValueError("The mask has values that are NaN or infinite.")
    image = Extent(mask.shape[-1], mask.shape[-2])
    tight = bounds(mask)
    if tight is None:
        raise ValueError(
            f"The mask ({image}) is empty: nothing to repair. Paint the detail, or leave the mask "
            "out to repair the whole picture."
        )
    margin = max(0, int(np.ceil(grow_pixels))) + 1
    window = Box(
        tight.x0 - margin, tight.y0 - margin, tight.x1 + margin, tight.y1 + margin
    ).intersection(Box(0, 0, *image))
    m = mask[..., window.y0 : window.y1, window.x0 : window.x1].float().cpu()
    m = grow(m, grow_pixels)
    if holes:
        m = fill_holes(m)
    on = m[0, 0].numpy() > 0
    labels, count = ndimage.label(on, structure=np.ones((3, 3)))  # type: ignore[misc]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [i for i in range(1, count + 1) if sizes[i] >= smallest]
    if not kept:
        raise ValueError(
            f"Nothing is left of the mask: {count} pieces, the largest of {sizes[1:].max(initial=0)} "
            f"pixels, with grow {grow_pixels:g} and smallest {smallest}. Lower `smallest` or grow."
        )
    slices = ndimage.find_objects(labels)
    boxes = [
        Box(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in (slices[i - 1] for i in kept)
    ]
    groups = _groups(boxes, merge) if split else [list(range(len(kept)))]
    if len(groups) > MAX_REGIONS:
        raise ValueError(
            f"The mask falls apart into {len(groups)} regions; at most {MAX_REGIONS} are repaired in "
            "one run. Raise `smallest` to drop specks, or grow the mask."
        )
    regions = []
    for group in groups:
        chosen = np.isin(labels, [kept[i] for i in group])
        alone = torch.from_numpy(np.where(chosen, m[0, 0].numpy(), 0.0).astype(np.float32))[
            None, None
        ]
        box = bounds(alone)
        assert box is not None
        cut = alone[..., box.y0 : box.y1, box.x0 : box.x1].contiguous()
        regions.append(Region(box.moved(window.x0, window.y0), cut))
    return sorted(regions, key=lambda r: (r.box.y0, r.box.x0))


def whole_region(image: Extent) -> Region:
    """The whole picture as one region."""
    return Region(Box(0, 0, *image), torch.ones(1, 1, image.height, image.width))
