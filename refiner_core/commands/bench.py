"""`omnirefiner bench`: what the parts cost, side by side in one run."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..crop import crop, stitch, uncrop
from ..geometry import KONTEXT_BUCKETS, Extent, plan_crop
from ..masks import find_regions
from . import bench_data, bench_dreamsim


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("bench", help="measure overhead, scaling with picture size, and peers")
    p.add_argument("--rounds", type=int, default=5, help="timed runs, the median counts")
    p.add_argument(
        "--crop-and-stitch", metavar="DIR",
        help="a checkout of ComfyUI-Inpaint-CropAndStitch to run beside; needs ComfyUI's Python, "
        "started in ComfyUI's folder",
    )  # fmt: skip
    p.set_defaults(run=run)
    subjects = p.add_subparsers(dest="subject", metavar="SUBJECT")
    found = subjects.add_parser("search", help="what the best of N gains, with nano, held out")
    found.add_argument("--count", type=int, default=64, help="scenes; default: %(default)s")
    found.add_argument("--candidates", type=int, default=8, help="N; default: %(default)s")
    found.add_argument("--workers", type=int, default=2, help="processes; default: %(default)s")
    found.set_defaults(run=run_search)
    bench_dreamsim.add_subject(subjects)
    bench_data.add_subject(subjects)


def _median(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _picture(side: int) -> tuple[Tensor, Tensor]:
    """A uint8 picture and a mask with a 256 px region (or a third of it) in the middle."""
    values = np.random.default_rng(0).integers(0, 255, (1, 3, side, side), dtype=np.uint8)
    mask = torch.zeros(1, 1, side, side)
    half, mid = min(128, side // 3), side // 2
    mask[..., mid - half : mid + half, mid - half : mid + half] = 1
    return torch.from_numpy(values), mask


def _around_the_model(rounds: int) -> None:
    from ..nano.engine import load_nano
    from ..pipeline import RefineOptions, RefineRequest, refine

    engine = load_nano()
    draft, mask = _picture(512)
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


def _picture_size(rounds: int) -> None:
    print("\nPlan + crop + stitch of a 256 px region, by picture size (uint8)")
    print(
        f"{'picture':<12}{'find region s':>15}{'crop+uncrop s':>15}{'stitch in place s':>19}{'copy s':>9}"
    )
    for side in (512, 2048, 8192):
        image, mask = _picture(side)
        found = _median(lambda m=mask: find_regions(m), rounds)
        region = find_regions(mask)[0]
        plan = plan_crop(Extent(side, side), region.box, KONTEXT_BUCKETS, 1.5)
        work = _median(lambda i=image, p=plan, r=region: uncrop(crop(i, p), p, r), rounds)
        patch = uncrop(crop(image, plan), plan, region)
        b = plan.inside
        window = image[..., b.y0 : b.y1, b.x0 : b.x1]
        local = type(region)(region.box.moved(-b.x0, -b.y0), region.mask)
        sewn = _median(lambda w=window, p=patch, r=local: stitch(w, p, r), rounds)
        copied = _median(lambda i=image: i.clone(), rounds)
        print(f"{side:<12}{found:>15.4f}{work:>15.4f}{sewn:>19.4f}{copied:>9.4f}")


def _peak(work: Callable[[], object]) -> float:
    """MB of resident memory that `work` adds at its peak, in a forked process (Linux, macOS)."""
    import resource

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def measure() -> None:
        torch.set_num_threads(1)  # a forked OpenMP pool would hang
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    process = context.Process(target=measure)
    process.start()
    added = results.get()
    process.join()
    return added / 1024


def _against_crop_and_stitch(folder: str, rounds: int) -> None:
    # The peer lives inside ComfyUI: run this with ComfyUI's Python, in ComfyUI's folder.
    sys.path.insert(0, folder)
    importlib.import_module("comfy.cli_args").args.cpu = True
    theirs = importlib.import_module("inpaint_cropandstitch")
    image8, mask = _picture(4096)
    image = image8.float() / 255
    bhwc, bhw = image.movedim(1, -1).contiguous(), mask[:, 0]
    cropper, stitcher = theirs.InpaintCropImproved(), theirs.InpaintStitchImproved()
    settings = {
        "downscale_algorithm": "bilinear", "upscale_algorithm": "bicubic", "preresize": False,
        "preresize_mode": "ensure minimum resolution", "preresize_min_width": 1024,
        "preresize_min_height": 1024, "preresize_max_width": 16384, "preresize_max_height": 16384,
        "mask_fill_holes": True, "mask_expand_pixels": 0, "mask_invert": False,
        "mask_blend_pixels": 32, "mask_hipass_filter": 0.1, "extend_for_outpainting": False,
        "extend_up_factor": 1.0, "extend_down_factor": 1.0, "extend_left_factor": 1.0,
        "extend_right_factor": 1.0, "context_from_mask_extend_factor": 1.5,
        "output_resize_to_target_size": True, "output_target_width": 1024,
        "output_target_height": 1024, "output_padding": "32", "device_mode": "cpu (compatible)",
    }  # fmt: skip

    def their_run() -> object:
        cut = cropper.inpaint_crop(image=bhwc, mask=bhw, optional_context_mask=None, **settings)
        return stitcher.inpaint_stitch(cut[0], cut[1])

    def our_run() -> object:
        region = find_regions(mask)[0]
        plan = plan_crop(Extent(4096, 4096), region.box, KONTEXT_BUCKETS, 1.5)
        patch = uncrop(crop(image, plan), plan, region)
        return stitch(image, patch, region, feather_pixels=32)

    ours, other = _median(our_run, rounds), _median(their_run, rounds)
    print("\nCrop + stitch of a 256 px region in a 4096 px float picture")
    print(f"ours {ours:.3f} s, Inpaint-CropAndStitch {other:.3f} s, ratio {other / ours:.2f}")
    ours_mb, their_mb = _peak(our_run), _peak(their_run)
    print(f"peak memory added: ours {ours_mb:.0f} MB, theirs {their_mb:.0f} MB")


def run(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    _around_the_model(chosen.rounds)
    _picture_size(chosen.rounds)
    if chosen.crop_and_stitch:
        _against_crop_and_stitch(chosen.crop_and_stitch, chosen.rounds)


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
