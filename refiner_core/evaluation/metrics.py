"""What is measured of a repair: the metrics' shape, and those that need no files of their own.

A metric sees one case with the results of all systems, so that what they share (the target's
embedding, say) is computed once. Every part is optional: one that is not there raises
`Unavailable` when it is made, and its columns stay empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..data.triplets import Triplet
from ..images.geometry import Box
from ..images.masks import bounds
from ..images.tensors import to_float
from ..scoring.dreamsim import DreamSimScorer
from ..scoring.dreamsim_files import load_dreamsim
from ..scoring.interface import Scorer
from ..scoring.pixels import edge_error, masked_psnr, masked_ssim, outside_difference
from ..scoring.structural import StructuralScorer
from .cases import mask_tensor, picture
from .files import sha256

_CONTEXT = 1.3  # of the region's box: what a crop shows of the surroundings
_WINDOW = 8  # px: no pixel metric's window reaches further than that

CEILING = 60.0  # dB; an untouched picture would be infinite and spoil every mean

# Per system, per column; None where there is no value.
Scores = dict[str, dict[str, float | None]]


class Unavailable(Exception):  # noqa: N818 (a state of the installation, not an error)
    """A metric that cannot be computed here; the message says what is missing and where from."""


@dataclass(frozen=True)
class Column:
    """A column of the tables: `key` in files, `title` for people, whether a high value is good,
    `digits` after the point, and the figure the paper reports, if it does.
    """

    key: str
    title: str
    higher: bool
    digits: int
    paper: float | None = None


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
    return Box(tight.x0 - x, tight.y0 - y, tight.x1 + x, tight.y1 + y).intersection(
        Box(0, 0, mask.shape[-1], mask.shape[-2])
    )


def cut(image: Tensor, box: Box) -> Tensor:
    """The box of a picture B C H W."""
    return image[..., box.y0 : box.y1, box.x0 : box.x1]


@dataclass(frozen=True)
class Case:
    """A case as metrics see it: uint8 pictures 1 3 H W, float masks 1 1 H W."""

    id: str
    draft: Tensor
    reference: Tensor
    target: Tensor | None
    mask: Tensor
    reference_mask: Tensor | None
    prompt: str = ""

    @classmethod
    def of(cls, triplet: Triplet) -> Case:
        """From the stored triplet."""
        return cls(
            triplet.id, picture(triplet.draft), picture(triplet.reference),
            None if triplet.target is None else picture(triplet.target),
            mask_tensor(triplet.mask),
            None if triplet.reference_mask is None else mask_tensor(triplet.reference_mask),
            triplet.prompt,
        )  # fmt: skip

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
    """One or more columns over all results of a case."""

    columns: tuple[Column, ...]

    def measure(self, case: Case, results: Mapping[str, Tensor]) -> Scores:
        """The columns of every system's result, each uint8 1 3 H W."""
        ...

    def describe(self) -> dict[str, str]:
        """What was used: names, versions, hashes of files."""
        ...


class Pixels:
    """Masked PSNR, SSIM and edge error to the target, and how exactly the outside was kept."""

    columns = (
        Column("psnr", "PSNR dB", True, 2),
        Column("ssim", "SSIM", True, 4),
        Column("edges", "edge error", False, 5),
        Column("outside", "outside, /255", False, 0),
    )

    def measure(self, case: Case, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, result) for name, result in results.items()}

    def _one(self, case: Case, result: Tensor) -> dict[str, float | None]:
        outside = 255 * float(outside_difference(result, case.draft, case.mask))
        tight = bounds(case.mask)
        if case.target is None or tight is None:
            return {"psnr": None, "ssim": None, "edges": None, "outside": round(outside)}
        # Only the region counts: of a large picture, only its window is looked at.
        near = Box(
            tight.x0 - _WINDOW, tight.y0 - _WINDOW, tight.x1 + _WINDOW, tight.y1 + _WINDOW
        ).intersection(Box(0, 0, case.mask.shape[-1], case.mask.shape[-2]))
        a, b, mask = (cut(x, near) for x in (result, case.target, case.mask))
        return {
            "psnr": min(CEILING, float(masked_psnr(a, b, mask))),
            "ssim": float(masked_ssim(a, b, mask)),
            "edges": float(edge_error(a, b, mask)),
            "outside": round(outside),
        }

    def describe(self) -> dict[str, str]:
        return {"pixels": "masked PSNR, SSIM (11 px Gaussian), squared Sobel difference"}


STRUCTURE = (
    Column("structure", "MS-SSIM+edges", False, 4),
    Column("structure_crop", "MS-SSIM+edges crop", False, 4),
)
DREAMSIM = (
    Column("dreamsim", "DreamSim", False, 4, 0.0918),
    Column("dreamsim_crop", "DreamSim crop", False, 4),
    Column("dreamsim_reference", "DreamSim to ref.", False, 4),
)


class Scored:
    """A `Scorer`'s distance: whole pictures to the target, the region with its surroundings to the
    target, and, as a third column, the region to the reference's detail, which needs no target.

    The third is only for scorers that do not compare pixels in place.
    """

    def __init__(self, scorer: Scorer, columns: tuple[Column, ...], source: str) -> None:
        self.scorer, self.columns, self.source = scorer, columns, source

    def measure(self, case: Case, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, to_float(result)) for name, result in results.items()}

    def _one(self, case: Case, result: Tensor) -> dict[str, float | None]:
        found: dict[str, float | None] = {c.key: None for c in self.columns}
        crop = cut(result, case.box)
        if case.target is not None:
            target = to_float(case.target)
            found[self.columns[0].key] = self._distance(result, target)
            found[self.columns[1].key] = self._distance(crop, cut(target, case.box))
        if len(self.columns) == 3:
            reference = fit(to_float(case.reference_crop), crop)
            found[self.columns[2].key] = self._distance(crop, reference)
        return found

    def _distance(self, a: Tensor, b: Tensor) -> float:
        return float(self.scorer.distance(a, b))

    def describe(self) -> dict[str, str]:
        return {self.columns[0].key: f"{self.scorer.name}; {self.source}"}


def fit(image: Tensor, like: Tensor) -> Tensor:
    """A float picture stretched to another's size: embeddings take squares anyway."""
    size = (like.shape[-2], like.shape[-1])
    return torch.nn.functional.interpolate(
        image, size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def structural() -> Metric:
    """The weight-free scorer."""
    return Scored(StructuralScorer(), STRUCTURE, "no weights")


def dreamsim(path: Path | None, device: str = "cpu") -> Metric:
    """DreamSim from a converted file.

    Raises:
        Unavailable: there is no such file, or it is none of ours.
    """
    if path is None:
        raise Unavailable(
            "DreamSim: name a weight file with --dreamsim. Make it of an official release with "
            "`omnirefiner convert dreamsim RELEASE.zip dreamsim_ensemble.safetensors`."
        )
    try:
        model = load_dreamsim(path, device)
    except ValueError as e:
        raise Unavailable(f"DreamSim: {e}") from e
    return Scored(DreamSimScorer(model), DREAMSIM, f"sha256 {sha256(path)}")


class Lpips:
    """LPIPS (AlexNet) to the target, whole and region.

    Raises:
        Unavailable: the package, torchvision or AlexNet's weights are missing.
    """

    columns = (Column("lpips", "LPIPS", False, 4), Column("lpips_crop", "LPIPS crop", False, 4))

    def __init__(self) -> None:
        try:
            import lpips  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as e:  # the latter: a torchvision that does not fit
            raise Unavailable(f"LPIPS: pip install lpips torchvision ({e}).") from e
        weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
        if not weights.is_file():
            raise Unavailable(
                f"LPIPS: its AlexNet is not on this machine. Put torchvision's {weights.name} into "
                f"{weights.parent}."
            )
        self.model = lpips.LPIPS(net="alex", verbose=False).eval()

    def measure(self, case: Case, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, result) for name, result in results.items()}

    @torch.inference_mode()
    def _one(self, case: Case, result: Tensor) -> dict[str, float | None]:
        if case.target is None:
            return {"lpips": None, "lpips_crop": None}

        def distance(a: Tensor, b: Tensor) -> float:
            # The network halves five times; its smallest picture is 64 px.
            a, b = (
                torch.nn.functional.interpolate(x, (256, 256), mode="bilinear", antialias=True)
                if min(x.shape[-2:]) < 64 else x
                for x in (to_float(a), to_float(b))
            )  # fmt: skip
            return float(self.model(a * 2 - 1, b * 2 - 1))

        return {
            "lpips": distance(result, case.target),
            "lpips_crop": distance(cut(result, case.box), cut(case.target, case.box)),
        }

    def describe(self) -> dict[str, str]:
        return {"lpips": "lpips, AlexNet"}
