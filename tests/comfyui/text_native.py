"""What ComfyUI's text encoders give the recipes: `python text_native.py MODELS PICTURES OUT`.

A script for ComfyUI's Python. MODELS is the folder of `tiny_published.py`; PICTURES and OUT are
safetensors, OUT with text and pooled embedding by recipe.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True  # before anything asks for a device

    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    import nodes  # noqa: F401  claims the name before this pack's folder can

    here = Path(__file__).parent
    sys.path.append(str(here))
    import tiny_sizes  # noqa: F401  lets ComfyUI load the small files

    root = here.parents[1]
    spec = importlib.util.spec_from_file_location(
        "pack", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)
    from pack.nodes.conditioning import DetailPatcher, _detail, encode_prompt
    from pack.nodes.types import Refiner
    from pack.refiner_core.models.detail_encoder import load_detail_encoder
    from pack.refiner_core.recipes.recipe import RECIPES

    models, pictures = Path(sys.argv[1]), load_file(sys.argv[2])
    files = [str(models / "text_encoders" / f"tiny_{n}.safetensors") for n in ("clip_l", "t5xxl")]
    clip = comfy.sd.load_clip(
        files, None, comfy.sd.CLIPType.FLUX, model_options={"dtype": torch.float32}
    )
    detail = load_detail_encoder(models / "clip_vision" / "tiny_detail_encoder.safetensors")[0]
    out = {}
    with torch.inference_mode():
        for name in ("omnirefiner", "kontext", "imagecritic"):
            recipe = RECIPES[name]
            refiner = Refiner(recipe, None, None, clip, detail=DetailPatcher(detail))
            job = SimpleNamespace(
                prompt=recipe.text(None),
                input=lambda role: SimpleNamespace(image=pictures[role]),
            )
            found = _detail(refiner, job) if recipe.triggers else encode_prompt(refiner, job.prompt)
            out[f"{name}.text"], out[f"{name}.pooled"] = found[0][0], found[0][1]["pooled_output"]
    save_file({k: v.float().contiguous().clone() for k, v in out.items()}, sys.argv[3])
