"""Which settings have no effect because of the others, so that a user who gives one can be told."""

from __future__ import annotations

from collections.abc import Iterator

from .config import (
    GrpoConfig,
    JudgeSettings,
    LossSettings,
    ModelSettings,
    ObjectiveSettings,
    RunConfig,
    SftConfig,
)
from .config_dpo import DpoConfig
from .config_unrolled import UnrolledConfig, UnrollSettings

# Whether the reason applies, the settings that it leaves without effect, and the reason.
_Rule = tuple[bool, str, str]


def unused_settings(config: RunConfig) -> dict[str, str]:
    """The settings that change nothing, by name (`group.name`), each with the reason."""
    return {
        name: reason
        for applies, names, reason in _rules(config)
        if applies
        for name in names.split()
    }


def _rules(config: RunConfig) -> Iterator[_Rule]:
    yield from _model(config.model)
    ema, held_out = config.optimizer.ema, config.data.held_out
    yield ema == 0, "optimizer.ema_every", "optimizer.ema = 0 keeps no average"
    yield held_out == 0, "run.validate_every", "data.held_out = 0 leaves nothing to validate on"
    if isinstance(config, SftConfig):
        yield from _loss(config.loss)
        yield not config.loss.masked, "data.dilate", "loss.masked = false ignores the region"
    elif isinstance(config, GrpoConfig):
        yield from _reinforcement(config)
    elif isinstance(config, UnrolledConfig):
        yield from _unrolled(config)
    elif isinstance(config, DpoConfig):
        yield from _preferences(config)


def _model(model: ModelSettings) -> Iterator[_Rule]:
    size = "model.rank model.alpha"
    yield model.lora is not None, size, "the LoRA of model.lora brings its own"
    yield model.train == "full", size, "model.train = 'full' trains no LoRA"


def _loss(loss: LossSettings) -> Iterator[_Rule]:
    yield not loss.masked, "loss.region loss.background", "loss.masked = false takes the plain mean"
    yield (
        loss.timesteps != "logit_normal",
        "loss.mean loss.std",
        f"loss.timesteps = {loss.timesteps!r} has none",
    )
    yield (
        loss.uniform == 1,
        "loss.timesteps loss.mean loss.std loss.shift",
        "loss.uniform = 1 draws all noise levels uniformly",
    )
    yield (
        not loss.contrast,
        "loss.contrast_others loss.contrast_temperature loss.contrast_scale",
        "loss.contrast = 0 turns the contrast off",
    )


def _reinforcement(config: GrpoConfig) -> Iterator[_Rule]:
    o = config.objective
    yield True, "run.batch", "an epoch takes rollout.groups groups"
    yield not o.map_share, "data.dilate", "objective.map_share = 0 ignores where the region is"
    if o.algorithm == "grpo":
        settings = "objective.nft_beta objective.nft_levels objective.nft_adaptive"
        yield True, settings, "objective.algorithm = 'grpo' does not use it"
    else:
        settings = "rollout.kind rollout.eta rollout.window objective.clip objective.guard"
        yield True, settings, "objective.algorithm = 'nft' samples without stochastic steps"
    yield from _advantages(o)
    yield from _judge(config.judge, bool(o.rewards.get("judge")))


def _advantages(o: ObjectiveSettings) -> Iterator[_Rule]:
    yield o.kl_weight == 0, "objective.kl_to", "objective.kl = 0 leaves the divergence out"
    yield (
        o.spread != "running",
        "objective.spread_decay",
        f"objective.spread = {o.spread!r} is not averaged over epochs",
    )


def _judge(judge: JudgeSettings, asked: bool) -> Iterator[_Rule]:
    settings = "model key form passes tie_band timeout retries"
    names = " ".join(f"judge.{name}" for name in settings.split())
    yield not asked, names, "objective.rewards gives judge no weight"
    yield judge.form != "pairs", "judge.tie_band", f"judge.form = {judge.form!r} compares no pairs"


def _unrolled(config: UnrolledConfig) -> Iterator[_Rule]:
    yield from _unrolling(config.unroll)
    loss, weight = config.loss, config.objective.sft
    yield from _loss(loss)
    names = " ".join(f"loss.{name}" for name in vars(loss))
    yield not weight, f"{names} data.dilate", "objective.sft = 0 leaves stage 1's loss out"
    yield not loss.masked, "data.dilate", "loss.masked = false ignores the region"


def _unrolling(unroll: UnrollSettings) -> Iterator[_Rule]:
    yield (
        unroll.gradient_steps == 1 and unroll.truncation == "random",
        "unroll.truncation",
        "unroll.gradient_steps = 1 leaves nothing to draw",
    )


def _preferences(config: DpoConfig) -> Iterator[_Rule]:
    loss = config.loss
    yield from _loss(loss)
    yield (
        True,
        "loss.root loss.caption_dropout loss.reference_dropout",
        "learning from preferences does not use it",
    )
    yield (
        not loss.masked and not config.objective.map_share,
        "data.dilate",
        "loss.masked = false ignores the region",
    )
