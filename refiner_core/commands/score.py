"""`omnirefiner score`: the distance between two pictures."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("score", help="measure the distance between two pictures")
    p.add_argument("a", metavar="A", help="a picture")
    p.add_argument("b", metavar="B", help="the picture to compare it with")
    p.add_argument(
        "--metric",
        choices=("dreamsim", "structural", "text"),
        default="structural",
        help="dreamsim needs --weights; structural is MS-SSIM and edges, without weights (default); "
        "text is the share of B's characters that are not read in A",
    )
    p.add_argument(
        "--weights",
        metavar="FILE",
        help="DreamSim's safetensors, made by `omnirefiner convert dreamsim`",
    )
    p.add_argument("--mask", metavar="FILE", help="of picture A: compare only where it is white")
    p.add_argument(
        "--sizes",
        choices=("refuse", "stretch", "crop"),
        default="refuse",
        help="if the sizes differ: stop, resize B to A's size, or scale B to cover A and crop it",
    )
    p.add_argument("--heatmap", metavar="FILE", help="write a heatmap of the differences over A")
    p.add_argument("--overwrite", action="store_true", help="replace an existing heatmap")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.set_defaults(run=run)


def _scorer(metric: str, weights: str | None, device: str) -> Any:
    if metric != "dreamsim" and weights is not None:
        raise ValueError(f"--weights is only for --metric dreamsim; {metric} has no weights.")
    if metric == "structural":
        from ..scoring.structural import StructuralScorer

        return StructuralScorer()
    if metric == "text":
        from ..scoring.text import TextScorer

        return TextScorer()
    if weights is None:
        from ..scoring.dreamsim_release import release_url

        raise ValueError(
            f"DreamSim needs --weights FILE.safetensors. Download {release_url('ensemble')} and run: "
            "omnirefiner convert dreamsim dreamsim_ensemble_checkpoint.zip OUT.safetensors"
        )
    from ..models.devices import pick_device
    from ..scoring.dreamsim_files import load_dreamsim
    from ..scoring.dreamsim_scorer import DreamSimScorer

    return DreamSimScorer(load_dreamsim(weights, pick_device(device)))


def run(chosen: argparse.Namespace) -> None:
    """Print the distance.

    Raises:
        ValueError: an input cannot be used.
    """
    import torch

    from ..images.image_io import Picture, check_picture_output, load_picture, save_picture
    from ..images.mask_io import load_mask
    from ..images.tensors import to_dtype, to_float
    from ..scoring.comparison import compare
    from ..scoring.heatmap import draw_heat

    out = check_picture_output(chosen.heatmap, chosen.overwrite) if chosen.heatmap else None
    pictures = {"A": load_picture(chosen.a), "B": load_picture(chosen.b)}
    notes = [
        f"{name}: transparent pixels composited over white"
        for name, picture in pictures.items()
        if picture.transparent
    ]
    a, b = (to_float(picture.composited().pixels) for picture in pictures.values())
    mask = load_mask(chosen.mask) if chosen.mask else None
    scorer = _scorer(chosen.metric, chosen.weights, chosen.device)
    with torch.inference_mode():
        result = compare(scorer, a, b, mask, sizes=chosen.sizes, heatmap=out is not None)
    if out is not None:
        assert result.heat is not None
        drawn = Picture(to_dtype(draw_heat(a, result.heat), torch.uint8))
        save_picture(drawn, out, chosen.overwrite)
    if not chosen.json:
        print("\n".join([result.summary(), *notes]))
        return
    report = {
        "metric": scorer.name,
        "distance": result.distance,
        "similarity": result.similarity,
        "a": chosen.a,
        "b": chosen.b,
        "mask": chosen.mask,
        "weights": chosen.weights,
        "notes": notes,
    }
    print(json.dumps(report))
