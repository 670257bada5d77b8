"""The metrics that compare pixels, structure, DreamSim and LPIPS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.geometry import Extent
from ..images.masks import bounds
from ..images.tensors import to_float
from ..scoring.dreamsim_files import load_dreamsim
from ..scoring.dreamsim_scorer import DreamSimScorer
from ..scoring.pixels import edge_error, masked_psnr, masked_ssim, outside_difference
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .digests import sha256
from .metric import MAX_PSNR, Column, EvaluationCase, Metric, MetricUnavailable, Scores, cut

_WINDOW = 8  # px: the window of no pixel metric reaches further


class PixelMetric:
    """Masked PSNR, SSIM and edge error to the target, and how exactly the rest was preserved."""

    columns = (
        Column("psnr", "PSNR dB", True, 2),
        Column("ssim", "SSIM", True, 4),
        Column("edges", "edge error", False, 5),
        Column("outside", "outside, /255", False, 0),
    )

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, result) for name, result in results.items()}

    def _one(self, case: EvaluationCase, result: Tensor) -> dict[str, float | None]:
        outside = 255 * float(outside_difference(result, case.draft, case.mask))
        tight = bounds(case.mask)
        if case.target is None or tight is None:
            return {"psnr": None, "ssim": None, "edges": None, "outside": round(outside)}
        # Only the region counts, so only its window of a large picture is compared.
        size = Extent(case.mask.shape[-1], case.mask.shape[-2])
        near = tight.grown(_WINDOW, _WINDOW, size)
        a, b, mask = (cut(x, near) for x in (result, case.target, case.mask))
        return {
            "psnr": min(MAX_PSNR, float(masked_psnr(a, b, mask))),
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


class ScorerMetric:
    """The distance of a `Scorer`.

    The columns are the distance of the whole picture to the target, that of the region with its
    surroundings, and optionally that of the region to the reference's detail, which needs no
    target and is only for scorers that do not compare pixels in place.
    """

    def __init__(self, scorer: Scorer, columns: tuple[Column, ...], source: str) -> None:
        self.scorer, self.columns, self.source = scorer, columns, source

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, to_float(result)) for name, result in results.items()}

    def _one(self, case: EvaluationCase, result: Tensor) -> dict[str, float | None]:
        scores: dict[str, float | None] = {c.key: None for c in self.columns}
        crop = cut(result, case.box)
        if case.target is not None:
            target = to_float(case.target)
            scores[self.columns[0].key] = self._distance(result, target)
            scores[self.columns[1].key] = self._distance(crop, cut(target, case.box))
        if len(self.columns) == 3:
            reference = _stretch(to_float(case.reference_crop), crop)
            scores[self.columns[2].key] = self._distance(crop, reference)
        return scores

    def _distance(self, a: Tensor, b: Tensor) -> float:
        return float(self.scorer.distance(a, b))

    def describe(self) -> dict[str, str]:
        return {self.columns[0].key: f"{self.scorer.name}; {self.source}"}


def _stretch(image: Tensor, like: Tensor) -> Tensor:
    """A float picture stretched to another's size: embeddings are made of squares anyway."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def structural() -> Metric:
    """The metric that needs no weights."""
    return ScorerMetric(StructuralScorer(), STRUCTURE, "no weights")


def dreamsim(path: Path | None, device: str = "cpu") -> Metric:
    """DreamSim from a converted file.

    Raises:
        MetricUnavailable: the file is missing or not a converted DreamSim.
    """
    if path is None:
        raise MetricUnavailable(
            "DreamSim: name a weight file with --dreamsim. Convert an official release with "
            "`omnirefiner convert dreamsim RELEASE.zip dreamsim_ensemble.safetensors`."
        )
    try:
        model = load_dreamsim(path, device)
    except ValueError as e:
        raise MetricUnavailable(f"DreamSim: {e}") from e
    return ScorerMetric(DreamSimScorer(model), DREAMSIM, f"sha256 {sha256(path)}")


class LpipsMetric:
    """LPIPS (AlexNet) to the target, whole and region.

    Raises:
        MetricUnavailable: the package, torchvision or AlexNet's weights are missing.
    """

    columns = (Column("lpips", "LPIPS", False, 4), Column("lpips_crop", "LPIPS crop", False, 4))

    def __init__(self) -> None:
        try:
            import lpips  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as e:  # RuntimeError: an incompatible torchvision
            raise MetricUnavailable(f"LPIPS: pip install lpips torchvision ({e}).") from e
        weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
        if not weights.is_file():
            raise MetricUnavailable(
                f"LPIPS: the weights of its AlexNet are missing. Put torchvision's {weights.name} into "
                f"{weights.parent}."
            )
        self.model = lpips.LPIPS(net="alex", verbose=False).eval()

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        return {name: self._one(case, result) for name, result in results.items()}

    @torch.inference_mode()
    def _one(self, case: EvaluationCase, result: Tensor) -> dict[str, float | None]:
        if case.target is None:
            return {"lpips": None, "lpips_crop": None}

        def distance(a: Tensor, b: Tensor) -> float:
            a, b = (_enlarge(to_float(x)) for x in (a, b))
            return float(self.model(a * 2 - 1, b * 2 - 1))

        return {
            "lpips": distance(result, case.target),
            "lpips_crop": distance(cut(result, case.box), cut(case.target, case.box)),
        }

    def describe(self) -> dict[str, str]:
        return {"lpips": "lpips, AlexNet"}


def _enlarge(image: Tensor) -> Tensor:
    """The picture, enlarged if a side is under 64 px: the network halves its input five times."""
    if min(image.shape[-2:]) >= 64:
        return image
    return F.interpolate(image, (256, 256), mode="bilinear", antialias=True)
