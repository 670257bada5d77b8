"""What a training run needs, worked out without weights: parameters, memory by part, time a step.

Arithmetic, not measurement: multiply-adds of the blocks and of attention, and the bytes of what has
to be in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..models.flux_transformer import FluxTransformer
from ..nano import nano_file, resolve_weights
from ..nano.initialisation import nano_config
from ..recipes.recipe import NANO, OMNIREFINER, Recipe
from .config import GrpoConfig, ModelSettings, SftConfig
from .quantize import in_a_block
from .sharding import check_divisible
from .trainable import add_lora, all_weights

if TYPE_CHECKING:
    from ..models.flux_transformer import Transformer

GB = 1e9
# Of a weight in a block, scales included.
BITS = {"int8": 8, "fp8": 8, "nf4": 4.13}


@dataclass(frozen=True)
class Card:
    """`memory` GB; `rate` dense bf16 matmul TFLOP/s that training reaches of what the maker names
    (about half); for "cpu" a rough float32 rate of one core.
    """

    memory: float
    rate: float


CARDS = {
    "cpu": Card(16, 0.03), "rtx3090": Card(24, 35), "rtx4090": Card(24, 80), "rtx5090": Card(32, 110),
    "l40s": Card(48, 180), "a100": Card(80, 160), "h100": Card(80, 400), "h200": Card(141, 400),
    "b200": Card(180, 900),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """`parts` GB of one card by what they hold; `modules` that a LoRA changes (0: all weights learn);
    `tokens` of one sample; `flops` and `seconds` of an update (of GRPO: an epoch).
    """

    base: int
    trainable: int
    modules: int
    tokens: int
    parts: dict[str, float]
    flops: float
    seconds: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def _model(small: bool) -> FluxTransformer:
    """The transformer on the meta device."""
    with torch.device("meta"):
        return FluxTransformer(**(nano_config() if small else {"guidance_embeds": True}))


def _base_bytes(model: Transformer, settings: ModelSettings) -> float:
    """Bytes of the base as it is kept."""
    numbers = sum(p.numel() for p in model.parameters())
    wide = 2 if settings.precision == "bf16" and settings.train == "lora" else 4
    if settings.quantize == "none":
        return numbers * wide
    packed = sum(
        m.weight.numel() for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and in_a_block(m, n)
    )  # fmt: skip
    return packed * BITS[settings.quantize] / 8 + (numbers - packed) * wide


def _gathered_bytes(model: Transformer, settings: ModelSettings) -> float:
    """Bytes of a divided base's blocks that are whole at a time: the present one and the next."""
    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    return 2 * largest * (2 if settings.precision == "bf16" else 4)


def count_tokens(recipe: Recipe, megapixels: float | None) -> int:
    """Tokens of one sample: noisy, draft and reference of one bucket's size, and text."""
    size = recipe.buckets.scaled(megapixels)[0]
    patch = 2 * recipe.latent_factor
    return 3 * (size.width // patch) * (size.height // patch) + recipe.text_tokens


def forward_flops(model: Transformer, tokens: int) -> float:
    """Floating-point operations of one forward pass of one sample (2 a multiply-add)."""
    hidden = model.inner_dim
    double, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    # A token passes one stream of a double block (attention 4 h^2, feed-forward 8 h^2) or a single
    # block (q, k, v 3 h^2, feed-forward in 4 h^2, both out 5 h^2): 12 h^2 either way.
    matmuls = 2 * 12 * hidden * hidden * (double + single) * tokens
    attention = 4 * tokens * tokens * hidden * (double + single)
    return float(matmuls + attention)


def step_flops(config: SftConfig | GrpoConfig, once: float, recipe: Recipe) -> float:
    """Operations of an update (of GRPO: an epoch) where one forward pass of a sample takes `once`."""
    # A pass backwards costs two forward ones (one and a bit for a LoRA on a frozen base), and a
    # checkpointed one computes the forward again.
    full = config.model.train == "full"
    learn = once * ((3 if full else 2.1) + (1 if config.model.checkpointing else 0))
    if not isinstance(config, GrpoConfig):
        return learn * config.run.batch
    r, o = config.rollout, config.objective
    steps = r.steps or recipe.steps
    extra = (o.kl > 0 and o.kl_to == "ref") + (o.algorithm == "nft")
    judged = o.nft_levels if o.algorithm == "nft" else min(r.window, max(1, steps // 2))
    judged *= 1 + r.consensus  # the mean is learnt from beside every sample
    return r.groups * r.group * (steps * once + judged * (learn + extra * once))


def _recipe(base: str) -> Recipe:
    """The recipe of a base, whose file need not be there: a nano's, or else OmniRefiner's."""
    path = resolve_weights(base)
    return NANO if path.is_file() and nano_file(path) is not None else OMNIREFINER


def make_plan(
    config: SftConfig | GrpoConfig, card: Card, processes: int = 1, divided: bool = False
) -> Plan:
    """Parameters, memory and time of a run with these settings, one process to a card.

    Args:
        divided: the base is divided over the processes (FSDP 2, ZeRO 3).

    Raises:
        ValueError: work that cannot be dealt to so many processes, or a base that cannot be divided.
    """
    config.check_processes(processes)
    full = config.model.train == "full"
    if divided:
        check_divisible(config.model)
    recipe = _recipe(config.model.base)
    model = _model(recipe is NANO)
    base, held = sum(p.numel() for p in model.parameters()), _base_bytes(model, config.model)
    gathered = _gathered_bytes(model, config.model) if divided else 0.0
    trainable = (
        all_weights(model) if full else add_lora(model, config.model.rank, config.model.alpha)
    )
    learning, tokens = len(trainable), count_tokens(recipe, config.data.megapixels)
    moments = 2 if config.optimizer.eight_bit else 8
    copies = (1 if config.optimizer.ema else 0) + (2 if isinstance(config, GrpoConfig) else 0)
    parts = {
        "base": held / (processes if divided else 1) / GB,
        "blocks put together": gathered / GB,
        "learning weights": 0.0 if full else learning * 4 / GB,
        "gradients": learning * 4 * (1 if processes == 1 else 2) / GB,  # 2: while they are summed
        "optimizer": learning * moments / GB,
        "copies (ema, old, ref)": learning * 4 * copies / GB,
        "activations": _activation_bytes(model, config, tokens) / GB,
        "autoencoder, workspace": 0.1 if recipe is NANO else 1.5,
    }
    flops = step_flops(config, forward_flops(model, tokens), recipe)
    seconds = flops / (card.rate * 1e12) / processes
    modules = 0 if full else len(trainable.parameters) // 2
    return Plan(base, learning, modules, tokens, parts, flops, seconds)


def _activation_bytes(model: Transformer, config: SftConfig | GrpoConfig, tokens: int) -> float:
    """Bytes kept for the backward pass of a micro-batch."""
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    again = config.model.checkpointing
    # What one block keeps for its backward pass: about 34 vectors of the model's width a token.
    vectors = blocks + 34 if again else 34 * blocks
    wide = 2 if config.model.precision == "bf16" else 4
    return config.run.micro_batch * tokens * model.inner_dim * wide * vectors


def describe_plan(plan: Plan, name: str, card: Card, unit: str) -> str:
    """The plan as lines for people."""
    where = f" in {plan.modules} modules" if plan.modules else ""
    lines = [
        f"base {plan.base / 1e9:.3f} G parameters, learning {plan.trainable / 1e6:.2f} M{where}, "
        f"{plan.tokens} tokens a sample",
        *(f"  {part:<24}{size:8.2f} GB" for part, size in plan.parts.items() if size),
        f"  {'together':<24}{plan.total:8.2f} GB of {card.memory:g} GB on {name}: "
        + ("fits" if plan.total < 0.95 * card.memory else "does not fit"),
        f"{plan.flops / 1e12:.1f} TFLOP {unit}, about {plan.seconds:.1f} s at {card.rate:g} TFLOP/s",
    ]
    return "\n".join(lines)
