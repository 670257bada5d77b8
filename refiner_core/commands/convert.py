"""`omnirefiner convert`: turns official releases into safetensors that this program reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DTYPES = ("fp32", "fp16", "bf16")


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("convert", help="turn an official release into safetensors")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    d = kinds.add_parser("dreamsim", help="a DreamSim release, with its LoRA merged")
    d.add_argument(
        "source", metavar="SRC", help="the release's zip, or the folder it was unpacked to"
    )
    d.add_argument("out", metavar="OUT.safetensors")
    d.add_argument("--dtype", choices=_DTYPES, default="fp32", help="how matrices are stored")
    d.add_argument("--variant", help="the variant, if the folder holds several")
    d.add_argument(
        "--backbone",
        metavar="FILE|teacher",
        help="DINO's or DINOv2's own weights, which releases do not include; 'teacher' takes DINO's "
        "from the training checkpoint in the release, which should be the same",
    )
    d.add_argument("--overwrite", action="store_true", help="replace an existing output")
    d.set_defaults(run=run_dreamsim)


def run_dreamsim(chosen: argparse.Namespace) -> None:
    """Convert a release.

    Raises:
        ValueError: it is not a release, or incomplete or damaged; nothing is written then.
    """
    import torch

    from ..scoring.dreamsim_release import TEACHER, convert_release
    from ..storage.output_files import check_output

    out = check_output(chosen.out, chosen.overwrite)
    if out.suffix != ".safetensors":
        raise ValueError(f"The output {out} must end in .safetensors.")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[chosen.dtype]
    variant = convert_release(
        Path(chosen.source).expanduser(),
        out,
        dtype=dtype,
        variant=chosen.variant,
        backbone=chosen.backbone,
    )
    if chosen.backbone == TEACHER:
        print(
            "Note: DINO's weights are the release's teacher, not the file that the package downloads."
        )
    print(f"{out}: DreamSim {variant.name}, {out.stat().st_size / 1e6:.0f} MB")
    print("For ComfyUI, put it into models/dreamsim.")
