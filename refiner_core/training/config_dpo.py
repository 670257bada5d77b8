"""The settings of learning from preferences (`train dpo`), and their presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .config import (
    SFT_PRESETS,
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    RunConfig,
    RunSettings,
    StepCost,
)
from .settings import Group, option, section

_RANKED_REPAIRS = 8  # of a case, for the estimate of costs


@dataclass(frozen=True)
class PreferenceSettings(Group):
    """How much a preference counts."""

    section_name: ClassVar[str | None] = "objective"

    beta: float = option(
        100.0,
        "How sharply the loss tells kept from rejected, and how strongly it holds to the refiner that the "
        "run starts from. Published: 100 (Flow-GRPO's script), 2000 (Flow-Factory).",
        1e-3,
        1e6,
    )
    ranked: bool = option(
        False,
        "Compare all repairs of a case, weighted by the difference of their places (RankDPO); false: one "
        "pair of each case per update.",
    )
    map_share: float = option(
        0.0,
        "Share of the weight of each place that follows from how much the two repairs differ there, as "
        "PatchDPO weighs patches by their quality; 0: all places weigh alike.",
        0,
        1,
    )
    patience: int = option(
        0,
        "Validations without a gain after which the run stops; best.safetensors keeps the best "
        "refiner; 0: never stop early.",
        0,
        10**6,
    )


@dataclass(frozen=True)
class DpoConfig(RunConfig):
    """Learning from kept and rejected repairs: Flow-DPO with the start as the frozen reference."""

    kind: ClassVar[str] = "dpo"
    data_form: ClassVar[str] = "preferences"

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    loss: LossSettings = section(LossSettings)
    objective: PreferenceSettings = section(PreferenceSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    def __post_init__(self) -> None:
        self.check_patience()
        if self.data.variants > 1:
            raise ValueError(
                f"data.variants = {self.data.variants} is not possible with preferences: set it to 1."
            )
        if self.loss.contrast:
            raise ValueError(
                f"loss.contrast = {self.loss.contrast:g} is a part of supervised training, which "
                "learning from preferences does not use: set it to 0."
            )

    def cost(self, steps: int) -> StepCost:
        """See `RunConfig.cost`; orders are assumed to have eight repairs."""
        repairs = _RANKED_REPAIRS if self.objective.ranked else 2
        passes = self.run.batch * repairs
        return StepCost(passes, passes, stored=repairs, copies=1)

    @property
    def patience(self) -> int:
        """See `RunConfig.patience`."""
        return self.objective.patience


DPO_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        "loss": SFT_PRESETS["nano"]["loss"],
        "optimizer": {"rate": 1e-6, "ema": 0.9, "beta2": 0.99},
        "run": {"batch": 8, "micro_batch": 4, "max_steps": 200, "validate_every": 20},
    },
    **{
        name: {
            "model": SFT_PRESETS[name]["model"],
            "data": {"megapixels": 0.262},
            "optimizer": {**SFT_PRESETS[name]["optimizer"], "rate": 1e-5, "ema": 0.99},
            "run": {"batch": 8, "micro_batch": 1, "max_steps": 500, "validate_every": 25},
        }
        for name in ("kontext-24gb", "kontext-80gb")
    },
}
