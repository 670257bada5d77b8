"""The settings of learning through the reward (`train reward`), and their presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .config import (
    SFT_PRESETS,
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    RewardSettings,
    RunConfig,
    RunSettings,
    StepCost,
)
from .settings import Group, option, section


@dataclass(frozen=True)
class UnrollSettings(Group):
    """How the sampler is unrolled and which of its steps have a gradient."""

    steps: int | None = option(None, "Sampler steps; empty: those of the recipe.")
    gradient_steps: int | None = option(
        1,
        "Last steps that have a gradient (DRaFT-K), fewer where the chain from start_level is shorter; "
        "empty: all (AlignProp).",
        1,
        1000,
    )
    truncation: Literal["fixed", "random", "single"] = option(
        "fixed",
        "fixed: exactly those steps (DRaFT-K); random: a number from 1 to that, drawn for each update "
        "(AlignProp); single: one of them, whose estimate of the image is rewarded (ReFL).",
    )
    start_level: float = option(
        1.0,
        "Noise level at which the unrolled chain starts; below 1, a finished sample is noised to the "
        "first level of the schedule that is not above (InstructVideo).",
        0.01,
        1,
    )
    checkpointing: bool = option(
        True, "Recompute each step in the backward pass instead of keeping its activations."
    )
    uncertainty: float = option(
        0.0,
        "Ctrl-U: the reward loss times exp(-U) plus this weight times U, U being the difference of the "
        "reward between the last two estimates of the image; published 0.1; 0: off.",
        0,
        100,
    )
    guidance: float | None = option(
        None, "Value of the guidance embedding; empty: that of the recipe."
    )


@dataclass(frozen=True)
class UnrolledObjectiveSettings(RewardSettings):
    """What is maximized, and what holds it back."""

    section_name: ClassVar[str | None] = "objective"

    sft: float = option(
        0.0, "Weight of stage 1's loss (group loss) beside the reward, against drift.", 0, 1e4
    )


@dataclass(frozen=True)
class UnrolledConfig(RunConfig):
    """Learning through the reward: the sampler is unrolled and its last steps are backpropagated."""

    kind: ClassVar[str] = "reward"
    needs_pixels: ClassVar[bool] = True

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    unroll: UnrollSettings = section(UnrollSettings)
    objective: UnrolledObjectiveSettings = section(UnrolledObjectiveSettings)
    loss: LossSettings = section(LossSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    def __post_init__(self) -> None:
        self.check_patience()
        if self.loss.contrast and not self.objective.sft:
            raise ValueError(
                f"loss.contrast = {self.loss.contrast:g} is a part of stage 1's loss, which "
                "objective.sft = 0 leaves out. Set loss.contrast to 0, or objective.sft above 0."
            )
        steps, gradient = self.unroll.steps, self.unroll.gradient_steps
        if steps is not None and gradient is not None and gradient > steps:
            raise ValueError(
                f"unroll.gradient_steps = {gradient} is more than unroll.steps = {steps}."
            )
        if self.unroll.uncertainty and self.unroll.truncation == "single":
            raise ValueError(
                f"unroll.uncertainty = {self.unroll.uncertainty:g} compares two estimates, but "
                "unroll.truncation = 'single' has one. Set it to 0, or another truncation."
            )

    def cost(self, steps: int) -> StepCost:
        """See `RunConfig.cost`."""
        u = self.unroll
        most = steps if u.gradient_steps is None else min(u.gradient_steps, steps)
        learnt = {"fixed": most, "random": (1 + most) / 2, "single": 1}[u.truncation]
        plain = steps - (most + 1) / 2 if u.truncation == "single" else steps - learnt
        if u.checkpointing:
            plain += learnt  # each step is computed again
        if u.start_level < 1:
            plain += steps  # the sample that is noised
        stored = 1 if u.checkpointing or u.truncation == "single" else most
        sft = self.loss.passes if self.objective.sft else 0
        batch = self.run.batch
        return StepCost(batch * plain, batch * (learnt + sft), stored, decoded=True)

    @property
    def sampler_steps(self) -> int | None:
        """See `RunConfig.sampler_steps`."""
        return self.unroll.steps

    @property
    def patience(self) -> int:
        """See `RunConfig.patience`."""
        return self.objective.patience


UNROLLED_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        "loss": SFT_PRESETS["nano"]["loss"],
        # The region's parts: with the default weights the background's small scale drowns them.
        "objective": {
            "rewards": {
                "whole": 0.0,
                "patch": 1.0,
                "pixels": 1.0,
                "edges": 1.0,
                "background": 0.1,
            },
            "patience": 5,
        },
        # In equal time ahead of all steps in SSIM and the scorer, behind in PSNR; updates cost half.
        "unroll": {"gradient_steps": 1},
        "optimizer": {"rate": 1e-5, "ema": 0.9, "beta2": 0.99},
        "run": {"batch": 8, "micro_batch": 4, "max_steps": 200, "validate_every": 20},
    },
    "kontext-24gb": {
        "model": SFT_PRESETS["kontext-24gb"]["model"],
        "data": {"megapixels": 0.262},
        "unroll": {"steps": 10},
        "objective": {"patience": 5},
        "optimizer": {"rate": 5e-5, "eight_bit": True, "ema": 0.99},
        "run": {"batch": 4, "micro_batch": 1, "max_steps": 500, "validate_every": 25},
    },
    "kontext-80gb": {
        "model": SFT_PRESETS["kontext-80gb"]["model"],
        "data": {"megapixels": 0.262},
        "unroll": {"steps": 10, "gradient_steps": 4, "truncation": "random"},
        "objective": {"patience": 5},
        "optimizer": {"rate": 5e-5, "ema": 0.99},
        "run": {"batch": 8, "micro_batch": 1, "max_steps": 500, "validate_every": 25},
    },
}
