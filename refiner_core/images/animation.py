"""Before and after as a moving picture: one wipes over the other, beside what changed, enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..storage.output_files import atomic_path
from .geometry import Box, Extent

_GAP = 6  # px between the picture and its enlarged detail
_WIPE, _HOLD = 18, 12  # frames


def changed_box(before: np.ndarray, after: np.ndarray) -> Box | None:
    """Around where two pictures `H W 3` differ, at the pictures' aspect; None if nowhere."""
    ys, xs = np.nonzero((before != after).any(-1))
    if len(ys) == 0:
        return None
    h, w = before.shape[:2]
    share = min(1.0, 1.4 * max((np.ptp(xs) + 1) / w, (np.ptp(ys) + 1) / h))
    size = Extent(round(w * share), round(h * share))
    left = round((int(xs.min()) + int(xs.max()) - size.width) / 2)
    top = round((int(ys.min()) + int(ys.max()) - size.height) / 2)
    left, top = min(max(left, 0), w - size.width), min(max(top, 0), h - size.height)
    return Box(left, top, left + size.width, top + size.height)


def _sheet(picture: Image.Image, detail: Box | None, height: int) -> Image.Image:
    """The picture and beside it, as large, its detail."""
    size = (round(picture.width * height / picture.height), height)
    sheet = Image.new("RGB", (2 * size[0] + _GAP, height), (24, 24, 24))
    for at, part in ((0, picture), (size[0] + _GAP, picture.crop(detail or (0, 0, *picture.size)))):
        sheet.paste(part.resize(size, Image.Resampling.LANCZOS), (at, 0))
    return sheet


def wipe(before: Image.Image, after: Image.Image, share: float) -> Image.Image:
    """`after` left of the line at `share` of each half of the sheet, `before` right of it."""
    out = before.copy()
    half = (out.width - _GAP) // 2
    for left in (0, half + _GAP):
        edge = round(half * share)
        out.paste(after.crop((left, 0, left + edge, out.height)), (left, 0))
        if 0 < share < 1:
            out.paste((255, 255, 255), (left + edge, 0, left + edge + 2, out.height))
    return out


def frames_of(before: Path, after: Path, height: int) -> list[Image.Image]:
    """One pair: a while the first, a wipe to the second, a while the second.

    Raises:
        ValueError: the sizes differ.
    """
    a, b = (Image.open(p).convert("RGB") for p in (before, after))
    if a.size != b.size:
        raise ValueError(
            f"{before} is {a.width}x{a.height} but {after} is {b.width}x{b.height}; both must have "
            "one size."
        )
    detail = changed_box(np.asarray(a), np.asarray(b))
    first, second = (_sheet(p, detail, height) for p in (a, b))
    # A smooth start and end: the eye follows the line.
    shares = [0.0] * _HOLD + [t * t * (3 - 2 * t) for t in np.linspace(0, 1, _WIPE)] + [1.0] * _HOLD
    return [wipe(first, second, float(s)) for s in shares]


def _padded(frame: Image.Image, width: int) -> Image.Image:
    if frame.width == width:
        return frame
    out = Image.new("RGB", (width, frame.height), (24, 24, 24))
    out.paste(frame, ((width - frame.width) // 2, 0))
    return out


def write_animation(
    pairs: Sequence[tuple[Path, Path]], target: Path, height: int, fps: float
) -> int:
    """Write pairs of pictures, before and after, as one moving picture; the number of its frames.

    Args:
        target: a `.webp` or `.gif`, written whole or not at all.
        height: of the frames, in px.
        fps: frames a second.

    Raises:
        ValueError: the sizes of a pair differ.
    """
    frames = [f for before, after in pairs for f in frames_of(before, after, height)]
    width = max(f.width for f in frames)
    padded = [_padded(f, width) for f in frames]
    with atomic_path(target) as path:
        padded[0].save(
            path,
            save_all=True,
            append_images=padded[1:],
            duration=round(1000 / fps),
            loop=0,
            quality=80,
            method=6,
        )
    return len(padded)
