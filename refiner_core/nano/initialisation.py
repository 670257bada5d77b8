# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportCallIssue=false
# (blocks are typed as plain modules)
"""How an untrained nano starts: attention that already looks where the answer is.

What a small dual-input editor finds hardest is not painting but *correspondence*: that the token
at row y, column x should look at the draft's and the reference's token at y, x. Position ids make
that a function of the ids alone, so it can be written into the weights. In the first block head 0
looks at group 1 (draft) and head 1 at group 2 (reference), both at the own grid position, and
copy what they find into free channels of the residual stream; the output layer starts as "a tenth
draft, nine tenths reference". Training improves on that from its first step on instead of
searching for it.

All of it sits in ordinary weights: the network is plain FLUX.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..models.flux_transformer import FluxTransformer

HEAD = 128
AXES = (16, 56, 56)
LATENT = 64  # channels of one packed token
_ANCHOR = 3.0  # constant written into the free channels: it dominates LayerNorm's statistics
_SHARPNESS = 2.0  # query and key scale; attention logits fall by ~4 from a token to its neighbour


def nano_config(hidden: int = 256, double: int = 1, single: int = 3) -> dict[str, object]:
    """The diffusers configuration of a nano: FLUX's own layout at head size 128, no guidance."""
    return {
        "in_channels": LATENT,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": HEAD,
        "num_attention_heads": hidden // HEAD,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": False,
        "axes_dims_rope": AXES,
    }


def _phases(index: int) -> tuple[Tensor, Tensor]:
    """Query and key vectors (HEAD,) whose rotary product peaks at group offset `index`, same y x."""
    weights: list[float] = []
    angles: list[float] = []
    for axis, (width, share) in enumerate(zip(AXES, (0.3, 0.35, 0.35), strict=True)):
        pairs = width // 2
        fall = torch.zeros(pairs)
        # Fast rotations tell neighbours apart, slower ones tell the period of the fast ones apart.
        use = (0.7, 0.3) if axis == 0 else (0.30, 0.25, 0.15, 0.10, 0.08, 0.07, 0.05)
        fall[: len(use)] = torch.tensor(use)
        for j in range(pairs):
            frequency = 10000.0 ** (-2 * j / width)
            weights.append(share * float(fall[j]))
            angles.append(-frequency * index if axis == 0 else 0.0)
    amplitude = torch.tensor(weights).sqrt() * math.sqrt(HEAD)
    angle = torch.tensor(angles)
    query = torch.stack([amplitude, torch.zeros_like(amplitude)], -1).flatten()
    key = torch.stack([amplitude * angle.cos(), amplitude * angle.sin()], -1).flatten()
    return query, key


@torch.no_grad()
def _randomise(model: FluxTransformer, generator: torch.Generator) -> None:
    """Small random weights everywhere, and every block's gate open."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, 0.7 / math.sqrt(module.in_features), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    modulations = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
    for name, module in model.named_modules():
        if not name.endswith(modulations):
            continue
        assert isinstance(module, nn.Linear)
        module.weight.mul_(0.1)
        chunks = module.bias.chunk(module.out_features // model.inner_dim)
        # shift, scale, gate (twice in a double block); the output layer has no gate.
        for gate in chunks[2::3]:
            gate.fill_(1.0)


@torch.no_grad()
def initialise(model: FluxTransformer, seed: int = 0) -> None:
    """Write the positional start described above into `model` (hidden 256, at least one block).

    Raises:
        ValueError: the model is not of the nano's shape.
    """
    hidden = model.inner_dim
    if hidden != 2 * HEAD or len(model.transformer_blocks) < 1:
        raise ValueError(f"The positional start needs hidden size 256 and a block, got {hidden}.")
    _randomise(model, torch.Generator().manual_seed(seed))
    for block in model.single_transformer_blocks:
        block.proj_out.weight.mul_(0.04)
    anchor = torch.zeros(hidden)
    anchor[3 * LATENT :: 2] = _ANCHOR
    anchor[3 * LATENT + 1 :: 2] = -_ANCHOR
    norm = math.sqrt((anchor.square().sum().item() + 3 * LATENT) / hidden)

    model.x_embedder.weight.zero_()
    model.x_embedder.weight[:LATENT].copy_(torch.eye(LATENT))
    model.x_embedder.bias.copy_(anchor)
    block = model.transformer_blocks[0]
    block.ff.net[2].weight.mul_(0.04)
    attention = block.attn
    attention.norm_q.weight.fill_(_SHARPNESS)
    attention.norm_k.weight.fill_(_SHARPNESS)
    early = math.sqrt((anchor.square().sum().item() + LATENT) / hidden)
    for head, index in enumerate((1, 2)):
        rows = slice(head * HEAD, head * HEAD + LATENT)
        query, key = _phases(index)
        attention.to_q.bias[head * HEAD : (head + 1) * HEAD] = query
        attention.to_k.bias[head * HEAD : (head + 1) * HEAD] = key
        attention.to_v.weight[rows].zero_()
        attention.to_v.weight[rows, :LATENT] = torch.eye(LATENT) * early
        channels = slice((head + 1) * LATENT, (head + 2) * LATENT)
        attention.to_out[0].weight[channels].zero_()
        attention.to_out[0].weight[channels, rows] = torch.eye(LATENT)
    attention.to_q.weight.mul_(0.1)
    attention.to_k.weight.mul_(0.1)
    attention.to_out[0].weight[:LATENT].zero_()
    attention.to_out[0].weight[3 * LATENT :].zero_()

    model.proj_out.weight.zero_()
    for group, share in enumerate((1.0, -0.1, -0.9)):
        model.proj_out.weight[:, group * LATENT : (group + 1) * LATENT] = (
            torch.eye(LATENT) * share * norm
        )
