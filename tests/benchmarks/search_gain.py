"""Study `search`: what best-of-N gains over one run, and over one run with as many steps.

Everything runs nano on held-out procedural scenes; the target is known, and only used to measure.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from refiner_core.data.triplets import mask_tensor, picture_tensor
from refiner_core.evaluation.held_out_scenes import FIRST_SEED, make_scene
from refiner_core.evaluation.metric import MAX_PSNR
from refiner_core.images.tensors import to_float
from refiner_core.models.core_engine import CoreEngine
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from refiner_core.scoring.pixels import edge_error, masked_psnr, masked_ssim
from refiner_core.scoring.structural import StructuralScorer
from refiner_core.training.compare import interval
from refiner_core.workers.pool import worker_pool

SINGLE, LIGHT = "one run", "one run, half the reference blend"
BEST, STEPS = "best of N", "one run, as many steps"
RUNS = (SINGLE, LIGHT, BEST, STEPS)
_MEASURES = ("psnr", "ssim", "edges", "structure")


@dataclass(frozen=True)
class Gain:
    """One scene: per run its sampling steps and its four measures to the target."""

    seed: int
    degradation: str
    evaluations: dict[str, int]
    measures: dict[str, dict[str, float]]


def _measure(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    structure = StructuralScorer().distance(to_float(image), to_float(target), mask)
    return {
        "psnr": min(MAX_PSNR, float(masked_psnr(image, target, mask))),
        "ssim": float(masked_ssim(image, target, mask)),
        "edges": float(edge_error(image, target, mask)),
        "structure": float(structure),
    }


def _compare(job: tuple[int, int]) -> Gain | None:
    from refiner_core.nano.nano_engine import load_nano

    seed, candidates = job
    scene = make_scene(seed, (320, 240), (0.3, 0.5), rough_masks=False, held_out=True)
    if scene.degradation == "identity":
        return None
    engine = load_nano()
    target, mask = picture_tensor(scene.target), mask_tensor(scene.mask)

    def run(engine: CoreEngine, options: RefineOptions) -> tuple[dict[str, float], dict[str, Any]]:
        request = RefineRequest(
            picture_tensor(scene.draft), (picture_tensor(scene.reference),), mask,
            (mask_tensor(scene.reference_mask),), options,
        )  # fmt: skip
        done = refine(engine, request)
        return _measure(done.image, target, mask), done.report["regions"][0]

    plain = RefineOptions(seed=seed)
    steps = engine.recipe.steps
    measures = {SINGLE: run(engine, plain)[0]}
    light = replace(
        engine, recipe=replace(engine.recipe, reference_blend=engine.recipe.reference_blend / 2)
    )
    measures[LIGHT] = run(light, plain)[0]
    measures[BEST], region = run(engine, replace(plain, candidates=candidates))
    price = region["search"]["evaluations"]
    measures[STEPS] = run(engine, replace(plain, steps=price))[0]
    spent = {SINGLE: steps, LIGHT: steps, BEST: price, STEPS: price}
    return Gain(seed, scene.degradation, spent, measures)


def table(rows: list[Gain], candidates: int) -> str:
    """The runs' means, and the search's paired differences to the others, as Markdown."""
    full = candidates * rows[0].evaluations[SINGLE]
    lines = [
        f"{len(rows)} held-out cases, best of {candidates}; {full} sampling steps for all to the end",
        "",
        "| run | steps | PSNR dB | SSIM | edge error | MS-SSIM+edges |",
        "|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        psnr, ssim, edges, structure = (
            np.mean([r.measures[name][m] for r in rows]) for m in _MEASURES
        )
        steps = np.mean([r.evaluations[name] for r in rows])
        lines.append(
            f"| {name} | {steps:.0f} | {psnr:.2f} | {ssim:.4f} | {edges:.5f} | {structure:.4f} |"
        )
    lines += ["", "best of N minus the other, mean and 95 % interval over cases:", ""]
    for name in RUNS:
        if name != BEST:
            lines.append(f"- {name}: " + "; ".join(_difference(rows, name, m) for m in _MEASURES))
    return "\n".join(lines)


def _difference(rows: list[Gain], name: str, measure: str) -> str:
    apart = np.array([r.measures[BEST][measure] - r.measures[name][measure] for r in rows])
    mean, low, high = interval(apart)
    digits = {"psnr": 2, "ssim": 4, "edges": 5, "structure": 4}[measure]
    return f"{measure} {mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def measure_search(
    count: int, candidates: int, *, first: int = FIRST_SEED, workers: int = 2
) -> list[Gain]:
    """Run `count` held-out scenes; drafts without fault ("identity") are left out."""
    jobs = [(first + i, candidates) for i in range(count)]
    with worker_pool(workers) as pool:
        return [r for r in pool.map(_compare, jobs, chunksize=2) if r is not None]


def add_parser(names: Any) -> None:
    """Add the study's options."""
    p = names.add_parser("search", help="what best-of-N gains, with nano on held-out scenes")
    p.add_argument("--count", type=int, default=64, help="scenes; default: %(default)s")
    p.add_argument("--candidates", type=int, default=8, help="N; default: %(default)s")
    p.add_argument("--workers", type=int, default=2, help="processes; default: %(default)s")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ValueError: too few scenes or candidates.
    """
    if chosen.count < 1 or chosen.candidates < 2:
        raise ValueError(
            f"--count must be at least 1 and --candidates at least 2, got {chosen.count} and "
            f"{chosen.candidates}."
        )
    rows = measure_search(chosen.count, chosen.candidates, workers=chosen.workers)
    print(table(rows, chosen.candidates))
