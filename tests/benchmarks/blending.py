"""Study `blending`: which way of blending a crop in hides what large models do to it.

The model's output is the truth with a planted error: a colour cast, light that changes across the
crop, a shift, other sharpness, noise, or other surroundings. It goes through the correction of drift
and colour and the stitching of the recipe `kontext`, and is then compared with the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_core.data.triplets import mask_tensor, picture_tensor
from refiner_core.evaluation.held_out_scenes import FIRST_SEED, make_scene
from refiner_core.images.crop import crop
from refiner_core.images.filters import blur
from refiner_core.images.geometry import Blend, Extent
from refiner_core.images.masks import dilate
from refiner_core.images.tensors import to_float
from refiner_core.recipes.recipe import KONTEXT
from refiner_core.repair.finish_region import correct_region, stitch_region
from refiner_core.repair.prepare_region import plan_region, prepare_region
from refiner_core.repair.request import RefineOptions, RegionTask, single_region
from refiner_core.scoring.pixels import masked_psnr

_SIZE = (640, 480)
_BLENDS: tuple[Blend, ...] = get_args(Blend)
# The edge is hard, because a scene is broken up to the edge of its mask and a soft one would show that.
_OPTIONS = RefineOptions(megapixels=0.26, align=False, feather=0)

Plant = Callable[[Tensor, Tensor], Tensor]


def _cast(x: Tensor) -> Tensor:
    return (x * torch.tensor([1.08, 0.97, 0.93]).view(1, 3, 1, 1) + 0.02).clamp(0, 1)


def _gradient(x: Tensor) -> Tensor:
    return (x * torch.linspace(0.88, 1.12, x.shape[-1])).clamp(0, 1)


def _moved(x: Tensor, dx: float, dy: float, zoom: float = 1.0) -> Tensor:
    h, w = x.shape[-2:]
    matrix = torch.tensor([[[1 / zoom, 0, -2 * dx / w], [0, 1 / zoom, -2 * dy / h]]])
    points = F.affine_grid(matrix, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, points, "bicubic", "border", align_corners=False)
    return moved.clamp(0, 1)


def _noisy(x: Tensor) -> Tensor:
    return x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


PLANTED: dict[str, Plant] = {
    "nothing": lambda x, m: x,
    "color cast": lambda x, m: _cast(x),
    "light changes across the crop": lambda x, m: _gradient(x),
    "shift of 4 px, zoom of 1 %": lambda x, m: _moved(x, 4, -3, 1.01),
    "soft": lambda x, m: blur(x, 2.0),
    "too sharp": lambda x, m: (x + 0.8 * (x - blur(x, 2.0))).clamp(0, 1),
    "noise": lambda x, m: _noisy(x),
    "surroundings moved by 12 px": lambda x, m: torch.lerp(_moved(x, 12, -9), x, m),
    "other surroundings": lambda x, m: torch.lerp(x.flip(-1), x, m),
    "light changes, surroundings moved": lambda x, m: _gradient(
        torch.lerp(_moved(x, 12, -9), x, m)
    ),
}


def _step(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean step at the mask's edge that the truth does not have, in units of 1/255."""
    inner, outer = mask - (1 - dilate(1 - mask, 3)), dilate(mask, 3) - mask
    error = image - truth

    def near(where: Tensor) -> Tensor:
        return blur(error * where, 3.0) / blur(where, 3.0).clamp_min(1e-4)

    edge = dilate(inner, 1) * dilate(outer, 1)
    apart = (near(inner) - near(outer)).abs().mean(1, keepdim=True)
    return float((apart * edge).sum() / edge.sum().clamp_min(1)) * 255


def measure(seed: int) -> dict[tuple[str, Blend], tuple[float, float]]:
    """PSNR inside the mask in dB and step at its edge, by planted error and way of blending."""
    scene = make_scene(seed, _SIZE, (0.3, 0.5), rough_masks=True, held_out=True)
    draft, target = (to_float(picture_tensor(x)) for x in (scene.draft, scene.target))
    mask, reference = mask_tensor(scene.mask), picture_tensor(scene.reference)
    task = RegionTask(
        single_region(mask, Extent(*_SIZE)), (reference,), (mask_tensor(scene.reference_mask),)
    )
    planned = plan_region(task, Extent(*_SIZE), KONTEXT, _OPTIONS)
    prepared = prepare_region(draft, planned, KONTEXT, _OPTIONS)
    truth = crop(target, planned.plan)
    found: dict[tuple[str, Blend], tuple[float, float]] = {}
    for name, plant in PLANTED.items():
        made = plant(truth, prepared.mask)
        for blend in _BLENDS:
            options, image = replace(_OPTIONS, blend=blend), draft.clone()
            stitch_region(image, prepared, correct_region(prepared, made, options)[0], options)
            psnr = float(masked_psnr(image, target, mask))
            found[name, blend] = (psnr, _step(image, target, mask.float()))
    return found


@torch.inference_mode()
def run(chosen: argparse.Namespace) -> None:
    """Print the table."""
    scenes = [measure(FIRST_SEED + i) for i in range(chosen.scenes)]
    print("PSNR inside the region in dB, and step at its edge /255")
    print(f"| planted | {' | '.join(_BLENDS)} |")
    print(f"|---|{'---|' * len(_BLENDS)}")
    for name in PLANTED:
        means = [np.mean([scene[name, blend] for scene in scenes], 0) for blend in _BLENDS]
        print(f"| {name} | {' | '.join(f'{psnr:.2f}, {step:.2f}' for psnr, step in means)} |")


def add_parser(names: Any) -> None:
    p = names.add_parser("blending", help="ways of blending against planted errors of a model")
    p.add_argument("--scenes", type=int, default=16, metavar="N", help="default: %(default)s")
    p.set_defaults(run=run)
