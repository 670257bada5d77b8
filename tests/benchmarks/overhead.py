"""Benchmark `overhead`: time spent around the transformer, and its scaling with picture size."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from refiner_core.images.crop import crop, stitch_into, uncrop
from refiner_core.images.geometry import KONTEXT_BUCKETS, Extent, plan_crop
from refiner_core.images.masks import find_regions

from .measuring import median_seconds, noise_picture


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("overhead", help="time around the transformer, by picture size")
    p.add_argument("--rounds", type=int, default=5, help="timed runs; the median is reported")
    p.set_defaults(run=run)


def _around_the_model(rounds: int) -> None:
    from refiner_core.nano.nano_engine import load_nano
    from refiner_core.repair.pipeline import refine
    from refiner_core.repair.request import RefineOptions, RefineRequest

    engine = load_nano()
    draft, mask = noise_picture(512)
    reference = draft[..., 128:384, 128:384].contiguous()
    print("\nOverhead around the transformer, nano, 512 px crop of a 512 px picture")
    print(f"{'':<22}{'sample s':>10}{'rest s':>10}{'rest/sample':>13}")
    for title, align in (("without alignment", False), ("with alignment", True)):
        options = RefineOptions(megapixels=0.262, align=align, drift=False, color_match=0)
        request = RefineRequest(draft, (reference,), mask, (), options)
        runs = [refine(engine, request).report for _ in range(max(2, rounds // 2))][1:]
        sampled = statistics.median(r["seconds"]["sample"] for r in runs)
        rest = statistics.median(r["seconds_total"] - r["seconds"]["sample"] for r in runs)
        print(f"{title:<22}{sampled:>10.3f}{rest:>10.3f}{rest / sampled:>13.3f}")


def _whole_repair(rounds: int) -> None:
    from refiner_core.nano.nano_engine import load_nano
    from refiner_core.repair.pipeline import refine
    from refiner_core.repair.request import RefineRequest

    engine = load_nano()
    print("\nThe whole repair of a 256 px region with nano, by picture size (uint8)")
    print(f"{'picture':<12}{'seconds':>10}{'of the 512 px picture':>24}")
    least = 0.0
    for side in (512, 2048, 8192):
        draft, mask = noise_picture(side)
        b = find_regions(mask)[0].box
        request = RefineRequest(draft, (draft[..., b.y0 : b.y1, b.x0 : b.x1].contiguous(),), mask)
        spent = median_seconds(lambda r=request: refine(engine, r), rounds)
        least = least or spent
        print(f"{side:<12}{spent:>10.3f}{spent / least:>24.2f}")


def _picture_size(rounds: int) -> None:
    print("\nPlanning, crop and stitch of a 256 px region, by picture size (uint8)")
    print(
        f"{'picture':<12}{'find region s':>15}{'crop+uncrop s':>15}{'stitch in place s':>19}{'copy s':>9}"
    )
    for side in (512, 2048, 8192):
        image, mask = noise_picture(side)
        found = median_seconds(lambda m=mask: find_regions(m), rounds)
        region = find_regions(mask)[0]
        plan = plan_crop(Extent(side, side), region.box, KONTEXT_BUCKETS, 1.5)
        work = median_seconds(lambda i=image, p=plan, r=region: uncrop(crop(i, p), p, r), rounds)
        patch = uncrop(crop(image, plan), plan, region)
        b = plan.inside
        window = image[..., b.y0 : b.y1, b.x0 : b.x1]
        local = type(region)(region.box.moved(-b.x0, -b.y0), region.mask)
        sewn = median_seconds(lambda w=window, p=patch, r=local: stitch_into(w, p, r), rounds)
        copied = median_seconds(lambda i=image: i.clone(), rounds)
        print(f"{side:<12}{found:>15.4f}{work:>15.4f}{sewn:>19.4f}{copied:>9.4f}")


def run(chosen: argparse.Namespace) -> None:
    """Print the three tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    _around_the_model(chosen.rounds)
    _picture_size(chosen.rounds)
    _whole_repair(chosen.rounds)
