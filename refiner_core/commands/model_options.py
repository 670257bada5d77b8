"""The options that select a refiner, shared by every command that runs one."""

from __future__ import annotations

import argparse
from typing import Any


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Add the group `model`."""
    model = p.add_argument_group("model")
    model.add_argument(
        "--refiner",
        default="nano",
        metavar="nano|DIR|FILE",
        help="the embedded model, a diffusers folder, a FLUX.1 Kontext file or a nano that you "
        "trained (default: %(default)s)",
    )
    model.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="omnirefiner, imagecritic, kontext, nano, or a .json or .toml file of your own "
        "(default: follows from --refiner and --lora)",
    )
    model.add_argument(
        "--detail-encoder", metavar="FILE", help="the detail encoder of the recipe imagecritic"
    )
    model.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE:STRENGTH",
        help="a LoRA to merge into the model; can be given several times",
    )
    model.add_argument("--clip-l", metavar="FILE", help="CLIP-L text encoder")
    model.add_argument("--t5", metavar="FILE", help="T5-XXL text encoder")
    model.add_argument("--vae", metavar="FILE", help="FLUX VAE (ae.safetensors)")
    model.add_argument(
        "--tokenizers", metavar="DIR", help="folder with the tokenizers of CLIP-L and T5-XXL"
    )
    model.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where the model runs (default: %(default)s)",
    )


def model_arguments(chosen: argparse.Namespace) -> dict[str, Any]:
    """The chosen options as the arguments of `load_engine`."""
    return {
        "refiner": chosen.refiner,
        "loras": tuple(chosen.lora),
        "device": chosen.device,
        "recipe": chosen.recipe,
        "clip_l": chosen.clip_l,
        "t5": chosen.t5,
        "vae": chosen.vae,
        "tokenizers": chosen.tokenizers,
        "detail_encoder": chosen.detail_encoder,
    }
