"""Accelerators on a tiny Kontext with two references: `python accelerators_native.py IN OUT`.

A script for ComfyUI's Python; IN is that of `one_way_native`. OUT (safetensors) gets, for each way of
attention, `WAY.NAME`, what is sampled with an accelerator, and `WAY.NAME.passes`, the noisy tokens of
every pass through the first block; its metadata has what was refused, `WAY.NAME` to the message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from comfyui_script import load_pack, start_on_cpu

STEPS = 12

if __name__ == "__main__":
    start_on_cpu()

    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import torch
    from comfy.ldm.flux.layers import timestep_embedding
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
    from comfy_extras.nodes_torch_compile import TorchCompileModel
    from safetensors.torch import load_file, save_file
    from torch import Tensor

    pack = load_pack()
    from pack.nodes.conditioning import reference_conditioning
    from pack.nodes.engine import ComfyEngine
    from pack.nodes.one_way import one_way_alone
    from pack.nodes.types import Refiner
    from pack.refiner_core.interfaces import CleanInput, SamplingJob
    from pack.refiner_core.recipes.recipe import OMNIREFINER

    given = load_file(sys.argv[1])
    weights = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
    text = [[given["text"], {"pooled_output": given["pooled"]}]]
    guidance = float(given["guidance"])
    sigmas = torch.linspace(1, 0, STEPS + 1)
    references = [given["references.0"], given["references.1"]]

    passes: list[int] = []  # image tokens that went through the last block of each pass

    def load(**changed: Tensor) -> Any:
        own = {k: v.clone() for k, v in (weights | changed).items()}
        options = {"dtype": torch.float32}
        model = comfy.sd.load_diffusion_model_state_dict(own, model_options=options)
        model.model.diffusion_model.single_blocks[-1].register_forward_pre_hook(
            lambda _m, inputs: passes.append(inputs[0].shape[1] - given["text"].shape[1])
        )
        return model

    def run(model: Any, attention: str) -> Tensor:
        """Sampled by the engine."""
        recipe = replace(OMNIREFINER, attention=attention)
        engine = ComfyEngine(Refiner(recipe, model, None, conditioning=text, probed=True))
        raw = [model.model.process_latent_out(r) for r in references]
        roles = enumerate(zip(("draft", "reference"), raw, strict=True), 1)
        picture = torch.zeros(1, 3, 8, 8)
        job = SamplingJob(
            inputs=tuple(CleanInput(role, picture, latent, i) for i, (role, latent) in roles),
            sigmas=sigmas,
            prompt="",
            guidance=guidance,
            seed=0,
            start=given["noise"][:1],
        )
        return model.model.process_latent_in(engine.sample(job, lambda *_: None))

    def with_cfg(model: Any, attention: str, together: bool) -> Tensor:
        """Sampled by ComfyUI's sampler with a negative prompt, in the same pass or in its own."""
        model = one_way_alone(model) if attention == "one way" else model.clone()
        raw = [model.model.process_latent_out(r) for r in references]
        other = [[text[0][0].flip(1), {"pooled_output": -given["pooled"]}]]
        if not together:  # of another length, which ComfyUI does not batch
            other[0][0] = other[0][0][:, :5]
        positive, negative = (reference_conditioning(t, raw, guidance) for t in (text, other))
        noise = given["noise"][:1]
        euler = comfy.samplers.sampler_object("euler")
        return comfy.sample.sample_custom(
            model, noise, 3.0, euler, sigmas, positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip

    class BlockCache:
        """Skips blocks when the first one changes little, as nodes do that exchange the network's
        method. Some do not pass the blocks their options, without which attention cannot be patched.
        """

        def __init__(self, network: Any, passes_options: bool, threshold: float) -> None:
            self.network, self.passes_options, self.threshold = network, passes_options, threshold
            self.known: dict[str, Tensor] = {}

        def options(self, kind: str, i: int, given: dict[str, Any]) -> dict[str, Any]:
            here = {**given, "block_type": kind, "block_index": i}
            return {"transformer_options": here} if self.passes_options else {}

        def similar(self, change: Tensor) -> bool:
            last = self.known.get("first")
            self.known["first"] = change.clone()
            if last is None or last.shape != change.shape:
                return False
            return bool((change - last).abs().mean() / last.abs().mean() < self.threshold)

        def forward(
            self, img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor, timesteps: Tensor,
            y: Tensor, guidance: Tensor, control: Any = None, timestep_zero_index: Any = None,
            transformer_options: Any = None, attn_mask: Any = None,
        ) -> Tensor:  # fmt: skip
            network = self.network
            img, txt = network.img_in(img), network.txt_in(txt)
            vec = network.time_in(timestep_embedding(timesteps, 256).to(img.dtype))
            vec = vec + network.guidance_in(timestep_embedding(guidance, 256).to(img.dtype))
            vec = vec + network.vector_in(y)
            pe = network.pe_embedder(torch.cat((txt_ids, img_ids), 1))
            before = img.clone()
            for i, block in enumerate(network.double_blocks):
                own = self.options("double", i, transformer_options)
                img, txt = block(img=img, txt=txt, vec=vec, pe=pe, **own)
                if i == 0 and self.similar(img - before):
                    return network.final_layer(before + self.known["all"], vec)
            img = torch.cat((txt, img), 1)
            for i, block in enumerate(network.single_blocks):
                img = block(img, vec=vec, pe=pe, **self.options("single", i, transformer_options))
            img = img[:, txt.shape[1] :]
            self.known["all"] = img - before
            return network.final_layer(img, vec)

        def wrapper(self, apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
            self.network.forward_orig = self.forward
            try:
                return apply(given["input"], given["timestep"], **given["c"])
            finally:
                del self.network.forward_orig

    def block_cache(model: Any, passes_options: bool, threshold: float = 0.65) -> Any:
        cache = BlockCache(model.model.diffusion_model, passes_options, threshold)
        model = model.clone()
        model.set_model_unet_function_wrapper(cache.wrapper)
        return model

    layer = "transformer_blocks.0.ff.net.0.proj"
    down, up = torch.ones(1, 256), torch.linspace(-1, 1, 1024)[:, None]
    lora = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    merged = {f"{layer}.weight": weights[f"{layer}.weight"] + up @ down}
    cached = (0.5, 0.0, 1.0, False)  # threshold, begin, end, verbose
    compiled = TorchCompileModel.execute(load(), "inductor").result[0]  # compiled when it runs
    runs: dict[str, Callable[[str], Tensor]] = {
        "plain": lambda way: run(load(), way),
        "EasyCache": lambda way: run(EasyCacheNode.execute(load(), *cached).result[0], way),
        "LazyCache": lambda way: run(LazyCacheNode.execute(load(), *cached).result[0], way),
        "lora": lambda way: run(
            comfy.sd.load_lora_for_models(load(), None, lora, 1.0, 0.0)[0], way
        ),
        "merged": lambda way: run(load(**merged), way),
        "cfg": lambda way: with_cfg(load(), way, True),
        "cfg apart": lambda way: with_cfg(load(), way, False),
        "blocks": lambda way: run(block_cache(load(), True, 0.0), way),
        "block cache": lambda way: run(block_cache(load(), True), way),
        "block cache without options": lambda way: run(block_cache(load(), False), way),
        "compiled": lambda way: run(compiled, way),
    }
    out: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    with torch.inference_mode():
        for way in ("one way", "both ways"):
            for title, make in runs.items():
                if way == "both ways" and title == "compiled":
                    continue  # takes minutes
                passes.clear()
                try:
                    out[f"{way}.{title}"] = make(way)
                except ValueError as e:
                    refused[f"{way}.{title}"] = str(e)
                out[f"{way}.{title}.passes"] = torch.tensor(passes)
    save_file({k: v.contiguous().clone() for k, v in out.items()}, sys.argv[2], refused)
