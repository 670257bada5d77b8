"""Ready-made training crops on disk: drawn once, read many times.

A shard is one `.npy` file, uint8 `N H W 10`: target RGB, draft RGB, aligned reference RGB, mask.
Shards are written to a temporary name and renamed, so an interrupted build leaves only whole
ones, and building again fills in what is missing.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..matching.color import match_light
from ..matching.registration import blur
from ..processes import worker_pool
from .scenes import make_scene, warp_reference

CHANNELS = 10
_WIDE = ((208, 80), (176, 96), (256, 64), (144, 112))
_SQUARE = ((128, 128), (144, 112), (112, 144), (96, 176))


@dataclass(frozen=True)
class CacheSpec:
    """What to draw.

    `count` crops, from run seed `seed`; `misalignment` scales the error left in the alignment of
    the reference (1 = what the pipeline's own alignment leaves on hard pictures); `agreement`
    the least PSNR (dB) of `agrees` and `gain` the least of `helps` for a crop to be kept; `shard`
    crops drawn per file.
    """

    count: int
    seed: int = 0
    misalignment: float = 1.0
    agreement: float = 19.0
    gain: float = 1.0
    shard: int = 256


def shard_plan(spec: CacheSpec) -> list[tuple[int, tuple[int, int], str]]:
    """(shard index, bucket (w, h), kind family) for every shard of the spec."""
    plan = []
    for i in range(-(-spec.count // spec.shard)):
        words = i % 2 == 0  # half of the crops are lettering: the hardest, and what people look at
        buckets = _WIDE if words else _SQUARE
        plan.append((i, buckets[(i // 2) % len(buckets)], "word" if words else "other"))
    return plan


def draw_crop(seed: int, bucket: tuple[int, int], family: str, misalignment: float) -> np.ndarray:
    """One crop framed on its detail, uint8 H W 10."""
    rng = np.random.default_rng([seed, 7])
    kind = "word" if family == "word" else str(rng.choice(("logo", "pattern"), p=(0.6, 0.4)))
    scene = make_scene(seed, bucket, (0.45, 0.82), kind=kind)
    # Corner errors: mostly under a pixel, sometimes what a failed refinement leaves.
    sigma = float(rng.choice((0.7, 2.0, 5.0), p=(0.65, 0.25, 0.1))) * misalignment
    error = rng.normal(0, 0.6 * sigma, (1, 2)) + rng.normal(0, 0.8 * sigma, (4, 2))
    reference = warp_reference(scene, error)
    # What the pipeline does before the model sees a reference: the light is matched as well.
    planes = [
        torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() / 255
        for a in (reference, scene.draft)
    ]
    weight = torch.from_numpy(scene.mask.copy())[None, None].float() / 255
    matched = match_light(planes[0], planes[1], weight)
    reference = (matched[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return np.concatenate([scene.target, scene.draft, reference, scene.mask[..., None]], axis=-1)


def cut_window(rng: np.random.Generator, crop: np.ndarray, side: int) -> np.ndarray:
    """A square of a crop H W 10 that lies on its mask, `side` pixels wide, at random."""
    h, w = crop.shape[:2]
    ys, xs = np.nonzero(crop[..., 9])
    at = int(rng.integers(len(ys)))
    y = int(np.clip(ys[at] - rng.integers(side // 4, 3 * side // 4 + 1), 0, h - side))
    x = int(np.clip(xs[at] - rng.integers(side // 4, 3 * side // 4 + 1), 0, w - side))
    return crop[y : y + side, x : x + side]


def agrees(crop: np.ndarray) -> float:
    """How far reference and target agree over the mask once fine detail is blurred away, PSNR in dB.

    Low where the mask takes in much background, the light could not be matched, or the alignment is
    off: such a crop teaches distrust of the reference.
    """
    x = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255
    inside = (x[:, 9:] > 0).float()
    apart = (blur(x[:, 6:9], 2.0) - blur(x[:, :3], 2.0)).square() * inside
    return -10 * math.log10(float(apart.sum() / (3 * inside.sum()).clamp_min(1)) + 1e-6)


def helps(crop: np.ndarray) -> float:
    """How much nearer to the target the reference is than the draft over the mask, in dB.

    Where it is not, the best answer is to keep the draft; a model this small that learns both
    answers learns to mix them, and a mixture of two words reads as neither.
    """
    inside = crop[..., 9:] > 0
    target = crop[..., :3].astype(np.float64)
    draft, reference = (
        float((np.square(crop[..., i : i + 3] - target) * inside).sum()) + 1.0 for i in (3, 6)
    )
    return 10 * math.log10(draft / reference)


def _draw_shard(job: tuple[str, int, tuple[int, int], str, CacheSpec]) -> str:
    path, index, bucket, family, spec = job
    if Path(path).exists():
        return path
    first = spec.seed * 1_000_003 + index * spec.shard
    drawn = (draw_crop(first + i, bucket, family, spec.misalignment) for i in range(spec.shard))
    h, w = bucket[1], bucket[0]
    kept = [c for c in drawn if agrees(c) >= spec.agreement and helps(c) >= spec.gain]
    crops = np.stack(kept) if kept else np.zeros((0, h, w, CHANNELS), np.uint8)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as stream:
        np.save(stream, crops)
    os.replace(temporary, path)
    return path


def _name(spec: CacheSpec) -> str:
    """The parts of the spec that change what is drawn: a cache never mixes two of them unseen."""
    return f"s{spec.seed}-m{spec.misalignment:g}-a{spec.agreement:g}-g{spec.gain:g}-n{spec.shard}"


def build_cache(folder: Path, spec: CacheSpec, workers: int = 2) -> list[Path]:
    """Draw every shard of `spec` that `folder` lacks; return the paths of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (str(folder / f"{_name(spec)}-{i:05d}-{w}x{h}.npy"), i, (w, h), family, spec)
        for i, (w, h), family in shard_plan(spec)
    ]
    if workers <= 1:
        return [Path(_draw_shard(job)) for job in jobs]
    with worker_pool(workers) as pool:
        return [Path(p) for p in pool.map(_draw_shard, jobs)]
