"""Evaluates the embedded model on scenes that it has never seen: the table of the model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.triplets import mask_tensor, picture_tensor
from ..nano import NANO_WEIGHTS
from ..repair.pipeline import refine
from ..repair.request import RefineOptions, RefineRequest
from ..scoring.pixels import masked_psnr, masked_ssim
from ..storage.output_files import atomic_path
from ..workers.pool import worker_pool
from .baselines import PastedReference, pasted_reference
from .held_out_scenes import FIRST_SEED, HeldOutScene, make_scene
from .metric import MAX_PSNR

_WORKERS = 2  # processes
_METHODS = ("draft", "pasted", "aligned", "refined")


@dataclass(frozen=True)
class SceneResult:
    """The measurements of one scene."""

    seed: int
    kind: str
    degradation: str
    psnr: dict[str, float]  # masked, in dB, per method
    ssim: dict[str, float]  # masked, per method
    outside: int  # largest difference to the draft outside the mask, of 255
    picture: np.ndarray  # uint8 h w 3, for sheets: reference, draft, aligned, refined, target


def _psnr(image: np.ndarray, scene: HeldOutScene) -> float:
    psnr = masked_psnr(picture_tensor(image), picture_tensor(scene.target), mask_tensor(scene.mask))
    return min(MAX_PSNR, float(psnr))


def _ssim(image: np.ndarray, scene: HeldOutScene) -> float:
    return float(
        masked_ssim(picture_tensor(image), picture_tensor(scene.target), mask_tensor(scene.mask))
    )


def _evaluate(job: tuple[int, str, bool, int | None]) -> SceneResult | None:
    from ..nano.nano_engine import load_nano

    seed, weights, rough, steps = job
    torch.set_num_threads(1)
    scene = make_scene(seed, (320, 240), (0.3, 0.5), rough_masks=rough, held_out=True)
    if scene.degradation == "identity":
        return None
    request = RefineRequest(
        picture_tensor(scene.draft),
        (picture_tensor(scene.reference),),
        mask_tensor(scene.mask),
        (mask_tensor(scene.reference_mask),),
        RefineOptions(seed=seed, steps=steps),
    )
    results = {
        "draft": scene.draft,
        "pasted": pasted_reference(scene.draft, scene.mask, scene.reference, scene.reference_mask),
    }
    model = load_nano(path=Path(weights))
    engines = {"aligned": PastedReference(model.recipe), "refined": model}
    report = {}
    for name, engine in engines.items():
        done = refine(engine, request)
        results[name] = done.image[0].permute(1, 2, 0).numpy()
        report = done.report
    outside = np.abs(results["refined"].astype(int) - scene.draft)[scene.mask == 0]
    x0, y0, x1, y1 = (max(0, v) for v in report["regions"][0]["crop"])
    tiles = [results[m][y0:y1, x0:x1] for m in ("draft", "aligned", "refined")]
    tiles = [scene.reference, *tiles, scene.target[y0:y1, x0:x1]]
    strip = [
        np.asarray(Image.fromarray(t).resize((192, 128), Image.Resampling.LANCZOS)) for t in tiles
    ]
    return SceneResult(
        seed,
        scene.kind,
        scene.degradation,
        {m: _psnr(results[m], scene) for m in _METHODS},
        {m: _ssim(results[m], scene) for m in _METHODS},
        int(outside.max(initial=0)),
        np.concatenate(strip, 1),
    )


def _line(name: str, rows: list[SceneResult]) -> str:
    psnr = [np.mean([r.psnr[m] for r in rows]) for m in _METHODS]
    ssim = [np.mean([r.ssim[m] for r in rows]) for m in _METHODS]
    better = np.mean([r.psnr["refined"] > r.psnr["draft"] for r in rows])
    cells = "".join(f" {p:6.2f} |" for p in psnr) + "".join(f" {s:.3f} |" for s in ssim)
    return f"| {name:<14} | {len(rows):>3} |{cells} {100 * better:3.0f} % |"


def evaluate_nano(
    count: int,
    weights: Path | None = None,
    *,
    rough_masks: bool = False,
    steps: int | None = None,
    sheet: Path | None = None,
) -> list[SceneResult]:
    """Repair `count` held-out scenes and print the table.

    Args:
        count: number of seeds; scenes whose draft is right ("identity") are left out.
        weights: nano's file; None = the embedded one.
        rough_masks: boxes and ellipses in addition to outlines.
        steps: of the sampler; None = the recipe's.
        sheet: file for a picture of the 10 worst and the 10 best cases (reference, draft, aligned
            reference pasted, refined, target).
    """
    path = str(weights or NANO_WEIGHTS)
    jobs = [(FIRST_SEED + i, path, rough_masks, steps) for i in range(count)]
    with worker_pool(_WORKERS) as pool:
        rows = [r for r in pool.map(_evaluate, jobs, chunksize=4) if r is not None]
    print("masked PSNR (dB) and SSIM: the draft; the reference pasted box on box; pasted after the")
    print("pipeline's alignment and light matching; refined. Last: share of drafts made better.")
    print(
        "| broken by      |   n |  draft | pasted | aligned| refined| draft | pasted| align.| refin.|     |"
    )
    for name in sorted({r.degradation for r in rows}):
        print(_line(name, [r for r in rows if r.degradation == name]))
    for kind in ("word", "logo", "pattern"):
        print(_line(kind, [r for r in rows if r.kind == kind]))
    print(_line("all", rows))
    print(f"largest difference outside the mask: {max(r.outside for r in rows)}")
    if sheet is not None:
        order = sorted(rows, key=lambda r: r.psnr["refined"] - r.psnr["draft"])
        halves = (order[:10], order[-10:][::-1])
        columns = [np.concatenate([r.picture for r in half]) for half in halves]
        with atomic_path(sheet) as temporary:
            Image.fromarray(np.concatenate(columns, 1)).save(temporary)
    return rows
