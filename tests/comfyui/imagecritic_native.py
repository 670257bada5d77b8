"""ImageCritic's LoRA on ComfyUI's own FLUX: `python imagecritic_native.py IN OUT` (safetensors).

A script for ComfyUI's Python. IN holds `model.*`, `scaled.*` (the same as a scaled fp8 file), each
with the LoRA merged into what the weights mean, by the core (`merged.*`, `scaled_merged.*` and, for
weights cast to fp8 on loading, `cast_merged.*`), `noise`, `text`, `pooled`, `references.N`; beside it
lie lora.safetensors and other.safetensors, an ordinary LoRA, both of which are in `stacked_merged.*`.
OUT gets what each way sampled.
"""

from __future__ import annotations

import sys
from pathlib import Path

from comfyui_script import load_pack, start_on_cpu

if __name__ == "__main__":
    start_on_cpu()

    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    pack = load_pack()
    from pack.nodes import adapters
    from pack.nodes.conditioning import reference_conditioning
    from pack.refiner_core.weights.imagecritic_lora import read_imagecritic_lora

    given = load_file(sys.argv[1])
    lora = read_imagecritic_lora(Path(sys.argv[1]).with_name("lora.safetensors"))

    def load(prefix: str, dtype: torch.dtype | None = torch.float32):
        weights = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
        options = {} if dtype is None else {"dtype": dtype}
        return comfy.sd.load_diffusion_model_state_dict(weights, model_options=options)

    def run(model) -> torch.Tensor:
        text = [[given["text"], {"pooled_output": given["pooled"]}]]
        latents = [given["references.0"], given["references.1"]]
        positive = reference_conditioning(text, latents, 3.5)
        noise = given["noise"]
        with torch.no_grad():
            return comfy.sample.sample_custom(
                model, noise, 1.0, comfy.samplers.sampler_object("euler"),
                torch.tensor([1.0, 0.6, 0.0]), positive, [], torch.zeros_like(noise),
                disable_pbar=True, seed=0,
            )  # fmt: skip

    base = load("model.")
    patched = adapters.apply_imagecritic(base, lora, 0.8)
    out = {"plain": run(base), "patched": run(patched), "merged": run(load("merged."))}
    adapters._PLAIN = ()  # as on a quantised base
    bypassed = adapters.apply_imagecritic(base, lora, 0.8)
    assert not bypassed.patches, "weights are left alone"
    out["bypassed"] = run(bypassed)
    out["after"] = run(base)
    adapters._PLAIN = (torch.float32,)
    other = load_file(Path(sys.argv[1]).with_name("other.safetensors"))
    stacked, _ = comfy.sd.load_lora_for_models(base, None, other, 0.7, 0)
    out["stacked"] = run(adapters.apply_imagecritic(stacked, lora, 0.8))
    out |= {"stacked_plain": run(stacked), "stacked_merged": run(load("stacked_merged."))}
    for name, small in (
        ("cast", load("model.", torch.float8_e4m3fn)), ("scaled", load("scaled.", None)),
    ):  # fmt: skip
        on_fp8 = adapters.apply_imagecritic(small, lora, 0.8)
        assert not on_fp8.patches, "fp8 weights are not rounded again"
        out |= {name: run(on_fp8), f"{name}_plain": run(small)}
        out[f"{name}_merged"] = run(load(f"{name}_merged."))
    save_file({k: v.contiguous().clone() for k, v in out.items()}, sys.argv[2])

    def refused(spoil) -> None:
        broken = load("model.")
        spoil(broken.model.diffusion_model.double_blocks[0].img_attn)
        try:
            adapters.apply_imagecritic(broken, lora, 0.8)
        except ValueError as e:
            print(e)

    def pack_weight(attention) -> None:  # as bitsandbytes does
        packed = torch.zeros(attention.proj.weight.numel() // 2, 1, dtype=torch.uint8)
        attention.proj.weight = torch.nn.Parameter(packed, requires_grad=False)

    refused(pack_weight)
    refused(lambda attention: delattr(attention, "proj"))  # as Nunchaku does
