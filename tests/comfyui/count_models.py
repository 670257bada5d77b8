"""How often a repair needs each model: `python count_models.py MODELS VAE OUT`.

A script for ComfyUI's Python. MODELS is the folder of `tiny_published.py`, VAE a file. Eight
pictures of two regions each go through a tiny Kontext. OUT gets, as JSON, the models in the order in
which ComfyUI was asked to load them, repeats left out, the calls of the text encoders, and the
steps of the progress, for a first and a second run with the same refiner, for one with another prompt, and
for runs of one region each, with nothing shared between them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import groupby, product
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

    def new_refiner() -> Refiner:
        return Refiner(OMNIREFINER, model, vae, clip, name="tiny", probed=True)

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

    drafts, reference = picture(8, 0), picture(1, 1)
    masks = torch.zeros(2, 1, 96, 256)
    masks[0, ..., 30:60, 20:60] = 1
    masks[1, ..., 30:60, 190:230] = 1
    both = masks.amax(0, keepdim=True)

    def counted(prompt: str, runs: Iterable[tuple[Refiner, torch.Tensor, torch.Tensor]]) -> dict:
        """What runs with these refiners, drafts and masks need."""
        asked.clear(), encoded.clear()
        steps, order = [], []
        options = RefineOptions(prompt=prompt, steps=2, megapixels=0.004)
        for refiner, draft, mask in runs:
            request = RefineRequest(draft, (reference,), mask, (), options)
            with torch.inference_mode():
                result = refine(
                    ComfyEngine(refiner),
                    request,
                    lambda s: s.name == "sample" and steps.append([s.picture, s.region, s.step]),
                )
            order += [[r["picture"], r["region"]] for r in result.report["regions"]]
        return {
            "models": [name for name, _ in groupby(asked)],
            "encoded": len(encoded),
            "steps": steps,
            "order": order,
        }

    shared = new_refiner()
    prompts = ("fix the logo", "fix the logo", "fix the face")
    runs = [counted(prompt, [(shared, drafts, both)]) for prompt in prompts]
    alone = ((new_refiner(), d, m) for d, m in product(drafts.split(1), masks.split(1)))
    Path(sys.argv[3]).write_text(json.dumps([*runs, counted("fix the logo", alone)]))
