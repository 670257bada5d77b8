"""`omnirefiner train sft` and `train grpo`: the two stages, on anybody's triplets."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

_STAGES = {
    "sft": "stage 1: supervised, on a folder of triplets",
    "grpo": "stage 2: reinforcement learning from a stage-1 refiner",
}


def add_parsers(kinds: Any) -> None:
    """Add both commands' options."""
    for name, title in _STAGES.items():
        p = kinds.add_parser(name, help=title)
        add_settings(p)
        p.add_argument("--data", metavar="DIR", help="folder of triplet shards")
        p.add_argument("--out", metavar="DIR", help="run folder; an existing run goes on")
        p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        p.add_argument("--print-config", action="store_true",
                       help="print the settings as TOML, explained, and stop")  # fmt: skip
        p.set_defaults(run=run, stage=name)


def add_settings(p: argparse.ArgumentParser) -> None:
    """Add the options that settings are read from."""
    p.add_argument("--preset", choices=("nano", "kontext-24gb", "kontext-80gb"),
                   help="settings to start from")  # fmt: skip
    p.add_argument("--config", metavar="FILE", help="settings over the preset's, .toml or .json")
    p.add_argument(
        "--set", action="append", default=[], metavar="GROUP.NAME=VALUE", dest="assignments",
        help="one setting over the file's; may be given often",
    )  # fmt: skip
    p.add_argument("--max-steps", type=int, metavar="N", help="updates (grpo: epochs) in all")


def read_settings(stage: str, chosen: argparse.Namespace) -> Any:
    """The settings of the preset, the file and the command line, the last one winning.

    Raises:
        ValueError: an unknown or contradictory setting.
    """
    from ..training.config import GRPO_PRESETS, SFT_PRESETS, GrpoConfig, SftConfig
    from ..training.settings import build, merged, parse_assignments, read_file

    presets = SFT_PRESETS if stage == "sft" else GRPO_PRESETS
    values = presets[chosen.preset] if chosen.preset else {}
    if chosen.config:
        values = merged(values, read_file(chosen.config))
    values = merged(values, parse_assignments(chosen.assignments))
    if chosen.max_steps is not None:
        values = merged(values, {"run": {"max_steps": chosen.max_steps}})
    return build(SftConfig if stage == "sft" else GrpoConfig, values)


def run(chosen: argparse.Namespace) -> None:
    """Train, or print the settings."""
    from ..training.settings import write_toml

    config = read_settings(chosen.stage, chosen)
    if chosen.print_config:
        print(write_toml(config))
        return
    if not chosen.data or not chosen.out:
        raise ValueError(f"train {chosen.stage} needs --data DIR and --out DIR.")
    from ..training.train import run_grpo, run_sft

    work = run_sft if chosen.stage == "sft" else run_grpo
    path = work(config, Path(chosen.data), Path(chosen.out), chosen.device)
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {path}")
