"""Benchmark `comfyui`: ComfyUI's own FLUX and another pack's crop and stitch for comparison.

Run it with the Python of a ComfyUI installation: the core does not depend on ComfyUI.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refiner_core.images.crop import crop, stitch_into, uncrop
from refiner_core.images.geometry import KONTEXT_BUCKETS, Extent, plan_crop
from refiner_core.images.masks import find_regions

from .measuring import Figure, median_seconds, noise_picture, peak_megabytes, print_figures


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("comfyui", help="comparison with ComfyUI (run with ComfyUI's Python)")
    p.add_argument("--comfyui", metavar="DIR", required=True, help="ComfyUI's folder")
    p.add_argument("--rounds", type=int, default=5, help="timed runs; the median is reported")
    p.add_argument(
        "--crop-and-stitch", metavar="DIR", help="a checkout of ComfyUI-Inpaint-CropAndStitch"
    )
    p.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Print the comparisons.

    Raises:
        ValueError: ComfyUI cannot be imported from the folder by this Python.
    """
    sys.path.insert(0, chosen.comfyui)
    try:
        options = importlib.import_module("comfy.cli_args").args
    except ModuleNotFoundError as e:
        raise ValueError(
            f"{e}. Run this benchmark with ComfyUI's Python and name ComfyUI's folder with "
            f"--comfyui, got {chosen.comfyui}."
        ) from e
    # On a CPU ComfyUI otherwise splits attention into parts; nano does without that in the nodes, too.
    options.cpu, options.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, seconds of the processor")
    found = list(print_figures(_figures(chosen)))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found))


def _figures(chosen: argparse.Namespace) -> Iterator[Figure]:
    yield _against_native_flux(chosen.rounds)
    yield _against_sampler(chosen.rounds)
    if chosen.crop_and_stitch:
        yield from _against_crop_and_stitch(chosen.crop_and_stitch, chosen.rounds)


@torch.inference_mode()
def _against_native_flux(rounds: int) -> Figure:
    """One velocity of nano, the same tokens through ComfyUI's FLUX and through the core."""
    from safetensors.torch import load_file

    from refiner_core.models.kontext import Conditioning, velocity
    from refiner_core.nano import NANO_WEIGHTS
    from refiner_core.nano.nano_engine import load_nano
    from tests.synthetic import zero_text

    core = load_nano().model
    state = {k: v for k, v in load_file(NANO_WEIGHTS).items() if not k.startswith("codec.")}
    sd = importlib.import_module("comfy.sd")
    options = {"dtype": torch.float32}
    native = sd.load_diffusion_model_state_dict(state, model_options=options).model.diffusion_model
    generator = torch.Generator().manual_seed(0)
    x, draft, reference = (torch.randn(1, 16, 64, 64, generator=generator) for _ in range(3))
    text, pooled = zero_text(core)
    conditioning = Conditioning((draft, reference), (1, 2), text, pooled)

    def our_run() -> Tensor:
        return velocity(core, x, 0.7, conditioning)

    def native_run() -> Tensor:
        return native(
            x, torch.tensor([0.7]), text, pooled, None, ref_latents=[draft, reference],
            ref_latents_method="index", transformer_options={},
        )  # fmt: skip

    apart = float((our_run() - native_run()).abs().max())
    ours, theirs = (median_seconds(r, rounds, time.process_time) for r in (our_run, native_run))
    print(f"velocities of nano through ComfyUI's FLUX and the core: largest difference {apart:.1e}")
    return Figure("a step of nano both ways in ComfyUI's FLUX, 256 px", theirs, ours, "the core")


@torch.inference_mode()
def _against_sampler(rounds: int) -> Figure:
    """nano through the pack's engine and through ComfyUI's sampler with the same conditioning."""
    from safetensors.torch import load_file

    from tests.comfyui.comfyui_script import load_pack

    load_pack()
    conditioning, engine, types = (
        importlib.import_module(f"pack.nodes.{name}")
        for name in ("conditioning", "engine", "types")
    )
    interfaces = importlib.import_module("pack.refiner_core.interfaces")
    recipes = importlib.import_module("pack.refiner_core.recipes.recipe")
    weights = importlib.import_module("pack.refiner_core.nano").NANO_WEIGHTS
    state = {k: v for k, v in load_file(weights).items() if not k.startswith("codec.")}
    comfy, samplers = (importlib.import_module(f"comfy.{name}") for name in ("sd", "samplers"))
    sampling = importlib.import_module("comfy.sample")
    model = comfy.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    noise, draft, reference = (torch.randn(1, 16, 64, 64, generator=generator) for _ in range(3))
    params = model.model.diffusion_model.params
    text = [
        [
            torch.zeros(1, 1, params.context_in_dim),
            {"pooled_output": torch.zeros(1, params.vec_in_dim)},
        ]
    ]
    roles = enumerate((("draft", draft), ("reference", reference)), 1)
    picture, sigmas = torch.zeros(1, 3, 8, 8), torch.linspace(1, 0, 5)
    inputs = tuple(interfaces.CleanInput(role, picture, latent, i) for i, (role, latent) in roles)
    job = interfaces.SamplingJob(inputs, sigmas, "", 2.5, 0, start=noise)
    refiner = types.Refiner(recipes.OMNIREFINER, model, None, conditioning=text, probed=True)
    ours = engine.ComfyEngine(refiner)
    positive = conditioning.reference_conditioning(text, [draft, reference], 2.5)

    def our_run() -> Tensor:
        return ours.sample(job, lambda *_: None)

    def their_run() -> Tensor:
        return sampling.sample_custom(
            model,
            noise,
            1.0,
            samplers.sampler_object("euler"),
            sigmas,
            positive,
            [],
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )

    apart = float((our_run() - their_run()).abs().max())
    spent, other = (median_seconds(r, rounds, time.process_time) for r in (our_run, their_run))
    print(f"latents of this pack and of ComfyUI's sampler: largest difference {apart:.1e}")
    return Figure(
        "four steps of nano in ComfyUI, 256 px", spent, other, "KSampler's, same conditioning"
    )


def _against_crop_and_stitch(folder: str, rounds: int) -> Iterator[Figure]:
    sys.path.insert(0, folder)
    theirs = importlib.import_module("inpaint_cropandstitch")
    image8, mask = noise_picture(4096)
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
        stitched = image.clone()
        stitch_into(stitched, patch, region, feather_pixels=32)
        return stitched

    ours, other = (median_seconds(r, rounds, time.process_time) for r in (our_run, their_run))
    title, what = "crop and stitch, 256 px region in 4096 px", "Inpaint-CropAndStitch"
    yield Figure(title, ours, other, what)
    peaks = (peak_megabytes(work) for work in (our_run, their_run))
    yield Figure(f"{title}, peak memory", *peaks, what, "MB")
