"""The patch-wise reward of OmniRefiner (arXiv 2511.19990): whole picture, region and pixels.

The paper rewards a sample by DreamSim to the target, "for overall consistency", and by the masked
squared error, "for detail learning". Squared error alone rewards blur, and a whole picture at 224 px
hides thin lettering; so DreamSim also sees the region alone, gradients are compared, and a term for
everything outside the region rewards keeping it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..images.masks import bounds
from .pixels import edge_error, masked_mse
from .preparation import square_view
from .scorer import Scorer, check_pair, check_pictures

PATCH_SIDE = 224  # px: what DreamSim sees

_CONTEXT = 1.3  # side of the square crop over the longer side of the mask's box
# Errors under these gain nothing, so that a draft that is nearly right still leaves some tolerance.
_LEAST_PIXEL_ERROR = 1e-3
_LEAST_EDGE_ERROR = 1e-4
# 30 dB: an autoencoder's round trip outside the region costs little, a changed background much.
_BACKGROUND_ERROR = 1e-3


@dataclass(frozen=True)
class PatchScores:
    """Scores of B samples, float32 `B` each, 1 = perfect, higher is better.

    `whole` and `patch` are 1 - the scorer's distance, of the whole picture and of the region with
    its surroundings. `pixels` is exp(-e / e_draft) of the region's mean squared error, `edges` the
    same of its gradients: 1/e = 0.37 is as bad as the draft. `background` is exp(-e / 0.001) of
    the mean squared error outside the region; 1 if there is no outside.
    """

    whole: Tensor
    patch: Tensor
    pixels: Tensor
    edges: Tensor
    background: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Every term by name, for advantages that are normalised term by term."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def patch_scores(
    scorer: Scorer,
    samples: Tensor,
    target: Tensor,
    mask: Tensor,
    draft: Tensor,
) -> PatchScores:
    """Score samples against the target; differentiable if the scorer is.

    Args:
        scorer: scores the whole pictures, and the region's square crop at 224 px. For gradients
            DreamSim has to be `DreamSimScorer(model, exact=False)`.
        samples: B 3 H W in [0, 1].
        target: B or 1 3 H W, the picture as it should be.
        mask: B or 1 1 H W, over 0 in the region. For an item whose mask is empty (a draft that
            needs no repair) the region is the whole picture.
        draft: B or 1 3 H W, the picture to be repaired, whose errors scale `pixels` and `edges`.

    Raises:
        ValueError: shapes do not match, or a value is not finite.
    """
    check_pictures(draft, target)
    region = _region(mask)
    samples, target, region = _pairs(samples, target, region)
    draft = draft.expand(len(samples), -1, -1, -1)
    patches, true_patches = _crops(samples, target, region)
    tau_pixels = masked_mse(draft, target, region).clamp_min(_LEAST_PIXEL_ERROR)
    tau_edges = edge_error(draft, target, region).clamp_min(_LEAST_EDGE_ERROR)
    return PatchScores(
        whole=1 - scorer.distance(samples, target),
        patch=1 - scorer.distance(patches, true_patches),
        pixels=(-masked_mse(samples, target, region) / tau_pixels).exp().float(),
        edges=(-edge_error(samples, target, region) / tau_edges).exp().float(),
        background=(-_outside_error(samples, target, region) / _BACKGROUND_ERROR).exp(),
    )


def _region(mask: Tensor) -> Tensor:
    """0 or 1; 1 everywhere for an item whose mask is empty."""
    on = (mask > 0).float()
    empty = on.flatten(1).amax(1) == 0
    return torch.where(empty.reshape(-1, 1, 1, 1), torch.ones_like(on), on)


def _pairs(samples: Tensor, target: Tensor, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    samples, target, fitted = check_pair(samples, target, region)
    assert fitted is not None
    return samples, target, fitted


def _crops(a: Tensor, b: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """The square around each item's region in both pictures, B 3 224 224."""
    boxes = [bounds(r) for r in region.split(1)]
    both = [
        square_view(torch.cat([x, y]), box, _CONTEXT, PATCH_SIDE)
        for x, y, box in zip(a.split(1), b.split(1), boxes, strict=True)
        if box is not None
    ]
    crops = torch.stack(both)
    return crops[:, 0], crops[:, 1]


def _outside_error(a: Tensor, b: Tensor, region: Tensor) -> Tensor:
    """Mean squared error outside the region, 0 if nothing is outside; `B`."""
    outside = 1 - region
    error = ((a - b).float().square() * outside).flatten(1).sum(1)
    return error / (3 * outside.flatten(1).sum(1)).clamp_min(1)
