"""What the refiner makes of cases it is not trained on: figures and a picture of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.core_engine import Codec
from ..models.kontext import Conditioning
from ..recipes.recipe import Recipe
from ..sampling import draw_noise, sample
from ..scoring.pixels import edge_error, masked_psnr, masked_ssim
from .dataset import View, Views, stack
from .policy import Policy

_HEIGHT = 160
_ROWS = 8
FIGURES = ("psnr", "ssim", "edge_error")


def figures(image: Tensor, view: View) -> dict[str, float]:
    """Masked PSNR (dB), SSIM and edge error of one sample 1 3 H W in [0, 1]."""
    assert view.pixels is not None
    a, b, mask = image, view.pixels.target.to(image), view.pixels.mask.to(image)
    mask = mask if bool(mask.any()) else torch.ones_like(mask)
    return {
        "psnr": min(60.0, float(masked_psnr(a, b, mask))),
        "ssim": float(masked_ssim(a, b, mask)),
        "edge_error": float(edge_error(a, b, mask)),
    }


def _strip(view: View, image: Tensor) -> np.ndarray:
    """Reference, draft, sample, target in one row, uint8 H W 3."""
    assert view.pixels is not None
    tiles = []
    for x in (view.pixels.reference, view.pixels.draft, image, view.pixels.target):
        h, w = x.shape[-2:]
        size = (_HEIGHT, max(1, round(w * _HEIGHT / h)))
        tiles.append(F.interpolate(x.float().cpu(), size, mode="bilinear", antialias=True))
    row = torch.cat(tiles, -1)[0].clamp(0, 1)
    return (row * 255).round().byte().permute(1, 2, 0).numpy()


def _stacked(strips: list[np.ndarray]) -> np.ndarray:
    width = max(s.shape[1] for s in strips)
    padded = [np.pad(s, ((0, 4), (0, width - s.shape[1]), (0, 0))) for s in strips]
    return np.concatenate(padded)


@torch.no_grad()
def look(
    policy: Policy,
    views: Views,
    codec: Codec,
    text: Callable[[str], tuple[Tensor, Tensor]],
    schedule: Callable[[tuple[int, int]], Tensor],
    recipe: Recipe,
) -> tuple[dict[str, float], np.ndarray]:
    """Repair every view with a seed of its own: mean figures, and the first eight as a picture."""
    sums: dict[str, float] = dict.fromkeys(FIGURES, 0.0)
    strips: list[np.ndarray] = []
    for i in range(len(views)):
        view = views[i]
        batch = stack([view], [text(view.prompt)], recipe, recipe.guidance, policy.device)
        image = repair(policy, batch.conditioning, batch.target.shape, schedule(view.shape[0]), i)
        image = codec.decode(image).float().clamp(0, 1)
        for key, value in figures(image.cpu(), view).items():
            sums[key] += value / len(views)
        if len(strips) < _ROWS:
            strips.append(_strip(view, image))
    return sums, _stacked(strips)


def repair(
    policy: Policy, conditioning: Conditioning, shape: torch.Size, sigmas: Tensor, seed: int
) -> Tensor:
    """One deterministic sample, the latent."""
    x = draw_noise(tuple(shape), seed).to(policy.device)
    return sample(policy, x, sigmas, {"conditioning": conditioning})
