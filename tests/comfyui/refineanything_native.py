"""RefineAnything on ComfyUI's own Qwen-Image in miniature: `python refineanything_native.py IN OUT`.

A script for ComfyUI's Python. IN (safetensors) holds `model.*` under diffusers' names, `draft`,
`mask`, `reference` B C H W, `text` and `negative`. Text encoder and autoencoder are stand-ins of
their call shapes, since ComfyUI loads those at full size only. OUT gets, for each way to run the
recipe, what the network was given and returned (`WAY.*`) and, as metadata, what the text encoder was.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn import functional as F

    pack = load_pack()
    from pack.nodes.engine import ComfyEngine
    from pack.nodes.types import Refiner
    from pack.refiner_core.recipes.recipe import REFINEANYTHING
    from pack.refiner_core.repair.pipeline import refine
    from pack.refiner_core.repair.request import RefineOptions, RefineRequest

    given = load_file(sys.argv[1])
    weights = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image", "num_layers": 2, "num_attention_heads": 1,
            "joint_attention_dim": given["text"].shape[-1], "in_channels": 64,
            "default_ref_method": "index_timestep_zero",
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    lost = model.diffusion_model.load_state_dict(weights, strict=False)
    assert set(lost.missing_keys) <= {"__index_timestep_zero__"} and not lost.unexpected_keys, lost
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )
    seen: dict[str, list[torch.Tensor]] = {}
    texts: list[str] = []
    shown: list[list[tuple[int, int]]] = []

    def keep(name: str, tensor: torch.Tensor) -> None:
        seen.setdefault(name, []).append(tensor.detach().clone().contiguous())

    inner = model.diffusion_model
    inner.register_forward_pre_hook(lambda _, given: keep("time", given[1]))
    inner.register_forward_hook(lambda _m, _a, out: keep("velocity", out))
    inner.img_in.register_forward_pre_hook(lambda _, given: keep("tokens", given[0]))
    inner.pe_embedder.register_forward_pre_hook(lambda _, given: keep("ids", given[0]))
    # cos and sin of every position, as complex numbers are stored.
    inner.pe_embedder.register_forward_hook(lambda _m, _a, out: keep("rope", out[0, 0, ..., :, 0]))

    class Clip:
        def tokenize(self, text, images=(), llama_template=None):
            texts.append(llama_template.format(text))
            shown.append([tuple(i.shape[1:3]) for i in images])
            return text

        def encode_from_tokens_scheduled(self, tokens):
            return [[given["negative" if tokens.endswith("> ") else "text"], {}]]

    class Autoencoder:
        def encode(self, pixels):
            return F.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 6, 1, 1)[:, :16, None]

        def decode(self, latent):
            keep("latent", latent)
            wide = F.interpolate(latent[:, :3, 0], scale_factor=8).clamp(0, 1)
            return wide.movedim(1, -1)[:, None]

    draft, mask, reference = given["draft"], given["mask"], given["reference"]
    options = RefineOptions(steps=2, subject="LOGO", megapixels=0.0625, model_mask=0.0)
    quick = replace(REFINEANYTHING.accelerated(4), name="quick")
    out: dict[str, torch.Tensor] = {}
    told = {}
    for way, references, recipe in (
        ("both", (reference,), REFINEANYTHING), ("without", (), REFINEANYTHING),
        ("quick", (reference,), quick),
    ):  # fmt: skip
        for record in (seen, texts, shown):
            record.clear()
        refiner = Refiner(recipe, patcher, Autoencoder(), Clip(), name="tiny", probed=True)
        result = refine(ComfyEngine(refiner), RefineRequest(draft, references, mask, (), options))
        changed = result.image != draft
        out |= {f"{way}.{k}.{i}": t for k, found in seen.items() for i, t in enumerate(found)}
        told[way] = {
            "texts": list(texts), "shown": list(shown),
            "outside": int((changed & (mask == 0)).sum()), "inside": int(changed.sum()),
            "report": result.report["regions"][0],
        }  # fmt: skip
    save_file(out, sys.argv[2], {"told": json.dumps(told)})
