"""DreamSim as a scorer of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from .dreamsim import DreamSim, cosine_distance
from .preparation import prepare_exact, prepare_smooth, region_views
from .scorer import check_pair, check_pictures

_CONTEXT = 1.3  # side of the square crop over the longer side of the mask's box


class DreamSimScorer:
    """`Scorer` by DreamSim: 0 = the same. OmniRefiner's paper reports 0.0918 for its repairs.

    Whole pictures are resized to the network's square, whatever their shape, as DreamSim was
    trained; only here may `a` and `b` have different sizes. With a mask, the smallest square
    around it is cropped with some context instead and nothing is stretched.

    Args:
        model: the network, on its device.
        exact: pictures go through 8 bits and Pillow's resampling, which gives the figures of the
            dreamsim package and no gradient. False keeps everything in tensors: differentiable,
            and on photographs within about 0.001 of exact.
        chunk: pictures per forward pass; bounds the memory, about 25 MB each at 224 px.
    """

    def __init__(self, model: DreamSim, *, exact: bool = True, chunk: int = 16) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 picture, got {chunk}.")
        self.model, self.exact, self.chunk = model, exact, chunk

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
            a, b = region_views(a, b, mask, _CONTEXT, self.model.side, self.exact)
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
