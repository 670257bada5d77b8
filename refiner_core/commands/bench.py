"""`omnirefiner bench`: what the parts cost, side by side in one run."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from ..images.crop import crop, stitch, uncrop
from ..images.geometry import KONTEXT_BUCKETS, Extent, plan_crop
from ..images.masks import find_regions
from . import bench_comfyui, bench_data, bench_dreamsim, bench_training
from .measuring import median_seconds, noise_picture


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("bench", help="measure overhead, scaling with picture size, and peers")
    p.add_argument("--rounds", type=int, default=5, help="timed runs, the median counts")
    p.set_defaults(run=run)
    subjects = p.add_subparsers(dest="subject", metavar="SUBJECT")
    found = subjects.add_parser("search", help="what the best of N gains, with nano, held out")
    found.add_argument("--count", type=int, default=64, help="scenes; default: %(default)s")
    found.add_argument("--candidates", type=int, default=8, help="N; default: %(default)s")
    found.add_argument("--workers", type=int, default=2, help="processes; default: %(default)s")
    found.set_defaults(run=run_search)
    bench_dreamsim.add_subject(subjects)
    bench_data.add_subject(subjects)
    bench_comfyui.add_subject(subjects)
    bench_training.add_subject(subjects)


def _around_the_model(rounds: int) -> None:
    from ..nano.nano_engine import load_nano
    from ..repair.pipeline import refine
    from ..repair.request import RefineOptions, RefineRequest

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
    from ..nano.nano_engine import load_nano
    from ..repair.pipeline import refine
    from ..repair.request import RefineRequest

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
    print("\nPlan + crop + stitch of a 256 px region, by picture size (uint8)")
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
        sewn = median_seconds(lambda w=window, p=patch, r=local: stitch(w, p, r), rounds)
        copied = median_seconds(lambda i=image: i.clone(), rounds)
        print(f"{side:<12}{found:>15.4f}{work:>15.4f}{sewn:>19.4f}{copied:>9.4f}")


def run(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    _around_the_model(chosen.rounds)
    _picture_size(chosen.rounds)
    _whole_repair(chosen.rounds)


def run_search(chosen: argparse.Namespace) -> None:
    """Print what the search gains and costs."""
    from ..evaluation.search_gain import measure_search, table

    if chosen.count < 1 or chosen.candidates < 2:
        raise ValueError(
            f"bench search needs --count of 1 and --candidates of 2 or more, got {chosen.count} and "
            f"{chosen.candidates}."
        )
    rows = measure_search(chosen.count, chosen.candidates, workers=chosen.workers)
    print(table(rows, chosen.candidates))
