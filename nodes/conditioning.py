"""ComfyUI conditioning for a recipe: the encoded prompt and the reference latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from ..refiner_core.recipes.recipe import ConditioningKind
from .types import Refiner

_PROMPTS = 16  # encoded prompts kept with a refiner; T5's take 8 MB each


class DetailPatcher:
    """A detail encoder managed by ComfyUI, called as `patcher(image, embedding)`."""

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
    """Conditioning with reference latents in the recipe's layout; "index" counts them from 1."""
    values: dict[str, Any] = {"reference_latents": latents, "reference_latents_method": layout}
    if guidance is not None:
        values["guidance"] = guidance
    return node_helpers.conditioning_set_values(conditioning, values)


def encode_prompt(refiner: Refiner, prompt: str) -> Any:
    """The conditioning that is connected to the refiner, or else the encoded prompt.

    An encoded prompt is kept with the refiner, on the CPU: the text encoders are not needed again
    until the prompt changes.
    """
    if refiner.conditioning is not None:
        return refiner.conditioning
    # ComfyUI pads T5 to 256 tokens; FLUX.1's own code and diffusers to 512, and so do trainers.
    options = {"t5xxl_min_length": refiner.recipe.text_tokens}
    return _kept(
        refiner, "text", prompt, lambda: refiner.clip.tokenize(prompt, tokenizer_options=options)
    )


def _kept(
    refiner: Refiner, kind: ConditioningKind, prompt: str, tokenize: Callable[[], Any]
) -> Any:
    """The conditioning of a prompt, encoded once per refiner; the last prompts are kept."""
    kept, key = refiner.prompts, (kind, prompt)
    if key not in kept:
        encoded = refiner.clip.encode_from_tokens_scheduled(tokenize())
        kept[key] = [
            [text.cpu(), {k: v.cpu() if isinstance(v, Tensor) else v for k, v in rest.items()}]
            for text, rest in encoded
        ]
    kept[key] = kept.pop(key)  # the last one used is the last one dropped
    while len(kept) > _PROMPTS:
        del kept[next(iter(kept))]
    return kept[key]


def _detail(refiner: Refiner, job: SamplingJob) -> Any:
    """Encoded text with the features of the images at their trigger words (ImageCritic)."""
    recipe, clip = refiner.recipe, refiner.clip
    if clip is None or refiner.detail is None:
        missing = "a text encoder (clip)" if clip is None else "a detail encoder (detail_encoder)"
        raise ValueError(
            f"The recipe {recipe.name} needs {missing}, which adds the images to the encoded prompt."
        )
    words = [word for _, word in recipe.triggers]
    tokenizer = clip.tokenizer.t5xxl.tokenizer
    triggers = tokenize_triggers(tokenizer, job.prompt, words, recipe.text_tokens)

    def tokenize() -> Any:
        t5 = [[(number, 1.0) for number in triggers.ids]]
        return {**clip.tokenize(job.prompt), "t5xxl": t5}

    pictures = [job.input(role).image for role, _ in recipe.triggers]
    out = []
    for text, rest in _kept(refiner, "detail", job.prompt, tokenize):
        out.append([fill_triggers(refiner.detail, text, triggers.positions, pictures), rest])
    return out


def _vision(refiner: Refiner, prompt: str, job: SamplingJob) -> Any:
    """The prompt encoded together with the images by ComfyUI's own node (Qwen-Image-Edit)."""
    if refiner.clip is None:
        raise ValueError(
            f"The recipe {refiner.recipe.name} needs the text encoder Qwen2.5-VL as clip: it encodes "
            "the prompt together with the images, so connecting conditioning is not enough."
        )
    pictures = [i.image for i in job.inputs]
    images = {f"image{i + 1}": p.movedim(1, -1) for i, p in enumerate(pictures)}
    return TextEncodeQwenImageEditPlus.execute(refiner.clip, prompt, **images).result[0]


@dataclass(frozen=True)
class EncodedText:
    """A job's encoded prompt and, with CFG, its negative one."""

    positive: Any
    negative: Any = None


def encode_text(refiner: Refiner, job: SamplingJob) -> EncodedText:
    """Encode the prompts of a job, together with its images where the recipe says so."""
    kind = refiner.recipe.conditioning
    if kind == "detail":
        return EncodedText(_detail(refiner, job))
    if kind == "vision":
        positive = _vision(refiner, job.prompt, job)
        negative = None if job.cfg <= 1 else _vision(refiner, refiner.recipe.negative, job)
        return EncodedText(positive, negative)
    return EncodedText(encode_prompt(refiner, job.prompt))


def condition(text: EncodedText, job: SamplingJob, layout: str) -> tuple[Any, Any]:
    """Positive and negative conditioning of a job. Without CFG the negative is empty."""
    positive, negative = (
        reference_conditioning(t, list(job.latents), job.guidance, layout) if t else []
        for t in (text.positive, text.negative)
    )
    return positive, negative
