"""How a nano is made: two supervised stages and reinforcement, each as `train sft` and `train grpo`
do it, on crops that are drawn once; then evaluation and model card. Each part resumes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from ..data.cache import CacheSpec, build_cache, cut_window
from ..models.engine import CoreEngine
from ..nano.codec import BlockCodec
from ..nano.engine import load_nano
from ..nano.initialisation import initialise, nano_config
from ..pictures.images import atomic_path
from .compare import Comparison, held_out_scenes, measure, paired, table
from .config import GRPO_PRESETS, SFT_PRESETS, GrpoConfig, SftConfig
from .crops import CropViews, planes, read_shards
from .export import fingerprint
from .policy import Policy, VelocityNet
from .prepare import TextCache
from .run import train_grpo, train_sft
from .session import Session, assemble, load_base, manifest_hash
from .settings import build, merged
from .workers import Workers

_HELD_OUT = CacheSpec(64, shard=32)
_VARIANTS = 16


@dataclass(frozen=True)
class Stage:
    """One part of supervised training.

    `steps` updates of `batch` crops at the peak learning rate `rate`; `window` side of the squares
    cut from the crops, px; 0 = whole crops.
    """

    steps: int
    window: int
    batch: int
    rate: float


def fit_codec(crops: Path, seed: int, windows: int = 2048) -> BlockCodec:
    """The codec's components, from that many 64 px windows of the crops' targets and references."""
    rng = np.random.default_rng([seed, 3])
    shards = [s for s in read_shards(crops)[1] if len(s)]
    drawn = []
    for _ in range(windows):
        shard = shards[int(rng.integers(len(shards)))]
        drawn.append(planes(cut_window(rng, shard[int(rng.integers(len(shard)))], 64)))
    x = torch.cat(drawn)
    codec = BlockCodec()
    codec.fit(torch.cat([x[:, :3], x[:, 6:9]]))
    return codec


def write_start(path: Path, crops: Path, seed: int) -> Path:
    """A nano before any training, float32: its positional start and a codec fitted to the crops."""
    if not path.exists():
        model = FluxTransformer2DModel(**nano_config())  # type: ignore[arg-type]
        initialise(model, seed)
        tensors = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
        codec = fit_codec(crops, seed)
        tensors |= {f"codec.{k}": v.contiguous() for k, v in codec.named_buffers()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"recipe": "nano"})
    return path


def supervise(
    weights: Path,
    crops: Path,
    out: Path,
    stage: Stage,
    seed: int = 0,
    over: dict[str, Any] | None = None,
    net: type[VelocityNet] = VelocityNet,
) -> Path:
    """Supervised training of a nano on its own crops; the refiner's path.

    Args:
        weights: the nano to go on from.
        crops: cached crops; those held out are drawn from another seed beside `out`.
        out: the stage's folder; goes on where it stopped.
        over: settings over the preset's.
        net: how the transformer is called.
    """
    chosen = {
        "model": {"base": str(weights)},
        "optimizer": {"rate": stage.rate, "warmup": min(200, max(1, stage.steps // 10))},
        "run": {
            "max_steps": stage.steps, "batch": stage.batch, "micro_batch": stage.batch, "seed": seed,
        },
    }  # fmt: skip
    config = build(SftConfig, merged(merged(SFT_PRESETS["nano"], chosen), over or {}))
    session = _open(config, crops, out, stage.window, _VARIANTS)
    session.policy = Policy(net(session.engine.model), session.engine.device)
    return train_sft(config, session)


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
    return train_grpo(config, _open(config, crops, out, window, 1))


def _open(
    config: SftConfig | GrpoConfig, crops: Path, out: Path, window: int, variants: int
) -> Session:
    out.mkdir(parents=True, exist_ok=True)
    engine = load_base(config.model)
    build_cache(out / "held-out", replace(_HELD_OUT, seed=config.run.seed + 7_000), 1)
    share = engine.recipe.prefill
    views = CropViews(crops, engine.codec, share, window=window, variants=variants)
    held = CropViews(out / "held-out", engine.codec, share)
    text = TextCache(engine.text, engine.recipe.text_tokens, out / "texts")
    return assemble(config, engine, views, held, text, out, Workers(), manifest_hash(crops))


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

    The first is measured against the untrained nano, unless it is the "start" itself.
    An evaluation of the same files and count is not done twice.
    """
    marks = {name: fingerprint(path) for name, path in stages.items()}
    if out.exists():
        done = json.loads(out.read_text())
        if done["files"] == marks and done["count"] == count:
            return done
    cases = held_out_scenes(count, workers)
    rows: dict[str, dict[str, np.ndarray]] = {}
    if "start" not in stages:
        rows["untrained"] = measure(untrained(next(iter(stages.values()))), cases)
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
