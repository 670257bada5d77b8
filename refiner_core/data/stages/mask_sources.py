"""The mask stage for real pictures: given masks, a detector's boxes, or the alpha channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ...images.boxes import are_numbers
from ...storage.text_files import read_object
from ..pair_files import PairFiles, fit_to, read_alpha, read_mask
from ..sample import RejectedError, Sample
from ..triplets import mask_box


@dataclass(frozen=True)
class MaskLimits:
    """Which masks are accepted, and how they are dilated."""

    smallest: float = 0.002  # share of the picture
    largest: float = 0.6  # share of the picture
    grow: float = 0.03  # dilation, as a share of the longer side of the mask's box


def dilate_accepted(mask: np.ndarray, limits: MaskLimits) -> np.ndarray:
    """The mask, dilated.

    Raises:
        RejectedError: it is empty or outside the limits; names its share of the picture.
    """
    share = float((mask > 0).mean())
    if share == 0:
        raise RejectedError("the mask is empty")
    if not limits.smallest <= share <= limits.largest:
        raise RejectedError(
            f"the mask covers {share:.2%} of the picture; allowed are {limits.smallest:.2%} to "
            f"{limits.largest:.0%}"
        )
    box = mask_box(mask)
    assert box is not None, "it is not empty"
    pixels = limits.grow * max(box[2] - box[0], box[3] - box[1])
    if pixels < 1:
        return mask
    near = np.asarray(ndimage.distance_transform_edt(mask == 0)) <= pixels
    return np.where(near, 255, 0).astype(np.uint8)


def _with_masks(
    sample: Sample, mask: np.ndarray, reference_mask: np.ndarray | None, limits: MaskLimits
) -> Sample:
    mask = dilate_accepted(mask, limits)
    if reference_mask is not None and not reference_mask.any():
        reference_mask = None
    reference_box = None if reference_mask is None else mask_box(reference_mask)
    info = sample.noted(boxes={"target": mask_box(mask), "reference": reference_box})
    return replace(sample, mask=mask, reference_mask=reference_mask, info=info)


def _files(sample: Sample, pairs: tuple[PairFiles, ...]) -> Mapping[str, Path]:
    return pairs[sample.number % len(pairs)].files if pairs else {}


@dataclass(frozen=True)
class GivenMask:
    """The masks that came with the pairs, as files or from the workflow that made the target."""

    pairs: tuple[PairFiles, ...] = ()
    limits: MaskLimits = MaskLimits()
    name: str = field(default="mask", init=False)
    version: str = field(default="given/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits).copy()

    def __call__(self, sample: Sample) -> Sample:
        files = _files(sample, self.pairs)
        reference, target = sample.pair()
        masks = {"mask": sample.mask, "reference_mask": sample.reference_mask}
        for name, like in (("mask", target), ("reference_mask", reference)):
            if name in files:
                masks[name] = read_mask(files[name], name)
            if (mask := masks[name]) is not None:
                masks[name] = fit_to(mask, like, name)
        if masks["mask"] is None:
            raise ValueError(
                "there is no mask: add mask.png to the pair, give a saving node of the workflow the "
                'title "mask", or choose --masks boxes or alpha'
            )
        return _with_masks(sample, masks["mask"], masks["reference_mask"], self.limits)


@dataclass(frozen=True)
class AlphaMask:
    """The opaque part of the pictures' alpha channels."""

    pairs: tuple[PairFiles, ...]
    limits: MaskLimits = MaskLimits()
    name: str = field(default="mask", init=False)
    version: str = field(default="alpha/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits).copy()

    def __call__(self, sample: Sample) -> Sample:
        files = _files(sample, self.pairs)
        masks: list[np.ndarray | None] = []
        for name, like in zip(("reference", "target"), sample.pair(), strict=True):
            alpha = read_alpha(files[name], name) if name in files else None
            opaque = None if alpha is None else np.where(alpha > 127, 255, 0).astype(np.uint8)
            masks.append(None if opaque is None else fit_to(opaque, like, f"{name}'s alpha"))
        if masks[1] is None:
            raise ValueError("the target has no alpha channel to take the mask from")
        return _with_masks(sample, masks[1], masks[0], self.limits)


Boxes = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]


def load_boxes(path: Path) -> Boxes:
    """A detector's boxes: `{"<pair>": {"target": [[x0, y0, x1, y1], ...], "reference": [...]}}`.

    The numbers are fractions of the picture's width and height, 0 to 1.

    Raises:
        ValueError: the file is not of that form; names the pair and the box.
    """
    boxes = read_object(path, "boxes file")
    for name, pictures in boxes.items():
        for role, listed in pictures.items() if isinstance(pictures, dict) else [("?", None)]:
            if role not in ("target", "reference") or not isinstance(listed, list):
                raise ValueError(
                    f'{path}: {name} must have lists of boxes under "target" and optionally "reference".'
                )
            for box in listed:
                x0, y0, x1, y1 = box if are_numbers(box, 4) else (0, 0, 0, 0)
                if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                    raise ValueError(
                        f"{path}: {name}, {role}: {box} is not a box x0 y0 x1 y1 in fractions, 0 to 1."
                    )
    return boxes


def _fill_boxes(boxes: Sequence[Sequence[float]], like: np.ndarray) -> np.ndarray:
    h, w = like.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    for x0, y0, x1, y1 in boxes:
        top, left = int(y0 * h), int(x0 * w)
        bottom, right = max(top + 1, round(y1 * h)), max(left + 1, round(x1 * w))
        mask[top:bottom, left:right] = 255
    return mask


@dataclass(frozen=True)
class BoxMask:
    """A detector's boxes (see `load_boxes`), looked up by the pair's name."""

    boxes: Boxes
    limits: MaskLimits = MaskLimits()
    name: str = field(default="mask", init=False)
    version: str = field(default="boxes/1", init=False)

    def settings(self) -> dict[str, Any]:
        return vars(self.limits) | {"boxes": len(self.boxes)}

    def __call__(self, sample: Sample) -> Sample:
        name = str(sample.info.get("pair", sample.id))
        if name not in self.boxes or not self.boxes[name].get("target"):
            raise RejectedError(f"there are no boxes for {name}")
        reference, target = sample.pair()
        mask = _fill_boxes(self.boxes[name]["target"], target)
        boxes = self.boxes[name].get("reference")
        reference_mask = _fill_boxes(boxes, reference) if boxes else None
        return _with_masks(sample, mask, reference_mask, self.limits)
