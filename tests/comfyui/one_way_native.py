"""One-way attention in ComfyUI: `python one_way_native.py IN OUT` (safetensors).

A script for ComfyUI's Python. IN holds the weights (`model.*`), `noise` of several samples, `sigmas`,
`text`, `pooled`, `guidance` and `references.N`. OUT gets what the engine samples: `WAY.TYPE` for each
way of attention and type of weights, one sample; `batch` all samples one way, and `rounds` the same in
two rounds; `tiles` all samples one way on tiles of 8 latent pixels, with `references.0` and its
mirror image; `alone` one sample by ComfyUI's own sampler; `passes` the image tokens of every pass of the
batch; `bytes` of the cache, estimated and counted.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from comfyui_script import load_pack, start_on_cpu

TYPES = ("float32", "bfloat16", "float8_e4m3fn")

if __name__ == "__main__":
    start_on_cpu()

    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file
    from torch import Tensor

    pack = load_pack()
    from pack.nodes import one_way
    from pack.nodes.conditioning import reference_conditioning
    from pack.nodes.engine import ComfyEngine
    from pack.nodes.types import Refiner
    from pack.refiner_core.interfaces import CleanInput, SamplingJob
    from pack.refiner_core.recipes.recipe import OMNIREFINER

    given = load_file(sys.argv[1])
    weights = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
    noise, sigmas, guidance = given["noise"], given["sigmas"], float(given["guidance"])
    text = [[given["text"], {"pooled_output": given["pooled"]}]]

    def load(kind: str) -> Any:
        options = {"dtype": getattr(torch, kind)}
        own = {k: v.clone() for k, v in weights.items()}  # the loader rearranges some in place
        return comfy.sd.load_diffusion_model_state_dict(own, model_options=options)

    def engine_of(model: Any, attention: str, tile: int = 0) -> ComfyEngine:
        recipe = replace(OMNIREFINER, attention=attention, tile=tile)
        return ComfyEngine(Refiner(recipe, model, None, conditioning=text, probed=True))

    def job_of(model: Any, rows: int) -> SamplingJob:
        names = sorted(k for k in given if k.startswith("references."))
        # ComfyUI takes latents as the VAE makes them and scales them itself.
        raw = tuple(model.model.process_latent_out(given[n]).repeat(rows, 1, 1, 1) for n in names)
        picture = torch.zeros(1, 3, 8, 8)
        roles = enumerate(zip(("draft", "reference"), raw, strict=True), 1)
        return SamplingJob(
            inputs=tuple(CleanInput(role, picture, latent, i) for i, (role, latent) in roles),
            sigmas=sigmas,
            prompt="",
            guidance=guidance,
            seed=0,
            start=noise[:rows],
        )

    def sampled(model: Any, latent: Tensor) -> Tensor:
        return model.model.process_latent_in(latent)

    def nothing(*_: Any) -> None:
        pass

    def with_euler(patched: Any, job: SamplingJob) -> Tensor:
        """ComfyUI's own sampler on a patched model."""
        positive = reference_conditioning(text, list(job.latents), guidance)
        return comfy.sample.sample_custom(
            patched,
            noise[:1],
            1.0,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            positive,
            [],
            torch.zeros_like(noise[:1]),
            disable_pbar=True,
            seed=0,
        )

    out: dict[str, Tensor] = {}
    with torch.inference_mode():
        for kind in TYPES:
            model = load(kind)
            for attention in ("one way", "both ways"):
                latent = engine_of(model, attention).sample(job_of(model, 1), nothing)
                out[f"{attention}.{kind}"] = sampled(model, latent)
        model = load("float32")
        passes: list[int] = []
        network = model.model.diffusion_model
        hook = network.img_in.register_forward_pre_hook(
            lambda _m, inputs: passes.append(inputs[0].shape[0] * inputs[0].shape[1])
        )
        latent = engine_of(model, "one way").sample(job_of(model, len(noise)), nothing)
        hook.remove()
        out["batch"], out["passes"] = sampled(model, latent), torch.tensor(passes)
        engine, job = engine_of(model, "one way"), job_of(model, len(noise))
        half = engine.sample(replace(job, end=2), nothing)
        latent = engine.sample(replace(job, start=half, begin=2), nothing)
        out["rounds"] = sampled(model, latent)
        job = job_of(model, len(noise))
        first = job.inputs[0].latent
        mirrored = replace(job.inputs[1], latent=first.flip(-1))
        job = replace(job, inputs=(job.inputs[0], mirrored))
        out["tiles"] = sampled(model, engine_of(model, "one way", 64).sample(job, nothing))
        kept, caches = job_of(model, 1), one_way.Caches()
        patched = one_way.one_way(model, caches, kept.latents)
        with_euler(patched, kept)
        latent = with_euler(one_way.one_way_alone(model), kept)
        out["alone"] = sampled(model, latent)
        counted = sum(c._chosen.device_bytes for c in caches._by_pass.values())
        estimated = sum(m.model_size() for m in patched.get_nested_additional_models())
        out["bytes"] = torch.tensor([estimated, counted])
    save_file({k: v.contiguous().clone() for k, v in out.items()}, sys.argv[2])
