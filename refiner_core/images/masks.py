"""Masks and regions. The work depends on the size of the mask's bounds, not of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .geometry import Box, Extent
from .tensors import all_finite

MAX_REGIONS = 64
MERGE_DISTANCE = 24  # px; pieces with a smaller gap are one region, as the letters of a word
_BAND_ROWS = 32  # rows that are read at once: they stay in the cache
_FAINTEST_WEIGHT = 1 / 512  # of a region's outermost pixel, which belongs to the region


@dataclass(frozen=True)
class Region:
    """One piece of what is to be repaired."""

    box: Box  # tight around the mask, in pixels of the picture
    mask: Tensor  # in the box: float32 1 1 h w in [0, 1], above 0 where pixels may change


def bounds(mask: Tensor) -> Box | None:
    """Tight box of `mask > 0` over batch and channels, or None if that is empty.

    All of the mask is read once; its columns are looked at in the rows that it marks.
    """
    return _bounds(mask, _highest(mask))


@dataclass(frozen=True)
class MaskScan:
    """What one pass over a mask tells."""

    low: float
    """The smallest value; NaN where there is any."""
    high: float
    """The largest value; NaN where there is any."""
    box: Box | None
    """Tight around all values above 0, over the batch; None if there are none."""


def scan_mask(mask: Tensor) -> MaskScan:
    """Read a float mask B 1 H W once, with at least one pixel.

    Most of a large mask is exactly 0, which is tested twice as fast as its extremes are computed.
    """
    rows = mask.reshape(-1, *mask.shape[-2:]).contiguous()
    highest = torch.zeros(rows.shape[:2])
    low, empty_rows = math.inf, False
    for top in range(0, rows.shape[1], _BAND_ROWS):
        band = rows[:, top : top + _BAND_ROWS]
        if int(band.view(torch.uint8).amax()) == 0:
            empty_rows = True
            continue
        highest[:, top : top + _BAND_ROWS] = band.amax(2)
        own = float(band.amin())
        low = own if own < low or math.isnan(own) else low
    low = min(low, 0.0) if empty_rows else low
    return MaskScan(low, float(highest.amax()), _bounds(mask, highest))


def mask_sides(mask: Tensor) -> tuple[float, float]:
    """Longer and shorter side of the box around a mask 1 1 h w, in px."""
    ys, xs = (mask[0, 0] > 0.5).nonzero(as_tuple=True)
    if len(ys) == 0:
        return 1.0, 1.0
    height, width = float(ys.max() - ys.min() + 1), float(xs.max() - xs.min() + 1)
    return max(height, width), min(height, width)


def _highest(mask: Tensor) -> Tensor:
    """The largest value of each row, over all of the batch N H; NaN where the row has any."""
    return mask.reshape(-1, *mask.shape[-2:]).amax(2)


def _bounds(mask: Tensor, highest: Tensor) -> Box | None:
    """`bounds` where the rows' largest values are known; reads the columns of the marked rows only."""
    y0, y1 = _ends(highest > 0)
    if y1 == 0:
        return None
    rows = mask.reshape(-1, *mask.shape[-2:])[:, y0:y1]
    x0, x1 = _ends(rows.amax(1) > 0)
    return Box(x0, y0, x1, y1)


def _ends(marked: Tensor) -> tuple[int, int]:
    """The first marked index along the second axis, and the one after the last; 0, 0 if none is marked."""
    places = marked.any(0).nonzero().flatten()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _distance(inside: np.ndarray) -> np.ndarray:
    """Euclidean distance of every True pixel to the nearest False pixel; 0 where False."""
    return np.asarray(ndimage.distance_transform_edt(inside), np.float64)


def grow(mask: Tensor, pixels: float) -> Tensor:
    """Grow a mask `1 1 H W` by a Euclidean distance, or shrink it if `pixels` is negative.

    New pixels are 1, removed ones 0, and all others keep their value.
    """
    if pixels == 0:
        return mask
    m = mask[0, 0].numpy()
    if pixels > 0:
        near = _distance(m <= 0) <= pixels if (m > 0).any() else m > 0
        out = np.where(m > 0, m, near.astype(np.float32))
    else:
        # A mask does not end at the picture's border, so continue it there.
        padded = np.pad(m > 0, 1, mode="edge")
        if padded.all():
            return mask
        deep = _distance(padded)[1:-1, 1:-1]
        out = np.where(deep > -pixels, m, 0)
    return torch.from_numpy(np.ascontiguousarray(out, np.float32))[None, None]


def dilate(mask: Tensor, radius: int) -> Tensor:
    """The largest value of `1 1 H W` in a square of `2 * radius + 1` pixels around each pixel."""
    m = ndimage.maximum_filter(mask[0, 0].cpu().numpy(), 2 * radius + 1, mode="nearest")
    return torch.from_numpy(m)[None, None]


def feather(mask: Tensor, pixels: float, open_sides: tuple[bool, bool, bool, bool]) -> Tensor:
    """Blend weights `1 1 H W` that rise from the mask's edge inwards over `pixels`.

    The weights are above 0 only where the mask is, so that a feathered paste stays in the mask.

    Args:
        mask: float `1 1 H W` in [0, 1].
        pixels: width of the ramp; 0 gives the mask itself.
        open_sides: (left, top, right, bottom), True where the tensor's border is the border of the
            picture. The mask does not end there, so nothing fades.
    """
    if pixels <= 0:
        return (mask > 0).float() * mask
    m = mask[0, 0].numpy()
    inside = _padded(m > 0, open_sides)
    depth = np.full(m.shape, np.inf) if inside.all() else _distance(inside)[1:-1, 1:-1]
    ramp = np.clip((depth - 0.5) / max(pixels, 1e-3), 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    ramp = np.where(m > 0, np.maximum(ramp, _FAINTEST_WEIGHT), 0)
    return torch.from_numpy((ramp * m).astype(np.float32))[None, None]


def _padded(inside: np.ndarray, open_sides: tuple[bool, bool, bool, bool]) -> np.ndarray:
    """The mask with a border of one pixel, in which open sides continue the mask's edge."""
    left, top, right, bottom = open_sides
    padded = np.pad(inside, 1, constant_values=False)
    if left:
        padded[:, 0] = padded[:, 1]
    if right:
        padded[:, -1] = padded[:, -2]
    if top:
        padded[0] = padded[1]
    if bottom:
        padded[-1] = padded[-2]
    return padded


def fill_holes(mask: Tensor) -> Tensor:
    """The mask `1 1 H W` with the holes that it encloses filled with 1."""
    m = mask[0, 0].numpy()
    filled = np.asarray(ndimage.binary_fill_holes(m > 0))
    return torch.from_numpy(np.where(filled & (m <= 0), 1.0, m).astype(np.float32))[None, None]


def _groups(boxes: list[Box], merge: int) -> list[list[int]]:
    """Indices of the boxes that form one region each: joined while a gap is at most `merge` pixels."""
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
    merge: int = MERGE_DISTANCE,
    split: bool = True,
    within: Box | None = None,
) -> list[Region]:
    """The regions of a mask `1 1 H W`, from top to bottom and left to right.

    Args:
        mask: float in [0, 1]; every pixel above 0 belongs to a region.
        grow_pixels: grow the mask by this distance first, or shrink it if negative.
        holes: fill holes that the mask encloses.
        smallest: pieces with fewer pixels are dropped as specks.
        merge: pieces with a gap of at most this many pixels are one region.
        split: False makes everything one region.
        within: where the mask is read, if it is known to be 0 elsewhere; None reads all of it.

    Raises:
        ValueError: the mask is empty or becomes empty, contains NaN, or has over 64 regions.
    """
    window, pixels = _grown_window(mask, grow_pixels, holes, within)
    labels, count = ndimage.label(pixels > 0, structure=np.ones((3, 3)))  # type: ignore[misc]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [i for i in range(1, count + 1) if sizes[i] >= smallest]
    if not kept:
        raise ValueError(
            f"Nothing is left of the mask after growing it by {grow_pixels:g} px and dropping pieces "
            f"of fewer than {smallest} pixels: it has {count} pieces, and the largest has "
            f"{sizes[1:].max(initial=0)} pixels."
        )
    slices = ndimage.find_objects(labels)
    boxes = [
        Box(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in (slices[i - 1] for i in kept)
    ]
    groups = _groups(boxes, merge) if split else [list(range(len(kept)))]
    if len(groups) > MAX_REGIONS:
        raise ValueError(
            f"The mask has {len(groups)} separate regions, but at most {MAX_REGIONS} are repaired in "
            "one run. Remove the specks from the mask, or grow it until its pieces join."
        )
    pieces = [np.isin(labels, [kept[i] for i in group]) for group in groups]
    regions = [_region(np.where(piece, pixels, 0.0), window) for piece in pieces]
    return sorted(regions, key=lambda r: (r.box.y0, r.box.x0))


def _grown_window(
    mask: Tensor, grow_pixels: float, holes: bool, within: Box | None
) -> tuple[Box, np.ndarray]:
    """The part of the picture that the grown mask covers, and the mask in it."""
    image = Extent(mask.shape[-1], mask.shape[-2])
    tight = _finite_bounds(mask, within or Box(0, 0, *image))
    if tight is None:
        raise ValueError(
            f"The mask ({image}) is empty, so there is nothing to repair. Paint the detail, or leave "
            "the mask out to repair the whole picture."
        )
    margin = max(0, int(np.ceil(grow_pixels))) + 1
    window = tight.grown(margin, margin, image)
    m = mask[..., window.y0 : window.y1, window.x0 : window.x1].float().cpu()
    m = grow(m, grow_pixels)
    return window, (fill_holes(m) if holes else m)[0, 0].numpy()


def _finite_bounds(mask: Tensor, within: Box) -> Box | None:
    """`bounds` of a part of a mask, in pixels of all of it.

    Raises:
        ValueError: the part has a value that is NaN or infinite.
    """
    part = mask[..., within.y0 : within.y1, within.x0 : within.x1]
    highest = _highest(part)
    box = _bounds(part, highest)
    marked = part if box is None else part[..., box.y0 : box.y1, box.x0 : box.x1]
    if not (all_finite(highest) and all_finite(marked)):
        raise ValueError("The mask contains values that are NaN or infinite.")
    return None if box is None else box.moved(within.x0, within.y0)


def _region(pixels: np.ndarray, window: Box) -> Region:
    alone = torch.from_numpy(pixels.astype(np.float32))[None, None]
    box = bounds(alone)
    assert box is not None
    cut = alone[..., box.y0 : box.y1, box.x0 : box.x1].contiguous()
    return Region(box.moved(window.x0, window.y0), cut)


def whole_region(image: Extent) -> Region:
    """The whole picture as one region."""
    return Region(Box(0, 0, *image), torch.ones(1, 1, image.height, image.width))


def box_mask(box: Box, size: Extent) -> Tensor:
    """A mask 1 1 H W of that size that is 1 in the box, which lies in it, and 0 elsewhere."""
    mask = torch.zeros(1, 1, size.height, size.width)
    mask[..., box.y0 : box.y1, box.x0 : box.x1] = 1
    return mask
