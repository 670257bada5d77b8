"""RefineAnything on ComfyUI's own Qwen-Image in miniature: `python refineanything_native.py OUT`.

A script for ComfyUI's Python. Text encoder and autoencoder are stand-ins of their call shapes, since
ComfyUI loads those at full size only. OUT (JSON) tells what model and text encoder were given.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True  # before anything asks for a device

    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models
    import torch
    from torch.nn import functional as F

    import nodes  # noqa: F401  claims the name before this pack's folder can

    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location(
        "pack", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)
    from pack.nodes.engine import ComfyEngine
    from pack.nodes.types import Refiner
    from pack.refiner_core.pipeline import RefineOptions, RefineRequest, refine
    from pack.refiner_core.recipes import REFINEANYTHING

    generator = torch.Generator().manual_seed(0)
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image", "num_layers": 2, "num_attention_heads": 1,
            "joint_attention_dim": 24, "in_channels": 64,
            "default_ref_method": "index_timestep_zero",
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    inner = model.diffusion_model
    weights = {
        k: torch.randn(v.shape, generator=generator) * 0.05
        for k, v in inner.state_dict().items()
        if v.numel()
    }
    inner.load_state_dict(weights, strict=False)
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )
    texts: list[str] = []
    indices: list[list[int]] = []

    class Clip:
        def tokenize(self, text, images=(), llama_template=None):
            texts.append(text)
            return text

        def encode_from_tokens_scheduled(self, tokens):
            seeded = torch.Generator().manual_seed(len(tokens))
            return [[torch.randn(1, 7, 24, generator=seeded), {}]]

    class Autoencoder:
        def encode(self, pixels):
            return F.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 6, 1, 1)[:, :16, None]

        def decode(self, latent):
            wide = F.interpolate(latent[:, :3, 0], scale_factor=8).clamp(0, 1)
            return wide.movedim(1, -1)[:, None]

    def watch(given):
        indices.append([int(i) for i in given["img_ids"][0, :, 0].unique()])
        return given

    patcher.set_model_post_input_patch(watch)
    draft = torch.rand(1, 3, 200, 260, generator=generator)
    mask = torch.zeros(1, 1, 200, 260)
    mask[..., 80:120, 100:160] = 1
    reference = torch.rand(1, 3, 90, 120, generator=generator)
    options = RefineOptions(steps=2, subject="LOGO", megapixels=0.03)
    out = []
    for references, recipe in (
        ((reference,), REFINEANYTHING),
        ((), REFINEANYTHING),
        ((reference,), REFINEANYTHING.accelerated(4)),
    ):
        texts.clear()
        engine = ComfyEngine(Refiner(recipe, patcher, Autoencoder(), Clip(), name="tiny"))
        result = refine(engine, RefineRequest(draft, references, mask, (), options))
        changed = result.image != draft
        out.append(
            {
                "texts": list(texts), "indices": indices[-1],
                "outside": int((changed & (mask == 0)).sum()), "inside": int(changed.sum()),
            }
        )  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(out))
