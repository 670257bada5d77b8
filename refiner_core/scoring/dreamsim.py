"""DreamSim (Fu et al. 2023, arXiv 2306.09344), all published variants, as one torch module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import check_pair, check_pictures
from .preparation import prepare_exact, prepare_smooth, region_views
from .vit import VisionTransformer, ViTConfig

Family = Literal["dino", "dinov2", "synclr", "clip", "open_clip"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def tower_config(
    family: Family, *, patch: int, grid: int, width: int, depth: int, projection: int | None
) -> ViTConfig:
    """A transformer of these sizes with the habits of its family."""
    is_clip = family in ("clip", "open_clip")
    mean, std = _OPENAI if is_clip else _IMAGENET
    return ViTConfig(
        patch, grid, width, depth, eps=1e-5 if is_clip else 1e-6, quick_gelu=family == "clip",
        pre_norm=is_clip, layer_scale=family == "dinov2", projection=projection, mean=mean, std=std,
    )  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One published DreamSim: the families of its towers and their patch, in the order in which
    features are joined; `patches` whether the mean of the patch tokens is joined to the class token.
    """

    name: str
    towers: tuple[tuple[Family, int], ...]
    patches: bool = False


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
        self.source: tuple[str, torch.dtype] | None = None  # the file it was read from, and how
        self.towers = nn.ModuleList(VisionTransformer(c) for c in configs)

    def embed(self, images: Tensor) -> Tensor:
        """What distances are taken between, `B D` (1792 for the ensemble, 1536 with patches).

        With patches: the class token and the mean patch token, each token brought to mean 0 and
        length 1 first; else all towers' features together brought to mean 0 and length 1.
        """
        if self.variant.patches:
            tokens = _centred_unit(self.towers[0](images))
            return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)
        features = [tower(images, class_only=True)[:, 0] for tower in self.towers]
        return _centred_unit(torch.cat(features, -1))

    def patch_tokens(self, images: Tensor) -> list[Tensor]:
        """Of every tower its patch tokens at mean 0 and length 1, `B D h w`."""
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


class DreamSimScorer:
    """`Scorer` by DreamSim: 0 = the same. OmniRefiner's paper reports 0.0918 for its repairs.

    Whole pictures are squeezed to the network's square, whatever their shape, as DreamSim was
    trained; only here may `a` and `b` have different sizes. With a mask, the smallest square
    around it with `context` is cut out instead and nothing is squeezed.

    Args:
        model: the network, on its device.
        exact: pictures go through 8 bits and Pillow's resampling, which gives the numbers of the
            dreamsim package and no gradient. False keeps everything in tensors: differentiable,
            and on photographs about 0.001 from exact.
        chunk: pictures a forward pass; bounds the memory, about 25 MB each at 224 px.
        context: side of the square over the longer side of the mask's box, at least 1.
    """

    def __init__(
        self, model: DreamSim, *, exact: bool = True, chunk: int = 16, context: float = 1.3
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 picture, got {chunk}.")
        self.model, self.exact, self.chunk, self.context = model, exact, chunk, context

    @property
    def name(self) -> str:
        return f"DreamSim {self.model.variant.name}"

    def _prepare(self, images: Tensor) -> Tensor:
        prepare = prepare_exact if self.exact else prepare_smooth
        return prepare(images, self.model.side).to(next(self.model.parameters()))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings `B D` of whole pictures B 3 H W, in chunks."""
        return torch.cat(
            [self.model.embed(self._prepare(part)) for part in images.split(self.chunk)]
        )

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`."""
        device = a.device
        if mask is None:
            check_pictures(a, b, any_size=True)
        else:
            a, b, mask = check_pair(a, b, mask)
            assert mask is not None
            a, b = region_views(a, b, mask, self.context, self.model.side, self.exact)
        # Rounding makes the same picture -1e-7.
        return cosine_distance(self.embed(a), self.embed(b)).clamp_min(0).to(device)

    def heatmap(self, a: Tensor, b: Tensor) -> Tensor:
        """See `MapScorer.heatmap`: distances of patch tokens, the mean over the towers."""
        count = check_pictures(a, b, any_size=True)
        spans = [slice(i, i + self.chunk) for i in range(0, count, self.chunk)]
        parts = [self._heat(*(x if len(x) == 1 else x[s] for x in (a, b))) for s in spans]
        return torch.cat(parts).to(a.device)

    def _heat(self, a: Tensor, b: Tensor) -> Tensor:
        of_a, of_b = (self.model.patch_tokens(self._prepare(x)) for x in (a, b))
        maps = [1 - (x * y).sum(1, keepdim=True) for x, y in zip(of_a, of_b, strict=True)]
        return torch.stack(maps).mean(0)
