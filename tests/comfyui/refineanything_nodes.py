"""Crop and paste of smthemex/ComfyUI_RefineAnything: `python refineanything_nodes.py PACK IN OUT`.

A script for ComfyUI's Python. PACK is a checkout; IN (safetensors) holds image.N B H W C and mask.N
B H W C; OUT gets the pasted picture of a model that changes nothing (result.N), what the model saw
(seen.N) and the crop's box (box.N). The graph is that of the pack's own example workflow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import torch
    from comfy_extras.nodes_flux import FluxKontextImageScale
    from safetensors.torch import load_file, save_file

    folder = Path(sys.argv[1])
    theirs = load_pack(folder, "theirs")

    given, out = load_file(sys.argv[2]), {}
    for key in [k for k in given if k.startswith("image.")]:
        n = key.removeprefix("image.")
        crop, _, cond = theirs.RefineAnything_PreImg.execute(
            given[key], given[f"mask.{n}"], True
        ).result
        seen = FluxKontextImageScale.execute(crop).result[0]
        result = theirs.RefineAnything_Pasteback.execute(
            seen, cond, 3, 5, False, False, False
        ).result[0]
        out |= {f"result.{n}": result, f"seen.{n}": seen, f"crop.{n}": crop}
        out[f"box.{n}"] = torch.tensor(cond["crop_box"])
        try:
            two = given[key].repeat(2, 1, 1, 1)
            theirs.RefineAnything_PreImg.execute(two, given[f"mask.{n}"], True)
            out[f"batch.{n}"] = torch.tensor(1)
        except Exception:  # what it raises differs; that it does is what is looked at
            out[f"batch.{n}"] = torch.tensor(0)
    save_file({k: v.contiguous().clone() for k, v in out.items()}, sys.argv[3])
