"""`omnirefiner merge`: merges LoRAs into a base model and writes the result as one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_TYPES = ("bf16", "fp16", "fp32")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("merge", help="merge LoRAs into a diffusion model")
    p.add_argument(
        "--base",
        required=True,
        metavar="REFINER",
        help="nano, a FLUX.1 file or a diffusers folder",
    )
    p.add_argument(
        "--lora",
        action="append",
        required=True,
        metavar="FILE:STRENGTH",
        help="a LoRA to merge; can be given several times",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    p.add_argument(
        "--layout",
        choices=("bfl", "diffusers"),
        default="bfl",
        help="names of the weights; ComfyUI reads both (default: %(default)s)",
    )
    p.add_argument(
        "--dtype", choices=_TYPES, default="bf16", help="type of the weights (default: %(default)s)"
    )
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Merge the LoRAs and write the file."""
    from ..storage.output_files import check_output
    from ..training.merge_lora import merge

    out = check_output(chosen.out, chosen.overwrite)
    count = merge(chosen.base, chosen.lora, out, chosen.layout, chosen.dtype)
    print(f"wrote {out} ({count} weights changed)")
    print(f"Run it with --refiner {Path(out).name} and the recipe of the LoRA.")
