"""Estimates the parameters, memory and time of a training run without loading weights.

The figures are computed, not measured: the multiply-adds of the blocks and of attention, and the
bytes of everything that is in memory at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..models.clean_storage import clean_bytes
from ..models.flux_transformer import FluxTransformer
from ..nano import nano_file, resolve_weights
from ..nano.initialisation import nano_config
from ..recipes.recipe import KONTEXT, NANO, OMNIREFINER, Recipe
from ..recipes.recipe_files import find_recipe
from .config import ModelSettings, RunConfig, StepCost
from .quantize import in_a_block
from .trainable import add_lora, all_weights

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer

GB = 1e9
# Bits per weight of a quantized layer, scales included.
BITS = {"int8": 8, "fp8": 8, "nf4": 4.13}


@dataclass(frozen=True)
class Card:
    """A device to train on."""

    memory: float  # GB
    rate: float  # TFLOP/s of dense bf16 matmuls in training, about half of the maker's figure;
    # for "cpu" roughly one core in float32


CARDS = {
    "cpu": Card(16, 0.03),
    "rtx3090": Card(24, 35),
    "rtx4090": Card(24, 80),
    "rtx5090": Card(32, 110),
    "l40s": Card(48, 180),
    "a100": Card(80, 160),
    "h100": Card(80, 400),
    "h200": Card(141, 400),
    "b200": Card(180, 900),
}


@dataclass(frozen=True)
class MemoryEstimate:
    """What one card needs, and what a step costs (an update, in stage 2 an epoch)."""

    base: int  # parameters of the base
    trainable: int  # trainable parameters
    modules: int  # that the LoRA changes; 0: all weights are trained
    tokens: int  # per sample
    memory: dict[str, float]  # GB on one card by what it is used for
    flops: float  # per step
    seconds: float  # per step

    @property
    def total(self) -> float:
        """GB on one card."""
        return sum(self.memory.values())


def _is_nano(base: str) -> bool:
    """Whether the base is the embedded model or a file of its kind; the file need not exist."""
    path = resolve_weights(base)
    return path.is_file() and nano_file(path) is not None


def _recipe(model: ModelSettings) -> Recipe:
    """The recipe that the run trains for."""
    own = NANO if _is_nano(model.base) else OMNIREFINER
    recipe = find_recipe(model.recipe) if model.recipe else own
    if recipe.family != "flux":
        raise ValueError(
            f"The recipe {recipe.name} is for {recipe.family} models; estimates are made for FLUX.1 "
            f"({', '.join(r.name for r in (NANO, OMNIREFINER, KONTEXT))} and recipes based on them)."
        )
    return recipe


def _model(nano: bool) -> FluxTransformer:
    """The transformer on the meta device."""
    with torch.device("meta"):
        return FluxTransformer(**(nano_config() if nano else {"guidance_embeds": True}))


def _base_bytes(model: Transformer, settings: ModelSettings) -> float:
    """Bytes of the stored base."""
    numbers = sum(p.numel() for p in model.parameters())
    wide = 2 if settings.precision == "bf16" and settings.train == "lora" else 4
    if settings.quantize == "none":
        return numbers * wide
    packed = sum(
        m.weight.numel()
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and in_a_block(m, n)
    )
    return packed * BITS[settings.quantize] / 8 + (numbers - packed) * wide


def _gathered_bytes(model: Transformer, settings: ModelSettings) -> float:
    """Bytes of the blocks of a sharded base that are gathered at a time: the current and the next."""
    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    return 2 * largest * (2 if settings.precision == "bf16" else 4)


def count_tokens(recipe: Recipe, megapixels: float | None) -> int:
    """Tokens of one sample: noisy, draft and reference latents of one bucket size, and text."""
    size = recipe.buckets.scaled(megapixels)[0]
    patch = 2 * recipe.latent_factor
    return 3 * (size.width // patch) * (size.height // patch) + recipe.text_tokens


def forward_flops(model: Transformer, tokens: int) -> float:
    """Floating-point operations of one forward pass of one sample, 2 per multiply-add."""
    hidden = model.inner_dim
    double, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    # A token passes one stream of a double block (attention 4 h^2, feed-forward 8 h^2) or a single
    # block (q, k, v 3 h^2, feed-forward in 4 h^2, both out 5 h^2): 12 h^2 either way.
    matmuls = 2 * 12 * hidden * hidden * (double + single) * tokens
    attention = 4 * tokens * tokens * hidden * (double + single)
    return float(matmuls + attention)


def step_flops(config: RunConfig, once: float, cost: StepCost) -> float:
    """Operations of a step, if one forward pass of one sample takes `once`."""
    # A backward pass costs two forward passes (a little over one for a LoRA on a frozen base), and
    # gradient checkpointing repeats the forward pass.
    full = config.model.train == "full"
    learn = once * ((3 if full else 2.1) + (1 if config.model.checkpointing else 0))
    return cost.plain * once + cost.learnt * learn


def estimate_memory(
    config: RunConfig, card: Card, processes: int = 1, divided: bool = False
) -> MemoryEstimate:
    """Parameters, memory and time of a run with these settings, with one process per card.

    Args:
        divided: whether the base is sharded over the processes (FSDP 2, ZeRO 3).

    Raises:
        ValueError: the work cannot be split over that many processes, the base cannot be sharded, or
            the recipe is not one of FLUX.1.
    """
    config.check_processes(processes)
    full = config.model.train == "full"
    if divided:
        config.model.check_shardable()
    recipe, nano = _recipe(config.model), _is_nano(config.model.base)
    model = _model(nano)
    base, held = sum(p.numel() for p in model.parameters()), _base_bytes(model, config.model)
    gathered = _gathered_bytes(model, config.model) if divided else 0.0
    trainable = (
        all_weights(model) if full else add_lora(model, config.model.rank, config.model.alpha)
    )
    learnable, tokens = len(trainable), count_tokens(recipe, config.data.megapixels)
    moments = 2 if config.optimizer.eight_bit else 8
    cost = config.cost(config.sampler_steps or recipe.steps)
    copies = (1 if config.optimizer.ema else 0) + cost.copies
    memory = {
        "base": held / (processes if divided else 1) / GB,
        "gathered blocks": gathered / GB,
        "trainable weights": 0.0 if full else learnable * 4 / GB,
        "gradients": learnable
        * 4
        * (1 if processes == 1 else 2)
        / GB,  # doubled while they are summed
        "optimizer": learnable * moments / GB,
        "copies (ema, old, ref)": learnable * 4 * copies / GB,
        "clean keys and values": _clean_bytes(model, config, recipe) / GB,
        "activations": _activation_bytes(model, config, tokens) * cost.stored / GB,
        "decoder's activations": _decoder_bytes(recipe, config) / GB if cost.decoded else 0.0,
        "autoencoder, workspace": 0.1 if nano else 1.5,
    }
    flops = step_flops(config, forward_flops(model, tokens), cost)
    seconds = flops / (card.rate * 1e12) / processes
    modules = 0 if full else len(trainable.parameters) // 2
    return MemoryEstimate(base, learnable, modules, tokens, memory, flops, seconds)


def _activation_bytes(model: Transformer, config: RunConfig, tokens: int) -> float:
    """Bytes that a micro-batch stores for the backward pass."""
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    recompute = config.model.checkpointing
    # A block stores about 34 vectors of the model's width per token.
    vectors = blocks + 34 if recompute else 34 * blocks
    wide = 2 if config.model.precision == "bf16" else 4
    return config.run.micro_batch * tokens * model.inner_dim * wide * vectors


def _clean_bytes(model: Transformer, config: RunConfig, recipe: Recipe) -> float:
    """Bytes of the keys and values of the clean tokens, which one-way attention keeps in every block."""
    asked = config.model.attention
    if (recipe.attention if asked == "recipe" else asked) != "one way":
        return 0
    clean = count_tokens(recipe, config.data.megapixels) - recipe.text_tokens
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    wide = 2 if config.model.precision == "bf16" else 4
    return clean_bytes(blocks, config.run.micro_batch * clean * 2 // 3, model.inner_dim, wide)


def _decoder_bytes(recipe: Recipe, config: RunConfig) -> float:
    """Bytes that decoding a micro-batch stores for the backward pass.

    FLUX's decoder keeps about thirty float32 maps of 128 channels at the size of the image; nano's
    is one linear layer.
    """
    size = recipe.buckets.scaled(config.data.megapixels)[0]
    maps = 3 if recipe is NANO else 30 * 128
    return 4.0 * config.run.micro_batch * size.width * size.height * maps


def describe_estimate(estimate: MemoryEstimate, name: str, card: Card, unit: str) -> str:
    """The estimate as text.

    Args:
        name: of the card.
        unit: what a step is ("update", "epoch").
    """
    where = f" in {estimate.modules} modules" if estimate.modules else ""
    verdict = "fits" if estimate.total < 0.95 * card.memory else "does not fit"
    lines = [
        f"base {estimate.base / 1e9:.3f} G parameters, trainable {estimate.trainable / 1e6:.2f} M{where}, "
        f"{estimate.tokens} tokens per sample",
        *(f"  {use:<24}{size:8.2f} GB" for use, size in estimate.memory.items() if size),
        f"  {'total':<24}{estimate.total:8.2f} GB of {card.memory:g} GB on {name}: {verdict}",
        f"{estimate.flops / 1e12:.1f} TFLOP per {unit}, about {estimate.seconds:.1f} s at {card.rate:g} "
        "TFLOP/s",
    ]
    return "\n".join(lines)
