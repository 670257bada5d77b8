"""What follows nano's supervised training: reinforcement, evaluation, model card. Each resumes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FluxTransformer2DModel

from ..data.cache import CacheSpec, build_cache
from ..models.engine import CoreEngine
from ..nano.engine import load_nano
from ..nano.initialisation import initialise, nano_config
from ..pictures.images import atomic_path
from .compare import Comparison, held_out_scenes, measure, paired, table
from .config import GRPO_PRESETS, GrpoConfig
from .crops import CropViews
from .export import fingerprint
from .prepare import TextCache
from .run import train_grpo
from .session import assemble, load_base, manifest_hash
from .settings import build, merged
from .workers import Workers

_HELD_OUT = 32


def reinforce(
    weights: Path,
    crops: Path,
    out: Path,
    steps: int,
    seed: int = 0,
    over: dict[str, Any] | None = None,
    window: int = 0,
) -> Path:
    """Stage 2 of a nano on its own crops: `steps` epochs; the refiner's path.

    Args:
        weights: the stage-1 nano.
        crops: cached crops; those held out are drawn from another seed beside `out`.
        out: the stage's folder; goes on where it stopped.
        over: settings over the preset's.
        window: side of the squares cut from the crops, px; 0 = whole crops.
    """
    base = {"model": {"base": str(weights)}, "run": {"max_steps": steps, "seed": seed}}
    config = build(GrpoConfig, merged(merged(GRPO_PRESETS["nano"], base), over or {}))
    out.mkdir(parents=True, exist_ok=True)
    engine = load_base(config.model)
    build_cache(out / "held-out", CacheSpec(512, seed=seed + 7_000), 1)
    share = engine.recipe.prefill
    views = CropViews(crops, engine.codec, share, window=window)
    held = CropViews(out / "held-out", engine.codec, share, stop=_HELD_OUT)
    text = TextCache(engine.text, engine.recipe.text_tokens, out / "texts")
    session = assemble(
        config, engine, views, held, text, out, Workers(), manifest_hash(crops)
    )  # fmt: skip
    return train_grpo(config, session)


def untrained(weights: Path) -> CoreEngine:
    """The nano before any training: its positional start, with the codec of `weights`."""
    engine = load_nano(path=weights)
    model = FluxTransformer2DModel(**nano_config())  # type: ignore[arg-type]
    initialise(model, 0)
    engine.model = model.eval().requires_grad_(False)
    return engine


def evaluate_stages(
    stages: dict[str, Path], out: Path, count: int, workers: int = 2
) -> dict[str, Any]:
    """Every stage against the one before on the same held-out scenes; also in `out` as JSON.

    An evaluation of the same files and count is not done twice.
    """
    marks = {name: fingerprint(path) for name, path in stages.items()}
    if out.exists():
        done = json.loads(out.read_text())
        if done["files"] == marks and done["count"] == count:
            return done
    cases = held_out_scenes(count, workers)
    rows: dict[str, dict[str, np.ndarray]] = {
        "untrained": measure(untrained(next(iter(stages.values()))), cases)
    }
    rows |= {name: measure(load_nano(path=path), cases) for name, path in stages.items()}
    names = list(rows)
    found = {
        f"{a} -> {b}": [asdict(c) for c in paired(rows[a], rows[b])]
        for a, b in zip(names, names[1:], strict=False)
    }
    content = {"files": marks, "count": count, "steps": found}
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    return content


def model_card(stages: dict[str, Path], evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """A card of what was trained, on what, and how well it does."""
    lines = ["# nano, trained here", "", "FLUX.1-Kontext's architecture in miniature; see the pack's own",
             "card for what it is and is not. Files:", ""]  # fmt: skip
    lines += [f"- {name}: `{path.name}`" for name, path in stages.items()]
    lines += ["", "## Training", "", "```", json.dumps(facts, indent=1), "```", "", "## Held out"]
    for step, found in evaluation["steps"].items():
        a, _, b = step.partition(" -> ")
        comparisons = [Comparison(**c) for c in found]
        lines += ["", table(comparisons, (a, b), evaluation["count"])]
    return "\n".join(lines) + "\n"
