"""Every setting of learning changes what is learnt, or it is refused, or said to have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.training.config import RunConfig
from refiner_core.training.dataset import Item, Pixels
from refiner_core.training.settings import build, merged
from refiner_core.training.train import make_objective
from refiner_core.training.trainer import Trainer
from refiner_core.training.unused_settings import unused_settings
from tests.tiny_training import STAGES, TinyDataset, tiny_session

PARTS = {"pixels": 1.0, "edges": 0.3, "whole": 0.0, "patch": 0.0, "background": 0.0}
# With two siblings only their order would count, not how far they are apart.
GROUPS = {
    "rollout": {"groups": 2, "group": 3},
    "objective": {"rewards": PARTS},
    "run": {"micro_batch": 3},
}
SMALL: dict[str, dict[str, Any]] = {
    "sft": {
        "loss": {"caption_dropout": 0.0, "reference_dropout": 0.0, "contrast_temperature": 5.0}
    },
    "grpo": GROUPS,
    "nft": GROUPS,
    "reward": {"unroll": {"gradient_steps": 3}, "objective": {"rewards": PARTS}},
    "dpo": {"run": {"batch": 4}},
}
# Settings from which single ones are changed: of an objective, and what differs from the plain run.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SMALL},
    "sft, contrast": ("sft", {"loss": {"contrast": 1.0}}),
    "sft, plain": ("sft", {"loss": {"masked": False, "timesteps": "mode"}}),
    "sft, uniform": ("sft", {"loss": {"uniform": 1.0}, "optimizer": {"ema": 0.0}}),
    "grpo, window": ("grpo", {"rollout": {"steps": 6, "window": 2}, "objective": {"kl": 0.0}}),
    "grpo, places": ("grpo", {"objective": {"map_share": 0.5, "spread": "running"}}),
    "nft, mean": ("nft", {"rollout": {"group_mean": True}, "objective": {"nft_adaptive": False}}),
    "reward, one": ("reward", {"unroll": {"gradient_steps": 1}}),
    "reward, sft": (
        "reward",
        {"objective": {"sft": 0.5}, "loss": {"contrast_temperature": 5.0, "uniform": 0.0}},
    ),
    "dpo, plain": ("dpo", {"loss": {"masked": False}}),
}
# Another value of every setting that learning reads; those with a few fixed values take all others.
OTHER: dict[str, Any] = {
    "model.rank": 2,
    "model.alpha": 9.0,
    "loss.region": 3.0,
    "loss.background": 3.0,
    "loss.masked": False,
    "loss.root": True,
    "loss.timesteps": None,
    "loss.mean": 1.0,
    "loss.std": 0.3,
    "loss.uniform": 0.9,
    "loss.shift": False,
    "loss.guidance": 4.0,
    "loss.caption_dropout": 1.0,
    "loss.reference_dropout": 1.0,
    "loss.contrast": 0.5,
    "loss.contrast_others": 1,
    "loss.contrast_temperature": 2.0,
    "loss.contrast_scale": 1.0,
    "optimizer.rate": 3e-3,
    "optimizer.weight_decay": 1.0,
    "optimizer.beta2": 0.5,
    "optimizer.clip": 1e-6,
    "optimizer.warmup": 5,
    "optimizer.schedule": None,
    "optimizer.ema": 0.1,
    "optimizer.ema_every": 2,
    "run.batch": 6,
    "run.seed": 5,
    "rollout.groups": 4,
    "rollout.group": 6,
    "rollout.steps": 5,
    "rollout.kind": None,
    "rollout.eta": 0.4,
    "rollout.eta_end": 0.2,
    "rollout.window": 2,
    "rollout.window_every": 1,
    "rollout.guidance": 3.0,
    "rollout.same_noise": True,
    "rollout.group_mean": True,
    "objective.rewards": {"pixels": 0.2},
    "objective.combine": None,
    "objective.tame": True,
    "objective.spread": None,
    "objective.spread_decay": 0.2,
    "objective.floor": 0.5,
    "objective.clip": 0.0,
    "objective.guard": None,
    "objective.kl": 2.0,
    "objective.kl_to": None,
    "objective.updates": 1,
    "objective.map_share": 0.8,
    "objective.nft_beta": 0.5,
    "objective.nft_levels": 1,
    "objective.nft_adaptive": False,
    "objective.sft": 0.2,
    "objective.beta": 20.0,
    "objective.ranked": True,
    "unroll.steps": 4,
    "unroll.gradient_steps": 2,
    "unroll.truncation": None,
    "unroll.start_level": 0.7,
    "unroll.uncertainty": 0.1,
    "unroll.guidance": 3.0,
}
# Settings that decide on files, crops, memory or the course of a run, and the judge's: they have
# tests of their own. `data.dilate` is here only by what it changes, the region.
ELSEWHERE = {
    *(f"model.{n}" for n in ("base", "recipe", "attention", "train", "lora", "quantize")),
    *(f"model.{n}" for n in ("clip_l", "t5", "vae", "tokenizers", "checkpointing", "precision")),
    *(f"data.{n}" for n in ("megapixels", "crops", "context", "flip", "jitter", "dilate")),
    *(f"data.{n}" for n in ("held_out", "least_agreement", "least_gain", "variants", "workers")),
    *(f"run.{n}" for n in ("max_steps", "micro_batch", "save_every", "validate_every", "board")),
    *(f"judge.{n}" for n in ("url", "model", "key", "form", "passes", "tie_band")),
    *("judge.timeout", "judge.retries", "optimizer.eight_bit", "unroll.checkpointing"),
    *("objective.algorithm", "objective.dreamsim", "objective.patience"),
}


def reward(images: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    """Two parts that disagree, the second much louder."""
    apart = (images - pixels.target).abs().flatten(1).mean(1)
    return {"pixels": (-apart).exp(), "edges": images[:, 0].flatten(1).std(1) ** 2}


def settings_of(config: Any) -> Iterator[tuple[str, Any]]:
    """The names of all settings, and their types."""
    for group in fields(config):
        value = getattr(config, group.name)
        if is_dataclass(value):
            for name, hint in get_type_hints(type(value)).items():
                if not name.startswith("_") and name in {f.name for f in fields(value)}:
                    yield f"{group.name}.{name}", hint


def options_of(hint: Any) -> list[str]:
    """The values of a setting that has a few fixed ones."""
    return [v for part in (hint, *get_args(hint)) for v in get_args(part) if isinstance(v, str)]


def settings(base: str, over: dict[str, Any]) -> RunConfig:
    stage, own = BASES[base]
    kind, values = STAGES[stage]
    values = merged(merged(merged(values, SMALL[stage]), own), {"run": {"max_steps": 2}})
    return build(kind, merged(values, over))


def learnt(config: RunConfig, out: Path) -> list[Tensor]:
    """All weights after two steps, and their averages."""
    session = tiny_session(config, out)
    objective = make_objective(config, session, reward)
    trainer = Trainer(objective, session.trainable, config.optimizer, 2)
    for _ in range(2):
        trainer.train_step()
    found = [p.detach() for p in session.trainable.parameters.values()]
    return [*found, *session.trainable.copies.get("ema", {}).values()]


def learnt_from_other_regions(config: RunConfig, out: Path) -> list[Tensor]:
    """The same with what is outside the region as the region."""
    plain = TinyDataset.__getitem__

    def turned(self: TinyDataset, index: int) -> Item:
        item = plain(self, index)
        return replace(item, mask=1 - item.mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyDataset, "__getitem__", turned)
        return learnt(config, out)


def is_same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def changes(base: str) -> Iterator[tuple[str, Any]]:
    """The settings of a base with other values than it has."""
    config = settings(base, {})
    for name, hint in settings_of(config):
        group, _, setting = name.partition(".")
        now = getattr(getattr(config, group), setting)
        if name in OTHER and OTHER[name] is not None and OTHER[name] != now:
            yield name, OTHER[name]
        if name in OTHER and OTHER[name] is None:
            yield from ((name, value) for value in options_of(hint) if value != now)


@pytest.mark.slow
def test_a_setting_changes_what_is_learnt_or_is_said_to_have_no_effect(tmp_path: Path) -> None:
    wrong: list[str] = []
    effective: set[tuple[str, str]] = set()  # objective and setting
    for base, (stage, _) in BASES.items():
        before = learnt(settings(base, {}), tmp_path)
        for name, value in changes(base):
            group, _, setting = name.partition(".")
            try:
                config = settings(base, {group: {setting: value}})
            except ValueError as e:
                assert setting in str(e), (
                    f"{base}: {name} = {value} is refused without its name: {e}"
                )
                continue
            unused = name in unused_settings(config)
            if (stage, name) in effective and not unused:
                continue  # known from a plainer base
            changed = not is_same(before, learnt(config, tmp_path))
            effective |= {(stage, name)} if changed else set()
            if changed == unused:
                wrong.append(f"{base}: {name} = {value}, changed: {changed}")
        turned = not is_same(before, learnt_from_other_regions(settings(base, {}), tmp_path))
        if turned == ("data.dilate" in unused_settings(settings(base, {}))):
            wrong.append(f"{base}: regions, changed: {turned}")
    assert not wrong, "\n".join(wrong)
    assert {name for _, name in effective} == set(OTHER), "a setting without an effect anywhere"


def test_every_setting_is_looked_at() -> None:
    known = {name for base in BASES for name, _ in settings_of(settings(base, {}))}
    assert known == set(OTHER) | ELSEWHERE
    assert not set(OTHER) & ELSEWHERE
    for base in BASES:
        assert set(unused_settings(settings(base, {}))) <= known


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ({"rollout": {"steps": 5, "window": 3}}, "rollout.window = 3 .* 5 sampler steps.* 2"),
        (
            {"rollout": {"steps": 4, "window": 2, "window_every": 9}},
            "window_every = 9 .*window = 2",
        ),
        ({"rollout": {"eta_end": 0.3}}, "rollout.eta_end = 0.3 .*rollout.window = 1"),
        ({"objective": {"tame": True, "rewards": {**PARTS, "edges": 0.0}}}, "tame .*pixels"),
        ({"objective": {"patience": 3}}, "patience = 3 .*run.validate_every = 0"),
        ({"judge": {"url": "http://a/v1"}}, "judge.url = 'http://a/v1'"),
    ],
)
def test_what_cannot_have_an_effect_is_refused(over: dict[str, Any], values: str) -> None:
    with pytest.raises(ValueError, match=values):
        settings("grpo", over)


@pytest.mark.parametrize(
    ("over", "values"),
    [({"eta_end": 0.3, "window": 2}, "eta_end = 0.3"), ({"window_every": 25}, "window_every = 25")],
)
def test_nft_refuses_what_is_about_stochastic_steps(over: dict[str, Any], values: str) -> None:
    with pytest.raises(ValueError, match=f"{values} .*objective.algorithm = 'nft'"):
        settings("nft", {"rollout": over})


def test_a_window_must_fit_into_the_steps_of_the_recipe(tmp_path: Path) -> None:
    config = settings("grpo", {"rollout": {"steps": None, "window": 15}})
    session = tiny_session(config, tmp_path)
    half = session.recipe.steps // 2
    assert half < 15
    with pytest.raises(ValueError, match=rf"rollout.window = 15 .* {half}\b"):
        make_objective(config, session, reward)


def test_what_a_user_gives_without_effect_is_said_and_presets_are_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = ["train", "plan", "--stage", "grpo", "--preset", "nano"]
    assert main(plan) == 0
    assert "no effect" not in capsys.readouterr().err
    given = ["--set", "rollout.eta=0.4", "--set", "objective.spread_decay=0.5"]
    assert main([*plan, *given]) == 0
    said = capsys.readouterr().err
    assert "rollout.eta = 0.4" in said and "objective.spread_decay = 0.5" in said
    assert said.count("no effect") == 2
