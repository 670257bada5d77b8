"""`omnirefiner train`: the commands that train, compare and plan refiners, on anybody's triplets."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.config import RunConfig

_STAGES = {
    "sft": "stage 1: supervised training on a folder of triplets",
    "grpo": "stage 2: reinforcement learning, starting from a stage-1 refiner",
    "reward": "stage 2: learning through the gradient of the reward, from a stage-1 refiner",
    "dpo": "learning from kept and rejected repairs, from a stage-1 refiner",
}


def add_parser(commands: Any) -> Any:
    """Add the commands `sft`, `grpo`, `plan` and `curves`; the group, for more commands."""
    parser = commands.add_parser("train", help="train a refiner")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for stage, title in _STAGES.items():
        _add_stage(kinds, stage, title)
    _add_plan(kinds)
    _add_curves(kinds)
    return kinds


def _add_stage(kinds: Any, stage: str, title: str) -> None:
    p = kinds.add_parser(stage, help=title)
    add_settings(p)
    p.add_argument(
        "--data",
        metavar="DIR",
        help="folder of triplet shards; dpo: of preferences, or of an evaluation or audit",
    )
    p.add_argument("--out", metavar="DIR", help="folder of the run; an existing run is continued")
    p.add_argument(
        "--cache",
        metavar="DIR",
        help="folder of prepared crops, which several runs can share; default: cache in --out",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--print-config",
        action="store_true",
        help="print all settings with their documentation as TOML, and exit",
    )
    p.set_defaults(run=run, stage=stage)


def add_settings(p: argparse.ArgumentParser) -> None:
    """Add the options that settings are read from."""
    p.add_argument(
        "--preset", choices=("nano", "kontext-24gb", "kontext-80gb"), help="settings to start from"
    )
    p.add_argument(
        "--config", metavar="FILE", help=".toml or .json file of settings that override the preset"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        dest="assignments",
        help="a setting that overrides the file; can be given several times",
    )
    p.add_argument("--max-steps", type=int, metavar="N", help="updates (grpo: epochs) in total")


def read_settings(stage: str, chosen: argparse.Namespace) -> Any:
    """The settings of the preset, the file and the command line; later ones override earlier ones.

    Raises:
        ValueError: an unknown or contradictory setting.
    """
    from ..training.settings import build, merged, parse_assignments, read_settings_file

    kind, presets = _stage(stage)
    preset = presets[chosen.preset] if chosen.preset else {}
    values = preset
    if chosen.config:
        values = merged(values, read_settings_file(chosen.config))
    values = merged(values, parse_assignments(chosen.assignments))
    if chosen.max_steps is not None:
        values = merged(values, {"run": {"max_steps": chosen.max_steps}})
    config = build(kind, values)
    _say_what_is_unused(config, build(kind, preset))
    return config


def _say_what_is_unused(config: RunConfig, preset: RunConfig) -> None:
    """Name the settings that the user changed and that have no effect."""
    from ..training.unused_settings import unused_settings

    for name, reason in unused_settings(config).items():
        group, _, setting = name.partition(".")
        given, before = (getattr(getattr(c, group), setting) for c in (config, preset))
        if given != before and os.environ.get("RANK", "0") == "0":
            print(f"{name} = {given} has no effect: {reason}.", file=sys.stderr)


def _stage(stage: str) -> tuple[type[Any], dict[str, dict[str, Any]]]:
    """The settings and the presets of a kind of training."""
    from ..training import config, config_dpo, config_unrolled

    return {
        "sft": (config.SftConfig, config.SFT_PRESETS),
        "grpo": (config.GrpoConfig, config.GRPO_PRESETS),
        "reward": (config_unrolled.UnrolledConfig, config_unrolled.UNROLLED_PRESETS),
        "dpo": (config_dpo.DpoConfig, config_dpo.DPO_PRESETS),
    }[stage]


def run(chosen: argparse.Namespace) -> None:
    """Train, or print the settings."""
    from ..training.open_session import open_session
    from ..training.settings import write_toml
    from ..training.train import train

    config = read_settings(chosen.stage, chosen)
    if chosen.print_config:
        print(write_toml(config))
        return
    if not chosen.data or not chosen.out:
        raise ValueError(f"train {chosen.stage} needs --data DIR and --out DIR.")
    cache = Path(chosen.cache) if chosen.cache else None
    session = open_session(config, Path(chosen.data), Path(chosen.out), chosen.device, cache=cache)
    reward = _reward(config, session)
    path = train(config, session, reward)
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {path}")


def _reward(config: Any, session: Any) -> Any:
    """The reward of the settings, or None for an objective without one."""
    from ..training.config import GrpoConfig, RewardSettings
    from ..training.reward import make_reward

    if not isinstance(getattr(config, "objective", None), RewardSettings):
        return None
    judged = isinstance(config, GrpoConfig)
    return make_reward(
        config.objective,
        session.policy.device,
        config.judge if judged else None,
        session.out / "vlm-cache.jsonl",
        differentiable=not judged,
    )


def _add_plan(kinds: Any) -> None:
    p = kinds.add_parser("plan", help="estimate parameters, memory and time without weights")
    p.add_argument("--stage", choices=tuple(_STAGES), default="sft")
    p.add_argument("--card", default="h100", help="cpu, rtx4090, h100, ...; default: %(default)s")
    p.add_argument(
        "--processes", type=int, default=1, metavar="N", help="number of cards, one process each"
    )
    p.add_argument(
        "--divided", action="store_true", help="shard the base over the cards (FSDP 2 or ZeRO 3)"
    )
    add_settings(p)
    p.set_defaults(run=run_plan)


def run_plan(chosen: argparse.Namespace) -> None:
    """Print the estimate."""
    from ..training.memory_estimate import CARDS, describe_estimate, estimate_memory

    if chosen.card not in CARDS:
        raise ValueError(f"Unknown card {chosen.card!r}; choose one of {', '.join(CARDS)}.")
    card = CARDS[chosen.card]
    if chosen.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {chosen.processes}.")
    settings = read_settings(chosen.stage, chosen)
    estimate = estimate_memory(settings, card, chosen.processes, chosen.divided)
    unit = "epoch" if chosen.stage == "grpo" else "update"
    print(describe_estimate(estimate, chosen.card, card, unit))


def _add_curves(kinds: Any) -> None:
    p = kinds.add_parser("curves", help="plot losses, rewards and held-out metrics of runs")
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, as given to --out")
    p.add_argument("--out", required=True, metavar="FILE", help="the .png, .svg or .pdf to write")
    p.set_defaults(run=run_curves)


def run_curves(chosen: argparse.Namespace) -> None:
    """Plot the curves."""
    from ..training.curves import draw_curves

    draw_curves([Path(r) for r in chosen.runs], Path(chosen.out))
    print(f"wrote {chosen.out}")
