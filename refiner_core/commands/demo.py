"""`omnirefiner demo`: repairs the examples in the package and prints how good the results are."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command's options."""
    p = commands.add_parser("demo", help="repair the built-in examples without any download")
    p.add_argument(
        "--out",
        default="omnirefiner-demo",
        metavar="DIR",
        help="the folder to write to (default: %(default)s)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Repair every example with the embedded model. Results of an earlier run are replaced."""
    import torch

    from ..images.demo_cases import CASES, comparison, load_case
    from ..images.image_io import Picture, save_picture
    from ..nano.nano_engine import load_nano
    from ..repair.pipeline import refine
    from ..repair.request import RefineOptions, RefineRequest
    from ..scoring.pixels import masked_psnr
    from ..storage.output_files import atomic_path, write_text

    engine = load_nano()
    out = Path(chosen.out)
    print(f"{'case':<10}{'seconds':>9}{'draft dB':>10}{'refined dB':>12}{'max diff outside':>18}")
    for folder in sorted(p for p in CASES.iterdir() if p.is_dir()):
        case = load_case(folder)
        begun = time.perf_counter()
        result = refine(
            engine,
            RefineRequest(
                case.draft,
                (case.reference,),
                case.mask,
                (case.reference_mask,),
                RefineOptions(seed=chosen.seed),
            ),
        )
        seconds = time.perf_counter() - begun
        outside = ((result.image.int() - case.draft.int()).abs() * (case.mask == 0)).max()
        target = out / case.name
        target.mkdir(parents=True, exist_ok=True)
        mask = (case.mask * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        for name, pixels in (
            ("draft", case.draft),
            ("reference", case.reference),
            ("mask", mask),
            ("refined", result.image),
        ):
            save_picture(Picture(pixels), target / f"{name}.png", overwrite=True)
        with atomic_path(target / "comparison.png") as path:
            comparison(case, result.image).save(path)
        write_text(target / "report.json", json.dumps(result.report, indent=2))
        before = float(masked_psnr(case.draft, case.target, case.mask))
        after = float(masked_psnr(result.image, case.target, case.mask))
        print(f"{case.name:<10}{seconds:>9.1f}{before:>10.2f}{after:>12.2f}{int(outside):>18}")
    print(f"The pictures are in {out}/<case>/. comparison.png shows them side by side.")
