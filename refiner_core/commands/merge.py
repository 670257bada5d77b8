"""`omnirefiner merge`: bakes LoRAs into a base and writes the result as one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_TYPES = ("bf16", "fp16", "fp32")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("merge", help="bake LoRAs into a diffusion model")
    p.add_argument("--base", required=True, metavar="REFINER", help="nano, a FLUX file or a folder")
    p.add_argument(
        "--lora", action="append", required=True, metavar="FILE:STRENGTH", help="may be given often"
    )
    p.add_argument("--out", required=True, metavar="FILE", help="a .safetensors file")
    p.add_argument("--layout", choices=("bfl", "diffusers"), default="bfl",
                   help="spelling of the keys; ComfyUI reads both; default: %(default)s")  # fmt: skip
    p.add_argument("--dtype", choices=_TYPES, default="bf16", help="default: %(default)s")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Merge and write."""
    from ..merge import merge
    from ..storage.output_files import check_output

    out = check_output(chosen.out, chosen.overwrite)
    count = merge(chosen.base, chosen.lora, out, chosen.layout, chosen.dtype)
    print(f"wrote {out} ({count} weights changed)")
    print(f"sampled as its base: --refiner {Path(out).name} with the LoRA's recipe")
