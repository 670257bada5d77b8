"""Is one refiner better than another? The same held-out cases, paired, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.shards import TripletSet
from ..data.triplets import Triplet
from ..data.worker_pool import worker_pool
from ..evaluation.held_out_scenes import make_scene
from ..images.geometry import Extent
from ..models.core_engine import CoreEngine
from ..models.kontext import Conditioning
from ..nano.reference_blend import ReferenceBlend
from ..recipes.recipe import NANO, Recipe
from ..scoring.structural import StructuralScorer
from .config import DataSettings
from .crop_triplet import frame
from .dataset import Pixels, View
from .policy import Policy, VelocityNet
from .reward import PatchReward
from .validation import figures, repair

FIRST_SEED = 10_000_000  # of scenes that are drawn for measuring only
_FRAMING = DataSettings(context=(1.5, 1.5))
_RESAMPLES = 10_000
# Metrics of which less is better.
_FALLING = ("edge_error",)


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


def _framed_scene(seed: int) -> tuple[np.ndarray, ...] | None:
    triplet = _scene_triplet(seed)
    if triplet is None:
        return None
    p, _ = frame(triplet, NANO, _FRAMING, 0)
    return tuple(x.numpy() for x in (p.target, p.draft, p.reference, p.mask))


def held_out_scenes(count: int, workers: int = 2) -> list[Pixels]:
    """The first `count` procedural scenes that no training saw and that have a fault, framed."""
    found: list[Pixels] = []
    with worker_pool(workers) as pool:
        # Some scenes are "identity": draw a few more than needed.
        for planes in pool.map(
            _framed_scene, range(FIRST_SEED, FIRST_SEED + 2 * count), chunksize=4
        ):
            if planes is not None:
                found.append(Pixels(*(torch.from_numpy(x) for x in planes)))
            if len(found) == count:
                pool.shutdown(cancel_futures=True)
                break
    return found


def framed(folder: Path, recipe: Recipe, count: int, split: str | None = None) -> list[Pixels]:
    """The first `count` triplets of a data set that can be framed.

    Raises:
        ValueError: none can.
    """
    found: list[Pixels] = []
    for triplet in TripletSet(folder, split):
        try:
            found.append(frame(triplet, recipe, _FRAMING, 0)[0])
        except ValueError:
            continue
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"No triplet of {folder} can be compared on (they need targets).")
    return found


@torch.no_grad()
def measure(
    engine: CoreEngine, cases: Sequence[Pixels], net: VelocityNet | None = None
) -> dict[str, np.ndarray]:
    """Every metric of every case, repaired with the case's number as the seed.

    Args:
        net: the network to run in place of the engine's own.
    """
    recipe = engine.recipe
    policy = Policy(net or VelocityNet(engine.model, engine.recipe.attention), engine.device)
    text, pooled = engine.text(recipe.text(None), recipe.text_tokens)
    blend = ReferenceBlend.of(recipe, aligned=recipe.align)
    rows: list[dict[str, float]] = []
    for seed, p in enumerate(cases):
        seen = blend.shown(p.draft, p.reference, p.mask)
        latents = {"draft": engine.encode(seen), "reference": engine.encode(p.reference)}
        clean = tuple(latents[role] for role in recipe.order)
        c = Conditioning(clean, recipe.indices, text, pooled, recipe.guidance, recipe.layout)
        shape = latents["draft"].shape
        x0 = repair(policy, c, shape, _schedule(recipe, shape), seed)
        rows.append(_row(engine.decode(x0).clamp(0, 1), p))
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}


def _schedule(recipe: Recipe, shape: torch.Size) -> Tensor:
    return recipe.sigmas(Extent(shape[-1] * recipe.latent_factor, shape[-2] * recipe.latent_factor))


def _row(image: Tensor, p: Pixels) -> dict[str, float]:
    none = torch.zeros(1, 1, 1, 1)
    found = figures(image, View("", "", none, (), none, p))
    parts = PatchReward(StructuralScorer())(image, p)
    return found | {f"reward/{k}": float(v) for k, v in parts.items()}


def paired(a: dict[str, np.ndarray], b: dict[str, np.ndarray], seed: int = 0) -> list[Comparison]:
    """b against a, metric by metric, over the same cases."""
    rng = np.random.default_rng(seed)
    n = len(next(iter(a.values())))
    draws = rng.integers(0, n, (_RESAMPLES, n))
    out = []
    for name in a:
        gain = (b[name] - a[name]) * (-1 if name in _FALLING else 1)
        low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
        means = float(a[name].mean()), float(b[name].mean())
        out.append(Comparison(name, *means, float(gain.mean()), float(low), float(high)))
    return out


def table(found: Iterable[Comparison], names: tuple[str, str], count: int) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"{count} held-out cases; gain: positive = {names[1]} is better, 95 % paired bootstrap.",
        "",
        f"| metric | {names[0]} | {names[1]} | gain | interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.metric} | {c.a:.5f} | {c.b:.5f} | {c.gain:+.5f} | [{c.low:+.5f}, {c.high:+.5f}] "
        f"| {c.verdict} |"
        for c in found
    ]
    return "\n".join(lines)
