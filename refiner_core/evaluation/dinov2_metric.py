"""DINOv2 similarity: the cosine of class tokens, with a local model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..scoring.dinov2 import SIDE, class_tokens, load_network
from .digests import sha256
from .metric import Column, EvaluationCase, MetricUnavailable, Scores, cut

_SHORT = 256


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def preprocess_whole(pixels: Tensor) -> Image.Image:
    """The published preprocessing: shorter side to 256 px, then the central 224 px."""
    image = _image(pixels)
    scale = _SHORT / min(image.size)
    image = image.resize(
        (max(_SHORT, round(image.width * scale)), max(_SHORT, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )
    x, y = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((x, y, x + SIDE, y + SIDE))


def preprocess_region(pixels: Tensor) -> Image.Image:
    """A region's crop stretched to 224x224, so that nothing of it is lost."""
    return _image(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


class DinoV2Metric:
    """Cosine to the target, of whole picture and region, and of the region to the reference.

    Args:
        folder: a DINOv2 in transformers' layout (config.json, model.safetensors).

    Raises:
        MetricUnavailable: transformers or the folder is missing, or it holds another model.
    """

    columns = (
        Column("dinov2", "DINOv2", True, 4, 0.9457),
        Column("dinov2_crop", "DINOv2 crop", True, 4),
        Column("dinov2_reference", "DINOv2 to ref.", True, 4),
    )

    def __init__(self, folder: Path | None, device: str = "cpu") -> None:
        if folder is None or not (folder / "config.json").is_file():
            raise MetricUnavailable(
                f"DINOv2: there is no model{f' in {folder}' if folder else ''}. Download "
                "facebook/dinov2-base (config.json, model.safetensors) and name its folder with --dinov2."
            )
        try:
            self.model = load_network(folder).to(device)
        except ImportError as e:
            raise MetricUnavailable("DINOv2 needs transformers: pip install transformers.") from e
        except ValueError as e:
            raise MetricUnavailable(f"DINOv2: {e}") from e
        self.folder = folder

    @torch.inference_mode()
    def embed(self, images: list[Image.Image]) -> Tensor:
        """Unit vectors N D of 224x224 pictures: the class token after the final norm."""
        x = torch.from_numpy(np.stack([np.asarray(i, np.float32) / 255 for i in images]))
        return class_tokens(self.model, x.permute(0, 3, 1, 2)).cpu()

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        names, box = list(results), case.box
        crops = self.embed([preprocess_region(cut(results[n], box)) for n in names])
        scores: Scores = {n: {c.key: None for c in self.columns} for n in names}
        near = crops @ self.embed([preprocess_region(case.reference_crop)])[0]
        columns = {"dinov2_reference": near}
        if case.target is not None:
            pictures = self.embed([preprocess_whole(results[n]) for n in names])
            truth = self.embed(
                [preprocess_whole(case.target), preprocess_region(cut(case.target, box))]
            )
            columns |= {"dinov2": pictures @ truth[0], "dinov2_crop": crops @ truth[1]}
        for key, values in columns.items():
            for name, value in zip(names, values.tolist(), strict=True):
                scores[name][key] = value
        return scores

    def describe(self) -> dict[str, str]:
        weights = self.folder / "model.safetensors"
        digest = sha256(weights) if weights.is_file() else "no model.safetensors"
        return {"dinov2": f"{self.model.config.name_or_path or self.folder}, sha256 {digest}"}
