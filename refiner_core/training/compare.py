"""Compares two refiners on the same held-out cases, paired, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.shards import TripletSet
from ..data.triplets import Triplet
from ..evaluation.held_out_scenes import make_scene
from ..images.geometry import Extent
from ..models.core_engine import CoreEngine
from ..models.kontext import Conditioning
from ..nano.reference_blend import ReferenceBlend
from ..recipes.recipe import NANO, Recipe
from ..scoring.structural import StructuralScorer
from ..workers.pool import worker_pool
from .config import DataSettings
from .crop_triplet import crop_triplet
from .dataset import Pixels
from .policy import Policy, VelocityNet
from .reward import Part, PatchReward
from .validation import region_metrics, repair

FIRST_SEED = 10_000_000  # of the scenes that are drawn for evaluation only
HELD_OUT_CROPS = DataSettings(context=(1.5, 1.5))
_RESAMPLES = 10_000


def is_lower_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric == "edge_error"


@dataclass(frozen=True)
class Comparison:
    """One metric: its means, the mean paired gain of b over a (positive = b better) and the 95 %
    bootstrap interval of that gain.
    """

    metric: str
    a: float
    b: float
    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "equal within the interval"


def _scene_triplet(seed: int) -> Triplet | None:
    scene = make_scene(seed, (320, 240), (0.3, 0.5), rough_masks=False, held_out=True)
    if scene.degradation == "identity":
        return None
    return Triplet(
        str(seed), scene.draft, scene.reference, scene.target, scene.mask, scene.reference_mask
    )


def _scene_planes(seed: int) -> tuple[np.ndarray, ...] | None:
    triplet = _scene_triplet(seed)
    if triplet is None:
        return None
    p, _ = crop_triplet(triplet, NANO, HELD_OUT_CROPS, 0)
    return tuple(x.numpy() for x in (p.target, p.draft, p.reference, p.mask))


def held_out_scenes(count: int, workers: int = 2) -> list[Pixels]:
    """The first `count` procedural scenes that have a fault and are never trained on, cropped."""
    cases: list[Pixels] = []
    with worker_pool(workers) as pool:
        # Some scenes are "identity": draw a few more than needed.
        for planes in pool.map(
            _scene_planes, range(FIRST_SEED, FIRST_SEED + 2 * count), chunksize=4
        ):
            if planes is not None:
                cases.append(Pixels(*(torch.from_numpy(x) for x in planes)))
            if len(cases) == count:
                pool.shutdown(cancel_futures=True)
                break
    return cases


def data_set_cases(
    folder: Path, recipe: Recipe, count: int, split: str | None = None
) -> list[Pixels]:
    """The first `count` triplets of a data set that can be cropped.

    Raises:
        ValueError: no triplet can.
    """
    cases: list[Pixels] = []
    for triplet in TripletSet(folder, split):
        try:
            cases.append(crop_triplet(triplet, recipe, HELD_OUT_CROPS, 0)[0])
        except ValueError:
            continue
        if len(cases) == count:
            break
    if not cases:
        raise ValueError(f"No triplet of {folder} can be used: a comparison needs targets.")
    return cases


@torch.no_grad()
def measure(
    engine: CoreEngine,
    cases: Sequence[Pixels],
    net: VelocityNet | None = None,
    further: Mapping[str, Part] | None = None,
    first_seed: int = 0,
) -> dict[str, np.ndarray]:
    """All metrics of all cases, each repaired with a seed of its own, counted from `first_seed`.

    Args:
        net: the network to run instead of the engine's own.
        further: parts of the reward that are measured too.
    """
    reward = PatchReward(StructuralScorer(), further)
    numbered = enumerate(cases, first_seed)
    rows = [_row(image, p, reward) for p, image in repairs(engine, numbered, net)]
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}


@torch.no_grad()
def repairs(
    engine: CoreEngine, cases: Iterable[tuple[int, Pixels]], net: VelocityNet | None = None
) -> Iterator[tuple[Pixels, Tensor]]:
    """Each case, given with its seed, and its repair 1 3 H W in [0, 1]; `net` as for `measure`."""
    recipe = engine.recipe
    policy = Policy(net or VelocityNet(engine.model, recipe.attention), engine.device)
    text, pooled = engine.text(recipe.text(None), recipe.text_tokens)
    blend = ReferenceBlend.of(recipe, aligned=recipe.align)
    for seed, p in cases:
        blended = blend.shown(p.draft, p.reference, p.mask)
        latents = {"draft": engine.encode(blended), "reference": engine.encode(p.reference)}
        clean = tuple(latents[role] for role in recipe.order)
        c = Conditioning(clean, recipe.indices, text, pooled, recipe.guidance, recipe.layout)
        shape = latents["draft"].shape
        x0 = repair(policy, c, shape, _schedule(recipe, shape), seed)
        yield p, engine.decode(x0).clamp(0, 1)


def _schedule(recipe: Recipe, shape: torch.Size) -> Tensor:
    return recipe.sigmas(Extent(shape[-1] * recipe.latent_factor, shape[-2] * recipe.latent_factor))


def _row(image: Tensor, p: Pixels, reward: PatchReward) -> dict[str, float]:
    rewards = reward(image, p)
    return region_metrics(image, p) | {f"reward/{k}": float(v) for k, v in rewards.items()}


def interval(gains: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % bootstrap interval."""
    n = len(gains)
    draws = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))
    low, high = np.quantile(gains[draws].mean(1), (0.025, 0.975))
    return float(gains.mean()), float(low), float(high)


def paired(a: dict[str, np.ndarray], b: dict[str, np.ndarray], seed: int = 0) -> list[Comparison]:
    """b compared with a, metric by metric, over the same cases."""
    out = []
    for name in a:
        gain = (b[name] - a[name]) * (-1 if is_lower_better(name) else 1)
        means = float(a[name].mean()), float(b[name].mean())
        out.append(Comparison(name, *means, *interval(gain, seed)))
    return out


def table(comparisons: Iterable[Comparison], names: tuple[str, str], count: int) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"{count} held-out cases. A positive gain means that {names[1]} is better; the interval is the "
        "95 % paired bootstrap.",
        "",
        f"| metric | {names[0]} | {names[1]} | gain | interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.metric} | {c.a:.5f} | {c.b:.5f} | {c.gain:+.5f} | [{c.low:+.5f}, {c.high:+.5f}] "
        f"| {c.verdict} |"
        for c in comparisons
    ]
    return "\n".join(lines)
