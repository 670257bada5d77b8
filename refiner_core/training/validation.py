"""How well the refiner repairs held-out items: mean metrics, and a picture of the first few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.kontext import Conditioning
from ..recipes.recipe import Recipe
from ..sampling import draw_noise, sample
from ..scoring.pixels import edge_error, masked_psnr, masked_ssim
from .dataset import Dataset, Pixels, collate
from .policy import Policy

METRICS = ("psnr", "ssim", "edge_error")
_HEIGHT = 160  # px of a row of the picture
_ROWS = 8


def region_metrics(image: Tensor, pixels: Pixels) -> dict[str, float]:
    """Masked PSNR (dB), SSIM and edge error of one repair, 1 3 H W in [0, 1]."""
    target, mask = pixels.target.to(image), pixels.mask.to(image)
    mask = mask if bool(mask.any()) else torch.ones_like(mask)
    return {
        "psnr": min(60.0, float(masked_psnr(image, target, mask))),
        "ssim": float(masked_ssim(image, target, mask)),
        "edge_error": float(edge_error(image, target, mask)),
    }


def _row(pixels: Pixels, image: Tensor) -> np.ndarray:
    """Reference, draft, repair and target side by side, uint8 H W 3."""
    tiles = []
    for x in (pixels.reference, pixels.draft, image, pixels.target):
        h, w = x.shape[-2:]
        size = (_HEIGHT, max(1, round(w * _HEIGHT / h)))
        tiles.append(F.interpolate(x.float().cpu(), size, mode="bilinear", antialias=True))
    row = torch.cat(tiles, -1)[0].clamp(0, 1)
    return (row * 255).round().byte().permute(1, 2, 0).numpy()


def _stack_rows(rows: list[np.ndarray]) -> np.ndarray:
    width = max(r.shape[1] for r in rows)
    return np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])


@torch.no_grad()
def validate(
    policy: Policy,
    dataset: Dataset,
    decode: Callable[[Tensor], Tensor],
    text: Callable[[str], tuple[Tensor, Tensor]],
    schedule: Callable[[tuple[int, int]], Tensor],
    recipe: Recipe,
) -> tuple[dict[str, float], np.ndarray]:
    """Repair every item, its index being the seed; mean metrics and a picture of the first eight.

    Args:
        decode: latents to images.
        text: embeddings of a prompt.
        schedule: noise levels for a latent of (height, width).
    """
    means: dict[str, float] = dict.fromkeys(METRICS, 0.0)
    rows: list[np.ndarray] = []
    for i in range(len(dataset)):
        item = dataset[i]
        assert item.pixels is not None, "held-out items are prepared with pixels"
        batch = collate([item], [text(item.prompt)], recipe, recipe.guidance, policy.device)
        latent = repair(policy, batch.conditioning, batch.target.shape, schedule(item.shape[0]), i)
        image = decode(latent).float().clamp(0, 1)
        for key, value in region_metrics(image.cpu(), item.pixels).items():
            means[key] += value / len(dataset)
        if len(rows) < _ROWS:
            rows.append(_row(item.pixels, image))
    return means, _stack_rows(rows)


def repair(
    policy: Policy, conditioning: Conditioning, shape: torch.Size, sigmas: Tensor, seed: int
) -> Tensor:
    """The latent of one deterministic sample."""
    x = draw_noise(tuple(shape), seed).to(policy.device)
    return sample(policy, x, sigmas, {"conditioning": conditioning})
