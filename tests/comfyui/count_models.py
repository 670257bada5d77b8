"""How often a repair needs each model: `python count_models.py MODELS VAE OUT`.

A script for ComfyUI's Python. MODELS is the folder of `tiny_published.py`, VAE a file. Eight
pictures of two regions each go through a tiny Kontext. OUT gets, as JSON, the models in the order in
which ComfyUI was asked to load them, repeats left out, the calls of the text encoders, and the
steps of the progress, for a first and a second run with the same refiner, and for one with another prompt.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.model_management as mm
    import comfy.sd
    import comfy.utils
    import tiny_sizes  # noqa: F401  lets ComfyUI load the small files
    import torch

    pack = load_pack()
    from pack.nodes.engine import ComfyEngine
    from pack.nodes.types import Refiner
    from pack.refiner_core.recipes.recipe import OMNIREFINER
    from pack.refiner_core.repair.pipeline import refine
    from pack.refiner_core.repair.request import RefineOptions, RefineRequest

    models = Path(sys.argv[1])
    texts = [str(models / "text_encoders" / f"tiny_{n}.safetensors") for n in ("clip_l", "t5xxl")]
    clip = comfy.sd.load_clip(texts, None, comfy.sd.CLIPType.FLUX)
    model = comfy.sd.load_diffusion_model(str(models / "diffusion_models/tiny_flux.safetensors"))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(sys.argv[2]))
    refiner = Refiner(OMNIREFINER, model, vae, clip, name="tiny", probed=True)
    asked: list[str] = []
    encoded: list[int] = []
    names = {id(clip.patcher.model): "text", id(model.model): "transformer"}
    names[id(vae.patcher.model)] = "vae"
    load, encode = mm.load_models_gpu, clip.encode_from_tokens_scheduled

    def load_counted(loaded, *args, **kwargs):
        asked.extend(names[id(m.model)] for m in loaded if id(m.model) in names)
        return load(loaded, *args, **kwargs)

    def encode_counted(*args, **kwargs):
        encoded.append(1)
        return encode(*args, **kwargs)

    mm.load_models_gpu, clip.encode_from_tokens_scheduled = load_counted, encode_counted

    def picture(count: int, seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        return torch.rand(count, 3, 96, 256, generator=g)

    mask = torch.zeros(1, 1, 96, 256)
    mask[..., 30:60, 20:60] = 1
    mask[..., 30:60, 190:230] = 1

    def run(prompt: str) -> dict:
        asked.clear(), encoded.clear()
        steps = []
        options = RefineOptions(prompt=prompt, steps=2, megapixels=0.004)
        request = RefineRequest(picture(8, 0), (picture(1, 1),), mask, (), options)
        with torch.inference_mode():
            result = refine(
                ComfyEngine(refiner),
                request,
                lambda s: s.name == "sample" and steps.append([s.picture, s.region, s.step]),
            )
        order = [[r["picture"], r["region"]] for r in result.report["regions"]]
        return {
            "models": [name for name, _ in groupby(asked)],
            "encoded": len(encoded),
            "steps": steps,
            "order": order,
        }

    runs = [run("fix the logo"), run("fix the logo"), run("fix the face")]
    Path(sys.argv[3]).write_text(json.dumps(runs))
