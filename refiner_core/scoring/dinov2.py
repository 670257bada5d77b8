"""DINOv2 as a scorer: one minus the cosine of class tokens, from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .scorer import check_pair, only_inside

SIDE = 224  # px on a side of the network's input
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2Scorer:
    """`Scorer` by a DINOv2 of transformers: 0 = the same, about 0.25 another view of a thing."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self._name = model, name

    @property
    def name(self) -> str:
        return self._name

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors `B D` of pictures B 3 H W in [0, 1], resized to the network's square input."""
        x = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        return class_tokens(self.model, x)

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`; outside the mask both pictures are the mean of the two."""
        a, b, mask = check_pair(a, b, mask)
        if mask is not None:
            a, b = only_inside(a, b, mask)
        return 1 - (self.embed(a) * self.embed(b)).sum(1).to(a.device)


def class_tokens(model: Any, pictures: Tensor) -> Tensor:
    """Unit vectors `B D` of pictures B 3 224 224 in [0, 1]: the class token after the final norm."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (_MEAN, _STD))
    out = model(pixel_values=((pictures - mean) / std).to(model.device))
    return F.normalize(out.last_hidden_state[:, 0].float(), dim=1)


def load_dinov2(folder: Path) -> DinoV2Scorer:
    """A DINOv2 in transformers' layout as a scorer. Raises as `load_network`."""
    return DinoV2Scorer(load_network(folder), f"DINOv2 {folder.name}")


def load_network(folder: Path) -> Any:
    """A DINOv2 in transformers' layout (config.json, model.safetensors), without gradients.

    Raises:
        ValueError: the folder holds no such model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} does not hold a DINOv2: download facebook/dinov2-base (config.json and "
            "model.safetensors) into it."
        )
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as e:
        raise ValueError(f"The DINOv2 in {folder} cannot be loaded: {e}") from e
    if model.config.model_type != "dinov2":
        raise ValueError(f"{folder} holds a {model.config.model_type}, not a dinov2.")
    return model.eval().requires_grad_(False)
