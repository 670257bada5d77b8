"""The options that name a refiner, shared by every command that runs one."""

from __future__ import annotations

import argparse
from typing import Any


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Add the group `model`."""
    model = p.add_argument_group("model")
    model.add_argument(
        "--refiner", default="nano", metavar="nano|DIR|FILE",
        help="the embedded model, a diffusers folder, or a FLUX.1-Kontext single file",
    )  # fmt: skip
    model.add_argument(
        "--recipe", metavar="NAME|FILE",
        help="omnirefiner, imagecritic, kontext, or a .json or .toml of your own; default by --lora",
    )  # fmt: skip
    model.add_argument("--detail-encoder", metavar="FILE", help="ImageCritic's detail encoder")
    model.add_argument("--lora", action="append", default=[], metavar="FILE:STRENGTH")
    model.add_argument("--clip-l", metavar="FILE", help="CLIP-L text encoder for a single file")
    model.add_argument("--t5", metavar="FILE", help="T5-XXL text encoder for a single file")
    model.add_argument("--vae", metavar="FILE", help="FLUX autoencoder (ae.safetensors)")
    model.add_argument("--tokenizers", metavar="DIR", help="folder with the two tokenizers")
    model.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def model_arguments(chosen: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, as the arguments of `load_engine`."""
    return {
        "refiner": chosen.refiner, "loras": tuple(chosen.lora), "device": chosen.device,
        "recipe": chosen.recipe, "clip_l": chosen.clip_l, "t5": chosen.t5, "vae": chosen.vae,
        "tokenizers": chosen.tokenizers, "detail_encoder": chosen.detail_encoder,
    }  # fmt: skip
