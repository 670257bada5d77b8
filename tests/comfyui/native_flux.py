"""Runs ComfyUI's own FLUX for the parity test: `python native_flux.py IN OUT` (safetensors).

A script for ComfyUI's Python; the core is not imported. IN holds the weights (`model.*`), `noise`,
`sigmas`, `times`, `text`, `pooled`, `references.N`, and `guidance` where the weights know it.
OUT gets `velocity.N` for each of the times and `sampled`.
"""

from __future__ import annotations

import sys

from comfyui_script import start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    given = load_file(sys.argv[1])
    weights = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
    patcher = comfy.sd.load_diffusion_model_state_dict(
        weights, model_options={"dtype": torch.float32}
    )
    references = [given[k] for k in sorted(given) if k.startswith("references.")]
    # ComfyUI takes latents as the VAE makes them and scales them itself.
    raw = [patcher.model.process_latent_out(r) for r in references]
    extra = {
        "pooled_output": given["pooled"],
        "reference_latents": raw,
        "reference_latents_method": "index",
        "guidance": float(given["guidance"]) if "guidance" in given else None,
    }
    noise = given["noise"]
    out: dict[str, torch.Tensor] = {}

    with torch.inference_mode():
        native = patcher.model.diffusion_model
        for i, t in enumerate(given["times"]):
            out[f"velocity.{i}"] = native(
                noise.clone(), t.reshape(1), given["text"], given["pooled"], given.get("guidance"),
                ref_latents=[r.clone() for r in references], ref_latents_method="index",
                transformer_options={},
            )  # fmt: skip
        out["sampled"] = comfy.sample.sample_custom(
            patcher, noise, 1.0, comfy.samplers.sampler_object("euler"), given["sigmas"],
            [[given["text"], extra]], [[given["text"], extra]], torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip
        out["sampled"] = patcher.model.process_latent_in(out["sampled"])
    save_file({k: v.contiguous().clone() for k, v in out.items()}, sys.argv[2])
