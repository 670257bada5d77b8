"""Pictures of known order, with which scorers are audited.

Every order is a list of pictures of one case from best to worst. The order is known because the
pictures are made so: from the target, with known faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.degrade import DEGRADATIONS, degrade_box
from ..data.triplets import Triplet, mask_tensor, picture_tensor
from ..images.geometry import Box
from ..images.image_io import load_picture
from ..images.tensors import to_dtype, to_float
from ..scoring.seam import RING
from .cases import open_cases
from .metric import cut, region_box

IDENTICAL = "identical"  # the kind whose pictures are equal
_STRENGTHS = (0.1, 0.5, 1.0)
_TONE = 18.0  # of 255, of a region whose tone is off
_CONTEXT = 2.0  # of the region's box: what scorers see
_WRONG_LETTERS = ("swap", "scramble", "partial")  # degradations that change a word


@dataclass(frozen=True)
class AuditOrder:
    """Pictures from best to worst.

    `pictures` are uint8 1 3 H W, `truth` is what they should be and `mask` 1 1 H W the region, all
    cut to `box` of the case's pictures.
    """

    case: str
    kind: str
    names: tuple[str, ...]
    pictures: tuple[Tensor, ...]
    truth: Tensor
    mask: Tensor
    box: Box


@dataclass(frozen=True)
class _Case:
    """A triplet with what its orders are made of."""

    triplet: Triplet
    number: int
    repair: Tensor | None  # uint8 1 3 H W

    @property
    def target(self) -> np.ndarray:
        """uint8 H W 3."""
        assert self.triplet.target is not None, "cases without a target are left out before"
        return self.triplet.target

    @property
    def rng(self) -> np.random.Generator:
        """The same for every order of the case."""
        return np.random.default_rng([self.number, 71])

    def inside(self, changed: np.ndarray) -> Tensor:
        """The target with the region of another picture H W 3 of any type, uint8 1 3 H W."""
        region = self.triplet.mask[..., None] > 0
        pixels = np.where(region, np.clip(np.rint(changed), 0, 255), self.target)
        return picture_tensor(pixels.astype(np.uint8))

    def order(self, kind: str, pictures: dict[str, Tensor]) -> AuditOrder:
        """The pictures, best first, by name, cut to the region with its surroundings."""
        mask = mask_tensor(self.triplet.mask)
        box = region_box(mask, _CONTEXT)
        tensors = tuple(cut(p, box) for p in pictures.values())
        truth = cut(picture_tensor(self.target), box)
        return AuditOrder(
            self.triplet.id, kind, tuple(pictures), tensors, truth, cut(mask, box), box
        )


def audit_orders(
    triplet: Triplet, number: int, results: Path | None = None
) -> Iterator[AuditOrder]:
    """The orders of a case that has a target.

    Args:
        number: of the case; what is drawn at random follows from it.
        results: a folder of repairs, `ID.png` or `ID/refined.png`. Without it a mixture of seven
            tenths target and three tenths draft stands in for the repair.

    Raises:
        ValueError: a repair has another size than the case.
    """
    case = _Case(triplet, number, None if results is None else _read_repair(results, triplet))
    for make in _KINDS:
        order = make(case)
        if order is not None:
            yield order


def read_orders(
    data: Path, split: str | None, index: int, results: Path | None
) -> list[AuditOrder]:
    """The orders of a case.

    Raises:
        ValueError: the case cannot be read, or has no target or an empty mask.
    """
    triplet = open_cases(data, split).load(index)
    if triplet.target is None:
        raise ValueError("it has no target.")
    if not triplet.mask.any():
        raise ValueError("its mask is empty.")
    return list(audit_orders(triplet, index, results))


def _read_repair(folder: Path, triplet: Triplet) -> Tensor | None:
    paths = (folder / f"{triplet.id}.png", folder / triplet.id / "refined.png")
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return None
    pixels = to_dtype(to_float(load_picture(path, "repair").pixels), torch.uint8)
    height, width = triplet.draft.shape[:2]
    if pixels.shape[-2:] != (height, width):
        raise ValueError(
            f"{path} is {pixels.shape[-1]}x{pixels.shape[-2]} but the case is {width}x{height}: a "
            "repair must have the same size."
        )
    return pixels


def _is_right(case: _Case) -> bool:
    """Whether the draft needs no repair."""
    inside = case.triplet.mask > 0
    return bool((case.triplet.draft[inside] == case.target[inside]).all())


def _repair_order(case: _Case) -> AuditOrder | None:
    if _is_right(case):
        return None
    draft = case.triplet.draft.astype(np.float32)
    mixed = case.inside(0.7 * case.target + 0.3 * draft)
    repair = mixed if case.repair is None else case.repair
    pictures = {"truth": picture_tensor(case.target), "repair": repair}
    return case.order("truth over repair over draft", {**pictures, "draft": case.inside(draft)})


def _degradation_order(case: _Case) -> AuditOrder | None:
    name = list(DEGRADATIONS)[case.number % len(DEGRADATIONS)]
    pictures = {
        f"{name} {strength:g}": case.inside(
            degrade_box(case.target, case.triplet.mask, name, case.rng, strength)
        )
        for strength in _STRENGTHS
    }
    return case.order("weaker over stronger degradation", pictures)


def _letters_order(case: _Case) -> AuditOrder | None:
    """The right word, a little soft and dark, over another word that is sharp."""
    info = case.triplet.info
    note = info.get("degradation", "")
    fault = note.get("name", "") if isinstance(note, dict) else note
    if info.get("kind") != "word" or fault not in _WRONG_LETTERS or _is_right(case):
        return None
    soft = degrade_box(case.target, case.triplet.mask, "blur", case.rng, 0.0)
    right = case.inside(0.92 * soft.astype(np.float32))
    wrong = case.inside(case.triplet.draft)
    return case.order("right over wrong letters", {"right, soft": right, "wrong, sharp": wrong})


def _seam_order(case: _Case) -> AuditOrder | None:
    """The same error inside the region, once fading towards its edge and once with a step."""
    mask = mask_tensor((case.triplet.mask > 0).astype(np.uint8) * 255)
    size = 4 * RING + 1
    soft = 1 - F.max_pool2d(1 - mask, size, 1, size // 2)
    for _ in range(2):
        soft = F.avg_pool2d(soft, size, 1, size // 2, count_include_pad=False)
    fading = (soft * mask)[0, 0].numpy()
    if not fading.any():
        return None  # a region as thin as the ring
    region = case.triplet.mask > 0
    fading *= 1 / np.sqrt(np.square(fading[region]).mean())  # as large an error as the step
    sign = -1.0 if case.target[region].mean() > 127 else 1.0
    step = sign * _TONE * np.ones_like(fading)
    pictures = {
        name: case.inside(case.target + tone[..., None])
        for name, tone in (("fading tone", sign * _TONE * fading), ("step of tone", step))
    }
    return case.order("clean over seamed", pictures)


def _surroundings_order(case: _Case) -> AuditOrder | None:
    """The right region with its surroundings kept, over the same with blurred surroundings."""
    region = case.triplet.mask > 0
    if region.all():
        return None
    everything = np.full_like(case.triplet.mask, 255)
    blurred = degrade_box(case.target, everything, "blur", case.rng, 0.0)
    touched = np.where(region[..., None], case.target, blurred)
    kept = picture_tensor(case.target)
    return case.order(
        "kept over changed surroundings", {"kept": kept, "changed": picture_tensor(touched)}
    )


def _identical(case: _Case) -> AuditOrder | None:
    draft = case.inside(case.triplet.draft)
    return case.order(IDENTICAL, {"once": draft, "twice": draft.clone()})


_KINDS: tuple[Callable[[_Case], AuditOrder | None], ...] = (
    _repair_order,
    _degradation_order,
    _letters_order,
    _seam_order,
    _surroundings_order,
    _identical,
)
