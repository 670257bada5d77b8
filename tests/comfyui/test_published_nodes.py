"""RefineAnything's community nodes beside ours, in the ComfyUI that they were made for.

Optional: COMFYUI_REFINEANYTHING names a checkout of smthemex/ComfyUI_RefineAnything. Figures go to
standard output (pytest -s).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from refiner_core.recipes.recipe import REFINEANYTHING

from ..faults import checkerboard, displacement
from ..test_published_code import PLACES, checkout, ours_with


def test_their_crop_moves_the_picture(run_in_comfyui: Any, tmp_path: Path) -> None:
    """The crop is cut to a Kontext size in its centre, and the result is spread over the whole crop."""
    pack = checkout("COMFYUI_REFINEANYTHING", "__init__.py")
    data = {}
    for n, (size, box) in enumerate(PLACES):
        mask = torch.zeros(1, size.height, size.width, 3)
        mask[:, box.y0 : box.y1, box.x0 : box.x1] = 1
        data |= {f"image.{n}": checkerboard(size).movedim(1, -1).contiguous(), f"mask.{n}": mask}
    save_file(data, tmp_path / "in.safetensors")
    script = Path(__file__).with_name("refineanything_nodes.py")
    run_in_comfyui(script, pack, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    for n, (size, box) in enumerate(PLACES):
        start = checkerboard(size)
        inner = (box.x0 + 8, box.y0 + 8, box.x1 - 8, box.y1 - 8)
        theirs = displacement(start, out[f"result.{n}"].movedim(-1, 1), inner)
        own, _ = ours_with(REFINEANYTHING, start, box)
        ours = displacement(start, own, inner)
        seen, crop = out[f"seen.{n}"].shape[1:3], out[f"crop.{n}"].shape[1:3]
        print(
            f"published nodes: {size} {tuple(box)}: crop {crop[1]}x{crop[0]} cut to {seen[1]}x{seen[0]}, "
            f"moved by up to {theirs:.1f} px; ours {ours:.2f} px; a batch of two works: "
            f"{bool(out[f'batch.{n}'])}, ours: True (tests/test_faults.py)"
        )
        assert ours < 0.25
        assert theirs > ours
        assert not bool(out[f"batch.{n}"])
