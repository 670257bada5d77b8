"""The objectives by the names that settings give them."""

from __future__ import annotations

from typing import Any

from ..recipes.recipe import Recipe
from .config import RunConfig
from .dataset import Reward
from .dpo import DpoObjective
from .grpo import GrpoObjective
from .nft import NftObjective
from .objective import Learner, Objective, StepCost
from .sft import SftObjective
from .unrolled import UnrolledObjective

OBJECTIVES: dict[str, Any] = {
    "sft": SftObjective,
    "grpo": GrpoObjective,
    "nft": NftObjective,
    "reward": UnrolledObjective,
    "dpo": DpoObjective,
}


def make_objective(config: RunConfig, learner: Learner, reward: Reward | None = None) -> Objective:
    """The objective of the settings; some need a reward (see `make_reward`).

    Raises:
        ValueError: the work cannot be split evenly over the processes.
    """
    make = OBJECTIVES[config.algorithm]
    if not config.needs_pixels:
        return make(config, learner)
    assert reward is not None, f"train {config.kind} maximizes a reward"
    return make(config, learner, reward)


def step_cost(config: RunConfig, recipe: Recipe) -> StepCost:
    """What a step costs, as the objective of the settings says."""
    return OBJECTIVES[config.algorithm].cost(config, config.sampler_steps or recipe.steps)
