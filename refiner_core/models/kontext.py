"""The dual-input model: FLUX.1-Kontext's transformer over `[noisy | draft | reference...]`.

This is the core engine (training, command line, tests). Inside ComfyUI the same weights run on
ComfyUI's own FLUX; both give the same velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import flow
from . import tokens

if TYPE_CHECKING:
    from .flux_transformer import Transformer


@dataclass(frozen=True)
class Conditioning:
    """All that the network sees beside the noisy latent.

    Args:
        references: clean latents `B C h w` in token order, draft first; sizes may differ.
        indices: the position index of each of them (OmniRefiner: 1, 2, ...).
        text: text embeddings `B L D`.
        pooled: pooled text embedding `B P`.
        guidance: the value of the guidance embedding, None where the weights have none.
        layout: "index", or "offset" for stock Kontext's places beside one another.
    """

    references: tuple[Tensor, ...]
    indices: tuple[int, ...]
    text: Tensor
    pooled: Tensor
    guidance: float | None = None
    layout: str = "index"

    def __post_init__(self) -> None:
        if len(self.references) != len(self.indices):
            raise ValueError(
                f"{len(self.references)} reference latents need as many position indices, "
                f"got {self.indices}."
            )

    def repeat(self, batch: int) -> Conditioning:
        """The same conditioning for `batch` samples (from one)."""
        return replace(
            self,
            references=tuple(_repeat(r, batch) for r in self.references),
            text=_repeat(self.text, batch),
            pooled=_repeat(self.pooled, batch),
        )


def _repeat(x: Tensor, batch: int) -> Tensor:
    return x if len(x) == batch else x.expand(batch, *x.shape[1:])


def zero_text(model: Transformer, batch: int = 1, length: int = 1) -> tuple[Tensor, Tensor]:
    """The embeddings of a model that knows no text: zeros `B length D` and `B P`."""
    p = model.context_embedder.weight
    pooled = model.time_text_embed.text_embedder.linear_1.in_features
    return p.new_zeros(batch, length, p.shape[1]), p.new_zeros(batch, pooled)


def _one_way(length: int, text: int, noisy: int) -> Tensor:
    """Who may look at whom, 1 1 length length: the clean tokens only at clean tokens."""
    first = text + noisy
    seen = torch.ones(length, length, dtype=torch.bool)
    seen[first:, :first] = False
    return seen[None, None]


def velocity(
    model: Transformer,
    x: Tensor,
    t: Tensor | float,
    conditioning: Conditioning,
    *,
    one_way: bool = False,
) -> Tensor:
    """The network's velocity for the noisy latents `x`, `B C H W`, at noise levels `t` in (0, 1].

    Draft and reference tokens follow the noisy ones, attention is full in both directions, and
    the prediction is what stands on the noisy tokens (arXiv 2511.19990, figure 2). With `one_way`
    the clean tokens do not see the noisy ones nor the text, as in models that compute them once;
    no recipe is trained so, it is there to be compared with.
    """
    b, _, h, w = x.shape
    conditioning = conditioning.repeat(b)
    latents: Sequence[Tensor] = (x, *conditioning.references)
    ids = tokens.layout_ids(latents, (0, *conditioning.indices), conditioning.layout)
    hidden = torch.cat([tokens.pack(z).to(x.dtype) for z in latents], dim=1)
    t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(b)
    guidance = conditioning.guidance
    wants_guidance = bool(model.config["guidance_embeds"])
    noisy = (h // tokens.PATCH) * (w // tokens.PATCH)
    length = conditioning.text.shape[1]
    limits = None
    if one_way:
        seen = _one_way(length + hidden.shape[1], length, noisy)
        limits = {"attention_mask": seen.to(x.device)}
    out = model(
        hidden_states=hidden,
        encoder_hidden_states=conditioning.text.to(x.dtype),
        pooled_projections=conditioning.pooled.to(x.dtype),
        timestep=t.to(x.dtype),
        img_ids=ids.to(x.device),
        txt_ids=torch.zeros(length, 3, device=x.device),
        guidance=x.new_full((b,), 1.0 if guidance is None else guidance)
        if wants_guidance
        else None,
        joint_attention_kwargs=limits,
        return_dict=False,
    )[0]
    return tokens.unpack(out[:, :noisy], h, w)


class Denoiser:
    """The model in the samplers' call shape: `denoiser(x, sigma, conditioning=...)` -> x0.

    `x` is float32; the network runs in its own type.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def __call__(self, x: Tensor, sigma: Tensor, *, conditioning: Conditioning) -> Tensor:
        v = velocity(self.model, x.to(self.model.dtype), sigma, conditioning)
        return flow.x0_from_velocity(x, v.to(x.dtype), sigma)
