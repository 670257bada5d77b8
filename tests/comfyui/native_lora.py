"""Applies a LoRA by ComfyUI's stock loader: `python native_lora.py IN LORA OUT` (safetensors).

A script for ComfyUI's Python; the core is not imported. IN holds the weights (`model.*`), `x`, `t`,
`text`, `pooled`, `guidance` and `references.N`; OUT gets `velocity` and how many keys were applied.
"""

from __future__ import annotations

import sys

from comfyui_script import start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.model_management
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    given = load_file(sys.argv[1])
    weights = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
    model = comfy.sd.load_diffusion_model_state_dict(
        weights, model_options={"dtype": torch.float32}
    )
    model, _ = comfy.sd.load_lora_for_models(model, None, load_file(sys.argv[2]), 1.0, 0)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    references = [given[k] for k in sorted(given) if k.startswith("references.")]
    with torch.inference_mode():
        velocity = model.model.diffusion_model(
            given["x"], given["t"], given["text"], given["pooled"], given["guidance"],
            ref_latents=references, ref_latents_method="index", transformer_options={},
        )  # fmt: skip
    count = torch.tensor([len(model.patches)])
    save_file({"velocity": velocity.contiguous().clone(), "patches": count}, sys.argv[3])
