"""What a training run needs, worked out without weights: parameters, memory by part, time a step.

Arithmetic, not measurement: multiply-adds of the blocks and of attention, and the bytes of what has
to be in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel

from ..nano.initialisation import nano_config
from ..recipes import NANO, OMNIREFINER, Recipe
from .config import GrpoConfig, SftConfig
from .trainable import add_lora, all_weights

GB = 1e9
_BITS = {"none": 16, "int8": 8, "fp8": 8, "nf4": 4.5}


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
    """`parts` GB by what they hold; `tokens` of one sample; `flops` and `seconds` of an update (of
    GRPO: an epoch).
    """

    base: int
    trainable: int
    tokens: int
    parts: dict[str, float]
    flops: float
    seconds: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def _models(config: SftConfig | GrpoConfig) -> tuple[FluxTransformer2DModel, int, int, Recipe]:
    """The transformer on the meta device, its size, the learning weights' number, the recipe."""
    small = config.model.base == "nano"
    with torch.device("meta"):
        model = FluxTransformer2DModel(**(nano_config() if small else {"guidance_embeds": True}))  # type: ignore[arg-type]
    base = sum(p.numel() for p in model.parameters())
    if config.model.train == "full":
        return model, base, len(all_weights(model)), NANO if small else OMNIREFINER
    learning = len(add_lora(model, config.model.rank, config.model.alpha))
    return model, base, learning, NANO if small else OMNIREFINER


def count_tokens(recipe: Recipe, megapixels: float | None) -> int:
    """Tokens of one sample: noisy, draft and reference of one bucket's size, and text."""
    size = recipe.buckets.scaled(megapixels)[0]
    patch = 2 * recipe.latent_factor
    return 3 * (size.width // patch) * (size.height // patch) + recipe.text_tokens


def forward_flops(model: FluxTransformer2DModel, tokens: int) -> float:
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
    return r.groups * r.group * (steps * once + judged * (learn + extra * once))


def make_plan(config: SftConfig | GrpoConfig, card: Card) -> Plan:
    """Parameters, memory and time of a run with these settings on a card."""
    model, base, learning, recipe = _models(config)
    full = config.model.train == "full"
    tokens = count_tokens(recipe, config.data.megapixels)
    micro = config.run.micro_batch
    moments = 2 if config.optimizer.eight_bit else 8
    copies = (1 if config.optimizer.ema else 0) + (2 if isinstance(config, GrpoConfig) else 0)
    wide = 2 if config.model.precision == "bf16" else 4
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    width = model.inner_dim * wide / GB
    kept = blocks if config.model.checkpointing else 0
    # What one block keeps for its backward pass: about 34 vectors of the model's width a token.
    inside = 34 * (1 if config.model.checkpointing else blocks)
    weights = base * 4 if full else base * _BITS[config.model.quantize] / 8 * wide / 2
    parts = {
        "base": weights / GB,
        "learning weights": 0.0 if full else learning * 4 / GB,
        "gradients": learning * 4 / GB,
        "optimizer": learning * moments / GB,
        "copies (ema, old, ref)": learning * 4 * copies / GB,
        "activations": micro * tokens * width * (kept + inside),
        "autoencoder, workspace": 0.1 if recipe is NANO else 1.5,
    }
    flops = step_flops(config, forward_flops(model, tokens), recipe)
    return Plan(base, learning, tokens, parts, flops, flops / (card.rate * 1e12))


def describe_plan(plan: Plan, name: str, card: Card, unit: str) -> str:
    """The plan as lines for people."""
    lines = [
        f"base {plan.base / 1e9:.3f} G parameters, learning {plan.trainable / 1e6:.2f} M, "
        f"{plan.tokens} tokens a sample",
        *(f"  {part:<24}{size:8.2f} GB" for part, size in plan.parts.items()),
        f"  {'together':<24}{plan.total:8.2f} GB of {card.memory:g} GB on {name}: "
        + ("fits" if plan.total < 0.95 * card.memory else "does not fit"),
        f"{plan.flops / 1e12:.1f} TFLOP {unit}, about {plan.seconds:.1f} s at {card.rate:g} TFLOP/s",
    ]
    return "\n".join(lines)
