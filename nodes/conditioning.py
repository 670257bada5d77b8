"""What a recipe tells the model beside the noisy latent, in ComfyUI's conditioning."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import node_helpers
import torch
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
from torch import Tensor

from ..refiner_core.interfaces import SamplingJob
from ..refiner_core.models.detail_encoder import DetailEncoder, fill_triggers
from ..refiner_core.models.triggers import tokenize_triggers
from .types import Refiner


class DetailPatcher:
    """A detail encoder under ComfyUI's memory management: `patcher(image, embedding)`."""

    def __init__(self, encoder: DetailEncoder) -> None:
        device = mm.text_encoder_device()
        dtype = torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
        make = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = make(encoder.to(dtype), device, mm.text_encoder_offload_device())

    def __call__(self, image: Tensor, embedding: Tensor) -> Tensor:
        mm.load_models_gpu([self.patcher], force_full_load=True)
        device = self.patcher.load_device
        return self.patcher.model(image.to(device), embedding.to(device)).to(embedding)


def reference_conditioning(
    conditioning: Any, latents: list[Tensor], guidance: float | None, layout: str = "index"
) -> Any:
    """Conditioning with clean latents in the recipe's layout; by index the first is 1, ..."""
    values: dict[str, Any] = {"reference_latents": latents, "reference_latents_method": layout}
    if guidance is not None:
        values["guidance"] = guidance
    return node_helpers.conditioning_set_values(conditioning, values)


def encode_prompt(refiner: Refiner, prompt: str) -> Any:
    """The refiner's text conditioning: ready-made if it has some, else the encoded prompt."""
    if refiner.conditioning is not None:
        return refiner.conditioning
    # ComfyUI pads T5 to 256 tokens; FLUX.1's own code and diffusers to 512, and so do trainers.
    options = {"t5xxl_min_length": refiner.recipe.text_tokens}
    tokens = refiner.clip.tokenize(prompt, tokenizer_options=options)
    return refiner.clip.encode_from_tokens_scheduled(tokens)


def _detail(refiner: Refiner, job: SamplingJob) -> Any:
    """Text whose trigger words are told of their pictures (ImageCritic)."""
    recipe, clip = refiner.recipe, refiner.clip
    if clip is None or refiner.detail is None:
        lacks = "clip" if clip is None else "a detail encoder (Load Refiner, detail_encoder)"
        raise ValueError(
            f"The recipe {recipe.name} needs {lacks}: its text is told of the pictures."
        )
    words = [word for _, word in recipe.triggers]
    tokenizer = clip.tokenizer.t5xxl.tokenizer
    found = tokenize_triggers(tokenizer, job.prompt, words, recipe.text_tokens)
    tokens = clip.tokenize(job.prompt)
    tokens["t5xxl"] = [[(number, 1.0) for number in found.ids]]
    pictures = [job.image(role) for role, _ in recipe.triggers]
    out = []
    for text, rest in clip.encode_from_tokens_scheduled(tokens):
        out.append([fill_triggers(refiner.detail, text, found.positions, pictures), rest])
    return out


def _vision(refiner: Refiner, prompt: str, job: SamplingJob) -> Any:
    """Text encoded together with the pictures, by ComfyUI's own node (Qwen-Image-Edit)."""
    if refiner.clip is None:
        raise ValueError(
            f"The recipe {refiner.recipe.name} needs clip (Qwen2.5-VL): it looks at the pictures, so "
            "ready conditioning will not do."
        )
    images = {f"image{i + 1}": p.movedim(1, -1) for i, p in enumerate(job.images)}
    return TextEncodeQwenImageEditPlus.execute(refiner.clip, prompt, **images).result[0]


def condition(refiner: Refiner, job: SamplingJob) -> tuple[Any, Any]:
    """Positive and negative conditioning of a job; the negative is empty without CFG."""
    sight, layout = refiner.recipe.sight, refiner.recipe.layout
    if sight == "detail":
        text = _detail(refiner, job)
    elif sight == "vision":
        text = _vision(refiner, job.prompt, job)
    else:
        text = encode_prompt(refiner, job.prompt)
    latents = list(job.references)
    positive = reference_conditioning(text, latents, job.guidance, layout)
    if job.cfg <= 1 or sight != "vision":
        return positive, []
    negative = _vision(refiner, refiner.recipe.negative, job)
    return positive, reference_conditioning(negative, latents, job.guidance, layout)
