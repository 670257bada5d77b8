"""How well the refiner repairs held-out items: mean metrics, and a picture of the first few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.kontext import Conditioning
from ..sampling import draw_noise, sample
from ..scoring.pixels import edge_error, masked_psnr, masked_ssim
from .dataset import Dataset, Pixels, collate
from .objective import Learner
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
def validate(learner: Learner, held_out: Dataset) -> tuple[dict[str, float], np.ndarray]:
    """Repair every held-out item, its index being the seed; mean metrics and a picture of the first
    eight.
    """
    policy, recipe = learner.policy, learner.recipe
    means: dict[str, float] = dict.fromkeys(METRICS, 0.0)
    rows: list[np.ndarray] = []
    for i in range(len(held_out)):
        item = held_out[i]
        assert item.pixels is not None, "held-out items are prepared with pixels"
        texts = [learner.text(item.prompt)]
        batch = collate([item], texts, recipe, recipe.guidance, policy.device)
        sigmas = learner.schedule(item.shape[0])
        latent = repair(policy, batch.conditioning, batch.target.shape, sigmas, i)
        image = learner.decode(latent).float().clamp(0, 1)
        for key, value in region_metrics(image.cpu(), item.pixels).items():
            means[key] += value / len(held_out)
        if len(rows) < _ROWS:
            rows.append(_row(item.pixels, image))
    return means, _stack_rows(rows)


def repair(
    policy: Policy, conditioning: Conditioning, shape: torch.Size, sigmas: Tensor, seed: int
) -> Tensor:
    """The latent of one deterministic sample."""
    x = draw_noise(tuple(shape), seed).to(policy.device)
    return sample(policy, x, sigmas, {"conditioning": conditioning})
