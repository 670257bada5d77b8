"""What ComfyUI's text encoders give the recipes: `python text_native.py MODELS PICTURES OUT`.

A script for ComfyUI's Python. MODELS is the folder of `tiny_published.py`; PICTURES and OUT are
safetensors, OUT with text and pooled embedding by recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.sd
    import tiny_sizes  # noqa: F401  lets ComfyUI load the small files
    import torch
    from safetensors.torch import load_file, save_file

    pack = load_pack()
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
