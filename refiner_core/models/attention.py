"""FLUX's attention over text, noisy and clean tokens, in both of a recipe's ways.

One way, the clean tokens (draft and references) attend only to clean tokens. Their keys and values
are then the same at every step: one pass over the clean tokens alone records them, and every step
runs the noisy and the text tokens alone, attending to what was recorded. That is exact.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Rotary cosines and sines, each `tokens head`.
Rotary = tuple[Tensor, Tensor]
# Keys and values of every attention module: here each is `B tokens heads head`.
KeysValues = Mapping[Hashable, tuple[Tensor, Tensor]]


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn neighbouring pairs of channels of `B tokens heads head` by their position's angles."""
    cosine, sine = (part[None, :, None, :].to(x.device) for part in rotary)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return (x.float() * cosine + turned.float() * sine).to(x.dtype)


def attend(
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_rotary_emb: Rotary | None = None,
    record: MutableMapping[Hashable, tuple[Tensor, Tensor]] | None = None,
    clean: KeysValues | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one FLUX block, with diffusers' names for modules and arguments.

    Args:
        attn: diffusers' `FluxAttention`, or ours.
        hidden_states: image tokens `B N D`; in single blocks text and image tokens.
        encoder_hidden_states: text tokens `B L D` of a double block.
        attention_mask: True where a query may look at a key, broadcast to `B heads Q K`.
        image_rotary_emb: for text and image tokens.
        record: takes up this block's keys and values.
        clean: recorded keys and values, to which the tokens attend as well; of one sample or of
            as many as there are.

    Returns:
        Image tokens, and text tokens where there were any apart.
    """
    query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
    if image_rotary_emb is not None:
        query, key = rotate(query, image_rotary_emb), rotate(key, image_rotary_emb)
    if record is not None:
        record[attn] = (key, value)
    if clean is not None:
        more = [x.expand(len(query), *x.shape[1:]).to(query.dtype) for x in clean[attn]]
        key, value = torch.cat([key, more[0]], 1), torch.cat([value, more[1]], 1)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
    found = found.transpose(1, 2).flatten(2, 3).to(query.dtype)
    if encoder_hidden_states is None:
        return found
    length = encoder_hidden_states.shape[1]
    text, image = found[:, :length], found[:, length:]
    image = attn.to_out[1](attn.to_out[0](image.contiguous()))
    return image, attn.to_add_out(text.contiguous())


def _projected(attn: Any, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries and keys, and values, `B tokens heads head`, text first."""
    query, key, value = (
        linear(image).unflatten(-1, (-1, attn.head_dim))
        for linear in (attn.to_q, attn.to_k, attn.to_v)
    )
    query, key = attn.norm_q(query), attn.norm_k(key)
    if text is None:
        return query, key, value
    first, second, third = (
        linear(text).unflatten(-1, (-1, attn.head_dim))
        for linear in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    first, second = attn.norm_added_q(first), attn.norm_added_k(second)
    return torch.cat([first, query], 1), torch.cat([second, key], 1), torch.cat([third, value], 1)


class RecordingProcessor:
    """`attend` as an attention processor of diffusers' FLUX, which looks at its signature."""

    __call__ = staticmethod(attend)


def use_recorded_keys(model: Any) -> None:
    """Let diffusers' FLUX record keys and values and attend to recorded ones; ours does anyway."""
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        if hasattr(block.attn, "set_processor") and not isinstance(
            block.attn.processor, RecordingProcessor
        ):
            block.attn.set_processor(RecordingProcessor())
