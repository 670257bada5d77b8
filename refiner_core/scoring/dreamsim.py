"""DreamSim (Fu et al. 2023, arXiv 2306.09344), all published variants, as one torch module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vit import VisionTransformer, ViTConfig

Family = Literal["dino", "dinov2", "synclr", "clip", "open_clip"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def tower_config(
    family: Family, *, patch: int, grid: int, width: int, depth: int, projection: int | None
) -> ViTConfig:
    """The config of a transformer of these sizes in its family's style."""
    is_clip = family in ("clip", "open_clip")
    mean, std = _OPENAI if is_clip else _IMAGENET
    return ViTConfig(
        patch,
        grid,
        width,
        depth,
        eps=1e-5 if is_clip else 1e-6,
        quick_gelu=family == "clip",
        pre_norm=is_clip,
        layer_scale=family == "dinov2",
        projection=projection,
        mean=mean,
        std=std,
    )


@dataclass(frozen=True)
class Variant:
    """One published DreamSim."""

    name: str
    towers: tuple[tuple[Family, int], ...]  # family and patch, in the order of their features
    patches: bool = False  # the mean of the patch tokens is joined to the class token


VARIANTS = {
    v.name: v
    for v in (
        Variant("ensemble", (("dino", 16), ("clip", 16), ("open_clip", 16))),
        Variant("dino_vitb16", (("dino", 16),)),
        Variant("clip_vitb32", (("clip", 32),)),
        Variant("open_clip_vitb32", (("open_clip", 32),)),
        Variant("dinov2_vitb14", (("dinov2", 14),)),
        Variant("synclr_vitb16", (("synclr", 16),)),
        Variant("dino_vitb16_patch", (("dino", 16),), patches=True),
        Variant("dinov2_vitb14_patch", (("dinov2", 14),), patches=True),
    )
}


def _centred_unit(features: Tensor) -> Tensor:
    """Mean 0 and length 1 over the last dimension, in float32."""
    features = features.float()
    centred = features - features.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True)


class DreamSim(nn.Module):
    """The towers of a variant; inputs are pictures B 3 S S in [0, 1], S = `side` (224)."""

    def __init__(self, variant: Variant, configs: Sequence[ViTConfig]) -> None:
        super().__init__()
        sides = {c.side for c in configs}
        if len(configs) != len(variant.towers) or len(sides) != 1:
            raise ValueError(
                f"{variant.name} has {len(variant.towers)} towers that see pictures of one size, "
                f"got {len(configs)} for sizes {sorted(sides)}."
            )
        self.variant, self.side = variant, sides.pop()
        self.source: tuple[str, torch.dtype] | None = (
            None  # the file it was loaded from, and as what
        )
        self.towers = nn.ModuleList(VisionTransformer(c) for c in configs)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings whose cosine distance is DreamSim, `B D` (1792 for the ensemble, 1536 with patches).

        With patches: the class token and the mean patch token, each token normalised to mean 0 and
        length 1 first; otherwise the features of all towers, normalised together.
        """
        if self.variant.patches:
            tokens = _centred_unit(self.towers[0](images))
            return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)
        features = [tower(images, class_only=True)[:, 0] for tower in self.towers]
        return _centred_unit(torch.cat(features, -1))

    def patch_tokens(self, images: Tensor) -> list[Tensor]:
        """The patch tokens of every tower, normalised to mean 0 and length 1, `B D h w`."""
        out = []
        for tower in self.towers:
            tokens = _centred_unit(tower(images)[:, 1:]).transpose(1, 2)
            grid = math.isqrt(tokens.shape[-1])
            out.append(tokens.reshape(len(images), -1, grid, grid))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair, `B`: 1 - the cosine of their embeddings."""
        return cosine_distance(self.embed(a), self.embed(b))


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine over the last dimension."""
    return 1 - F.cosine_similarity(a, b, dim=-1)
