"""The mask stage for real pictures: given masks, a detector's boxes, or the alpha channel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..shards import mask_box
from .files import PairFile, fitted, read_mask, read_pixels
from .interface import RejectedError, Sample


@dataclass(frozen=True)
class Limits:
    """Which masks will do: `smallest` and `largest` share of the picture, `grow` added all around
    as a share of the mask's box.
    """

    smallest: float = 0.002
    largest: float = 0.6
    grow: float = 0.03


def accepted(mask: np.ndarray, limits: Limits) -> np.ndarray:
    """The mask, grown.

    Raises:
        RejectedError: it is empty, full, or out of the limits; names the share.
    """
    share = float((mask > 0).mean())
    if share == 0:
        raise RejectedError("the mask is empty")
    if not limits.smallest <= share <= limits.largest:
        raise RejectedError(
            f"the mask covers {share:.2%} of the picture, not {limits.smallest:.2%} to "
            f"{limits.largest:.0%}"
        )
    box = mask_box(mask)
    assert box is not None, "it is not empty"
    pixels = limits.grow * max(box[2] - box[0], box[3] - box[1])
    if pixels < 1:
        return mask
    near = np.asarray(ndimage.distance_transform_edt(mask == 0)) <= pixels
    return np.where(near, 255, 0).astype(np.uint8)


def _marked(sample: Sample, mask: np.ndarray, other: np.ndarray | None, limits: Limits) -> Sample:
    mask = accepted(mask, limits)
    if other is not None and not other.any():
        other = None
    boxes = {"target": mask_box(mask), "reference": None if other is None else mask_box(other)}
    return replace(sample, mask=mask, reference_mask=other, info=sample.noted(boxes=boxes))


def _files(sample: Sample, pairs: tuple[PairFile, ...]) -> Mapping[str, Path]:
    return pairs[sample.number % len(pairs)].files if pairs else {}


@dataclass(frozen=True)
class GivenMask:
    """The masks that came with the pairs, as files or from the generating workflow."""

    pairs: tuple[PairFile, ...] = ()
    limits: Limits = Limits()
    name: str = field(default="mask", init=False)
    version: str = field(default="given/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits).copy()

    def __call__(self, sample: Sample) -> Sample:
        files = _files(sample, self.pairs)
        reference, target = sample.pair()
        found = {"mask": sample.mask, "reference_mask": sample.reference_mask}
        for name, like in (("mask", target), ("reference_mask", reference)):
            if name in files:
                found[name] = read_mask(files[name], name)
            if (mask := found[name]) is not None:
                found[name] = fitted(mask, like, name)
        if found["mask"] is None:
            raise ValueError(
                "there is no mask: add mask.png to the pair, title a saving node of the workflow "
                '"mask", or choose --masks boxes or alpha'
            )
        return _marked(sample, found["mask"], found["reference_mask"], self.limits)


@dataclass(frozen=True)
class AlphaMask:
    """The opaque part of the pictures' alpha channels."""

    pairs: tuple[PairFile, ...]
    limits: Limits = Limits()
    name: str = field(default="mask", init=False)
    version: str = field(default="alpha/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits).copy()

    def __call__(self, sample: Sample) -> Sample:
        files, found = _files(sample, self.pairs), []
        for name, like in zip(("reference", "target"), sample.pair(), strict=True):
            alpha = read_pixels(files[name], name)[1] if name in files else None
            opaque = None if alpha is None else np.where(alpha > 127, 255, 0).astype(np.uint8)
            found.append(None if opaque is None else fitted(opaque, like, f"{name}'s alpha"))
        if found[1] is None:
            raise ValueError("the target has no alpha channel to take the mask from")
        return _marked(sample, found[1], found[0], self.limits)


Boxes = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]


def load_boxes(path: Path) -> Boxes:
    """A detector's boxes: `{"<pair>": {"target": [[x0, y0, x1, y1], ...], "reference": [...]}}`.

    The numbers are fractions of the picture's width and height, 0 to 1.

    Raises:
        ValueError: not of that form; names the pair and the box.
    """
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"The boxes file {path} is no JSON: {e}.") from e
    if not isinstance(boxes, dict):
        raise ValueError(f"The boxes file {path} must hold an object: pair name to its boxes.")
    for name, parts in boxes.items():
        for part, found in parts.items() if isinstance(parts, dict) else [("?", None)]:
            if part not in ("target", "reference") or not isinstance(found, list):
                raise ValueError(
                    f'{path}: {name} must have "target" and perhaps "reference", lists of boxes.'
                )
            for box in found:
                x0, y0, x1, y1 = box if len(box) == 4 else (0, 0, 0, 0)
                if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                    raise ValueError(
                        f"{path}: {name}, {part}: {box} is no box x0 y0 x1 y1 in fractions, 0 to 1."
                    )
    return boxes


def _filled(boxes: Sequence[Sequence[float]], like: np.ndarray) -> np.ndarray:
    h, w = like.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[int(y0 * h) : max(int(y0 * h) + 1, round(y1 * h)),
             int(x0 * w) : max(int(x0 * w) + 1, round(x1 * w))] = 255  # fmt: skip
    return mask


@dataclass(frozen=True)
class BoxMask:
    """The boxes a detector found (see `load_boxes`), looked up by the pair's name."""

    boxes: Boxes
    limits: Limits = Limits()
    name: str = field(default="mask", init=False)
    version: str = field(default="boxes/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits) | {"boxes": len(self.boxes)}

    def __call__(self, sample: Sample) -> Sample:
        name = str(sample.info.get("pair", sample.id))
        if name not in self.boxes or not self.boxes[name].get("target"):
            raise RejectedError(f"no boxes for {name}")
        reference, target = sample.pair()
        other = self.boxes[name].get("reference")
        return _marked(
            sample, _filled(self.boxes[name]["target"], target),
            _filled(other, reference) if other else None, self.limits,
        )  # fmt: skip
