"""What can be set for supervised training and for GRPO, and the presets.

Where the paper is silent (ranks, rates, group size) the values follow public recipes for
FLUX.1-Kontext: Flow-GRPO, DanceGRPO, Flow-Factory, diffusers' and ai-toolkit's LoRA trainers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .advantages import Combine, Spread
from .losses import Guard
from .settings import Group, check_range, option, section
from .timestep_sampling import Times
from .tracker import Board

Quantize = Literal["none", "int8", "fp8", "nf4"]


@dataclass(frozen=True)
class ModelSettings(Group):
    """What is trained."""

    base: str = option("nano", '"nano", a FLUX.1-Kontext file, or a diffusers folder.')
    recipe: str | None = option(None, "Recipe to train for; empty: the base's own.")
    attention: Literal["recipe", "both ways", "one way"] = option(
        "recipe", "Who attends to whom; one way, references cost nothing after the first step."
    )
    clip_l: str | None = option(None, "CLIP text encoder file; empty: found beside the base.")
    t5: str | None = option(None, "T5 text encoder file; empty: found beside the base.")
    vae: str | None = option(None, "Autoencoder file; empty: found beside the base.")
    tokenizers: str | None = option(None, "Folder of the tokenizers; empty: found.")
    train: Literal["lora", "full"] = option("lora", "Train a LoRA, or all weights (small models).")
    lora: str | None = option(None, "LoRA file to go on from; its rank then counts.")
    rank: int = option(16, "Rank of the LoRA.", 1, 1024)
    alpha: float = option(16.0, "Scale of the LoRA is alpha / rank.", 1e-3, 1e4)
    quantize: Quantize = option("none", "How the frozen base is stored.")
    checkpointing: bool = option(False, "Recompute activations backwards: less memory, 1/3 slower.")
    precision: Literal["fp32", "bf16"] = option("fp32", "Arithmetic of the network.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train == "full" and self.lora:
            raise ValueError("model.train = 'full' and model.lora exclude each other: merge first.")
        if self.train == "full" and self.quantize != "none":
            raise ValueError(
                f"model.quantize = {self.quantize!r} freezes the base; it cannot go with "
                "model.train = 'full'. Set one of them otherwise."
            )


@dataclass(frozen=True)
class DataSettings(Group):
    """How triplets become training views."""

    megapixels: float | None = option(None, "Area of the crops, 10^6 px; empty: the recipe's.")
    views: int = option(1, "Differently cropped views of every triplet.", 1, 64)
    context: tuple[float, float] = option(
        (1.2, 3.0), "Crop over region size of a view, drawn between these two."
    )
    flip: bool = option(False, "Mirror half of the references (not with lettering).")
    jitter: float = option(0.0, "Spread of the random gain of the reference's colours.", 0, 0.5)
    grow: int = option(1, "Growth of the region in the loss, latent px.", 0, 16)
    held_out: int = option(16, "Triplets set aside for sample pictures and figures.", 0, 4096)
    least_agreement: float | None = option(
        None,
        "Leave out views whose aligned reference agrees less with the truth once both are "
        "blurred, PSNR in dB; empty: none.",
    )
    least_gain: float | None = option(
        None,
        "Leave out views whose aligned reference is not so much nearer to the truth than the "
        "draft, dB; empty: none.",
    )
    variants: int = option(
        1,
        "Cases of every view: the first as it is, the others mirrored, turned and recoloured "
        "alike in all pictures, and at another share of the aligned reference.",
        1,
        256,
    )
    workers: int = option(1, "Processes that frame views, which takes time where references are "
                          "aligned.", 1, 256)  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.context", min(self.context), 1, 20)
        if self.context[0] > self.context[1]:
            raise ValueError(f"data.context must rise, got {list(self.context)}.")


@dataclass(frozen=True)
class LossSettings(Group):
    """The masked flow-matching loss."""

    region: float = option(1.0, "Weight of the mean error inside the region.", 0, 1e4)
    background: float = option(1.0, "Weight of the error outside it.", 0, 1e4)
    masked: bool = option(True, "False: the plain mean over the picture (for comparison).")
    times: Times = option("logit_normal", "Distribution of the noise levels.")
    mean: float = option(0.0, "Mean of the logit-normal.")
    std: float = option(1.0, "Spread of the logit-normal.", 0, 10)
    uniform: float = option(0.2, "Share of levels drawn evenly over (0, 1].", 0, 1)
    shift: bool = option(True, "Then shift by the recipe's schedule for the crop's size.")
    guidance: float = option(1.0, "Guidance embedding in training, where the model has one.")
    caption_dropout: float = option(0.1, "Share of samples that see no prompt.", 0, 1)
    reference_dropout: float = option(0.05, "Share of steps without reference tokens.", 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked and self.region + self.background == 0:
            raise ValueError("loss.region and loss.background are both 0: nothing would be learnt.")


@dataclass(frozen=True)
class OptimizerSettings(Group):
    """AdamW and the running average."""

    rate: float = option(1e-4, "Learning rate.", 0, 1)
    weight_decay: float = option(1e-4, "Decoupled weight decay.", 0, 10)
    beta2: float = option(0.999, "Memory of the second moment.", 0, 0.999999)
    clip: float = option(1.0, "Largest norm of a gradient.", 1e-6, 1e6)
    warmup: int = option(0, "Updates over which the rate rises from 0.", 0, 10**9)
    schedule: Literal["constant", "cosine"] = option("constant", "Cosine falls to 0 at max_steps.")
    eight_bit: bool = option(False, "Moments in 8 bit (needs bitsandbytes).")
    ema: float = option(0.0, "Decay of the averaged weights that are saved; 0 = no average.", 0, 1)
    ema_every: int = option(1, "Updates between two averagings.", 1, 1 << 20)


@dataclass(frozen=True)
class RunSettings(Group):
    """Course of a run."""

    max_steps: int = option(3000, "Updates (of GRPO: epochs) in all.", 1, 10**9)
    batch: int = option(4, "Samples an update, over all processes.", 1, 1 << 20)
    micro_batch: int = option(1, "Samples at once on a device.", 1, 1 << 20)
    seed: int = option(0, "Seed of everything random.", 0, 2**31 - 1)
    save_every: int = option(250, "Steps between checkpoints.", 1, 10**9)
    sample_every: int = option(
        250, "Steps between sample pictures and held-out figures; 0 = none.", 0, 10**9
    )
    board: Board = option("none", "Where curves go beside log.jsonl.")


@dataclass(frozen=True)
class SftConfig:
    """Stage 1: supervised fine-tuning."""

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    loss: LossSettings = section(LossSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    def check_processes(self, count: int) -> None:
        """Raise ValueError if the batch cannot be dealt evenly to processes and micro-batches."""
        if self.run.batch % (self.run.micro_batch * count):
            raise ValueError(
                f"run.batch = {self.run.batch} is not a multiple of run.micro_batch = "
                f"{self.run.micro_batch} times {count} processes."
            )


@dataclass(frozen=True)
class RolloutSettings(Group):
    """How samples are drawn."""

    groups: int = option(24, "Cases an epoch, over all processes.", 1, 1 << 16)
    group: int = option(12, "Samples of each case.", 2, 4096)
    steps: int | None = option(10, "Sampler steps; empty: the recipe's.")
    kind: Literal["flow", "dance", "cps"] = option("flow", "Stochastic step of the window.")
    eta: float = option(0.7, "Noise of the stochastic step.", 1e-3, 2)
    window: int = option(
        2, "Stochastic steps in the first half of the schedule; the rest is ODE.", 1, 1000
    )
    guidance: float | None = option(2.5, "Guidance embedding; empty: the recipe's.")
    same_noise: bool = option(False, "Start all samples of a case from one noise.")
    consensus: bool = option(
        False,
        "Learn from the mean of a case's samples, judged beside them, from the noise that each was "
        "sampled from (nft); otherwise noise is drawn anew.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "cps":
            check_range("rollout.eta", self.eta, 1e-3, 0.99)
        if self.steps is not None and self.steps < 2:
            raise ValueError(
                f"rollout.steps must be at least 2, got {self.steps}: the last step is never random."
            )


@dataclass(frozen=True)
class ObjectiveSettings(Group):
    """What GRPO maximises."""

    algorithm: Literal["grpo", "nft"] = option("grpo", "Flow-GRPO, or DiffusionNFT.")
    rewards: dict[str, float] = option(
        {"whole": 0.5, "patch": 0.5, "pixels": 0.5, "edges": 0.5, "background": 0.25},
        "Weight of every part of the reward; a part of weight 0 is only logged.",
    )
    combine: Combine = option("each", "Normalise every part in its group, or their sum.")
    spread: Spread = option("group", "Divide by the group's spread or the batch's.")
    floor: float = option(1e-4, "Groups of a smaller spread are dropped.", 0, 1)
    clip: float = option(
        0.026, "Clip of the ratio times the root of a sample's dimensions.", 0, 1e6
    )
    guard: Guard = option("offset", "GRPO-Guard's correction of the ratio.")
    kl: float = option(0.01, "Weight of the divergence (nft: of the velocity's).", 0, 1e6)
    kl_to: Literal["old", "ref"] = option("old", "From the last epoch's policy, or from stage 1's.")
    updates: int = option(2, "Optimiser steps an epoch.", 1, 1024)
    nft_beta: float = option(
        1.0, "How far DiffusionNFT's implicit policies lie from the old one.", 1e-3, 10
    )
    nft_levels: int = option(2, "Noise levels a sample is judged at (nft).", 1, 100)
    nft_adaptive: bool = option(
        True, "Divide a sample's error by its size (nft), as the paper does."
    )
    dreamsim: str | None = option(
        None, "DreamSim weights (.safetensors) for whole and patch; empty: a structural score."
    )
    patience: int = option(
        0,
        "Held-out looks without a gain after which to stop, keeping best.safetensors; 0 = never.",
        0,
        10**6,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.rewards.values()):
            raise ValueError("objective.rewards are all 0: there is nothing to climb.")


@dataclass(frozen=True)
class GrpoConfig:
    """Stage 2: reinforcement learning from rewards."""

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    rollout: RolloutSettings = section(RolloutSettings)
    objective: ObjectiveSettings = section(ObjectiveSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    def __post_init__(self) -> None:
        if self.rollout.groups % self.objective.updates:
            raise ValueError(
                f"rollout.groups = {self.rollout.groups} cannot be dealt into objective.updates = "
                f"{self.objective.updates} equal parts."
            )
        r = self.rollout
        if r.consensus and self.objective.algorithm != "nft":
            raise ValueError(
                "rollout.consensus = true learns from a mean of samples, which GRPO's ratios say nothing "
                "of: set objective.algorithm = 'nft', or it to false."
            )
        if r.same_noise and self.objective.algorithm == "nft":
            raise ValueError(
                "rollout.same_noise = true leaves nothing to learn with objective.algorithm = 'nft', which "
                "samples by the ODE: samples of one noise are one sample. Set it to false."
            )
        if self.rollout.group % self.run.micro_batch:
            raise ValueError(
                f"run.micro_batch = {self.run.micro_batch} must divide rollout.group = "
                f"{self.rollout.group}: a group is sampled and judged in equal parts."
            )

    def check_processes(self, count: int) -> None:
        """Raise ValueError if the groups cannot be dealt evenly to processes."""
        if self.rollout.groups % count:
            raise ValueError(
                f"rollout.groups = {self.rollout.groups} cannot be dealt to {count} processes evenly."
            )


# Values that differ from the defaults. 24 GB: an 8-bit base (11.9 GB), two clean inputs at
# 0.26 megapixels (3584 tokens), batch 1. 80 GB: bf16 base, rank 64, one megapixel (12800 tokens).
SFT_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        "loss": {
            "mean": 4.0, "std": 1.5, "uniform": 0.05, "shift": False,
            "reference_dropout": 0.0, "caption_dropout": 0.0,
        },
        "optimizer": {
            "rate": 2e-4, "weight_decay": 0.01, "beta2": 0.98, "ema": 0.998, "warmup": 50,
            "schedule": "cosine",
        },
        "run": {"batch": 8, "micro_batch": 8, "max_steps": 500},
    },
    "kontext-24gb": {
        "model": {
            "base": "flux1-dev-kontext.safetensors", "quantize": "int8", "rank": 16, "alpha": 16.0,
            "checkpointing": True, "precision": "bf16",
        },
        "data": {"megapixels": 0.262, "views": 2},
        "optimizer": {"eight_bit": True, "warmup": 50},
        "run": {"batch": 4, "micro_batch": 1, "max_steps": 3000, "board": "tensorboard"},
    },
    "kontext-80gb": {
        "model": {
            "base": "flux1-dev-kontext.safetensors", "rank": 64, "alpha": 64.0,
            "checkpointing": True, "precision": "bf16",
        },
        "data": {"views": 2},
        "optimizer": {"warmup": 100, "ema": 0.999},
        "run": {"batch": 8, "micro_batch": 2, "max_steps": 6000, "board": "tensorboard"},
    },
}  # fmt: skip

GRPO_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        # Nano's schedule stays at t > 0.94, where seeds differ by a residue of their noise: it learns
        # from their mean, which has less of it. Many small updates, so that the loss can hold back
        # what an update moves unintentionally.
        "rollout": {
            "groups": 16, "group": 4, "steps": None, "guidance": None, "consensus": True,
        },
        "objective": {
            "algorithm": "nft", "kl": 0.0, "nft_levels": 1, "nft_beta": 0.2,
            "nft_adaptive": False, "updates": 4,
        },
        "optimizer": {"rate": 1e-5, "ema": 0.9, "beta2": 0.99},
        "run": {"micro_batch": 4, "max_steps": 40, "save_every": 5, "sample_every": 5},
    },
    "kontext-24gb": {
        "model": SFT_PRESETS["kontext-24gb"]["model"],
        "data": {"megapixels": 0.262},
        "rollout": {"steps": 6, "groups": 24, "group": 12},
        "optimizer": {"eight_bit": True, "ema": 0.9, "ema_every": 8},
        "run": {"micro_batch": 1, "max_steps": 300, "save_every": 5, "sample_every": 10,
                "board": "tensorboard"},
    },
    "kontext-80gb": {
        "model": SFT_PRESETS["kontext-80gb"]["model"],
        "data": {"megapixels": 0.262},
        "optimizer": {"ema": 0.9, "ema_every": 8},
        "run": {"micro_batch": 4, "max_steps": 300, "save_every": 5, "sample_every": 10,
                "board": "tensorboard"},
    },
}  # fmt: skip
