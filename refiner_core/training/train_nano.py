"""The parts of making a nano: its triplets, its untrained start, the settings of both stages, its
evaluation and its model card.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.build import run_build
from ..data.build_settings import Build
from ..data.shards import TripletSet
from ..data.splits import split_data
from ..data.stages.procedural import (
    ProceduralDegrade,
    ProceduralMask,
    ProceduralPair,
    ProceduralSelect,
)
from ..models.core_engine import CoreEngine
from ..models.devices import pick_device
from ..models.flux_transformer import FluxTransformer
from ..nano.codec import BlockCodec
from ..nano.initialisation import initialise, nano_config
from ..nano.nano_engine import load_codec, load_nano
from ..recipes.recipe import NANO_TILES
from ..storage.output_files import write_text
from ..weights.safetensors_io import save_weights
from ..workers.pool import Progress
from .compare import Comparison, held_out_scenes, measure, paired, table
from .config import GRPO_PRESETS, SFT_PRESETS, GrpoConfig, SftConfig
from .export import fingerprint
from .settings import build, merged

_SIDE = 256  # px: square root of a drawn picture's area; its detail is as large as nano's crops
_WINDOW = 64  # px: side of the squares the codec is fitted to
# Only items from which a model this small learns something.
_DATA = {"least_agreement": 19.0, "least_gain": 1.0, "held_out": 64}
_VARIANTS = 16  # of each item in stage 1
_TILES_OF_A_SCENE = 64


@dataclass(frozen=True)
class Setup:
    """What all stages of a nano share."""

    triplets: Path  # a data set
    cache: Path  # of prepared items
    device: str = "auto"
    workers: int = 1  # processes that draw and crop
    seed: int = 0


def draw_triplets(
    setup: Setup, count: int, progress: Progress = lambda done, total, report: None
) -> dict[str, int]:
    """Draw triplets as `data build --count COUNT --size 256 --flat` does; the counts of `run_build`.

    Raises:
        ValueError: no triplet was kept, or the folder was built with other settings.
    """
    pair = ProceduralPair(_SIDE, flat=True)
    stages = (pair, ProceduralSelect(pair), ProceduralMask(pair), ProceduralDegrade(pair))
    build = Build(setup.triplets, stages, count, setup.seed)
    counts = run_build(build, setup.workers, progress)
    if not counts.get("train"):
        raise ValueError(
            f"None of the {count} triplets drawn in {setup.triplets} can be trained on; draw more."
        )
    return counts


def fit_codec(setup: Setup, squares: int = 2048) -> BlockCodec:
    """Fit the codec to `squares` squares of 64 px on the details of targets and references.

    Raises:
        ValueError: all pictures are smaller than 64 px.
    """
    rng = np.random.default_rng([setup.seed, 3])
    data = TripletSet(setup.triplets)
    train, _ = split_data(data, int(_DATA["held_out"]))
    drawn: list[Tensor] = []
    for _ in range(squares // 2):
        t = data[train[int(rng.integers(len(train)))]]
        for image, mask in ((t.target, t.mask), (t.reference, t.reference_mask)):
            if image is not None and min(image.shape[:2]) >= _WINDOW:
                drawn.append(_cut(rng, image, mask))
    if not drawn:
        raise ValueError(
            f"All pictures in {setup.triplets} are smaller than {_WINDOW} px, which nano needs."
        )
    codec = BlockCodec()
    codec.fit(torch.stack(drawn))
    return codec


def _cut(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray | None) -> Tensor:
    """A square of an image, 3 64 64, centred on a random point of the mask as far as the edges allow."""
    h, w = image.shape[:2]
    ys, xs = np.nonzero(np.ones((h, w)) if mask is None or not mask.any() else mask)
    at = int(rng.integers(len(ys)))
    y = int(np.clip(ys[at] - _WINDOW // 2, 0, h - _WINDOW))
    x = int(np.clip(xs[at] - _WINDOW // 2, 0, w - _WINDOW))
    square = np.array(image[y : y + _WINDOW, x : x + _WINDOW])
    return torch.from_numpy(square).permute(2, 0, 1).float() / 255


def untrained_model(seed: int) -> FluxTransformer:
    """The untrained transformer with its positional initialization."""
    model = FluxTransformer(**nano_config())
    initialise(model, seed)
    return model


def write_start(path: Path, setup: Setup) -> Path:
    """Write an untrained nano, float32: its initialization and a codec fitted to the triplets."""
    if not path.exists():
        tensors = {
            k: v.detach().contiguous() for k, v in untrained_model(setup.seed).state_dict().items()
        }
        codec = fit_codec(setup)
        tensors |= {f"codec.{k}": v.contiguous() for k, v in codec.named_buffers()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, tensors, {"recipe": "nano"})
    return path


def sft_config(
    setup: Setup, weights: Path, steps: int, over: dict[str, Any] | None = None
) -> SftConfig:
    """Settings of stage 1: `steps` updates by the nano preset, changed by `over`.

    Raises:
        ValueError: an unknown or contradictory setting.
    """
    chosen = {
        "model": {"base": str(weights)},
        "data": {**_DATA, "variants": _VARIANTS, "workers": setup.workers},
        "optimizer": {"rate": 8e-4, "warmup": min(200, max(1, steps // 10))},
        "run": {"max_steps": steps, "seed": setup.seed},
    }
    return build(SftConfig, merged(merged(SFT_PRESETS["nano"], chosen), over or {}))


def grpo_config(
    setup: Setup, weights: Path, epochs: int, over: dict[str, Any] | None = None
) -> GrpoConfig:
    """Settings of stage 2, as `sft_config`."""
    chosen = {
        "model": {"base": str(weights)},
        "data": {**_DATA, "workers": setup.workers},
        "run": {"max_steps": epochs, "seed": setup.seed},
    }
    return build(GrpoConfig, merged(merged(GRPO_PRESETS["nano"], chosen), over or {}))


def write_tile_start(out: Path, seed: int) -> Path:
    """Write an untrained nano with the embedded one's codec into the folder of a run.

    The embedded weights are not a good start: trained on one crop, they mix draft and reference so
    early that a network behind them cannot tell where the two differ.
    """
    path = out / "start.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        state = untrained_model(seed).state_dict()
        tensors = {k: v.detach().contiguous() for k, v in state.items()}
        tensors |= {f"codec.{k}": v.contiguous() for k, v in load_codec().named_buffers()}
        save_weights(path, tensors, {"recipe": NANO_TILES.name})
    return path


def tile_config(setup: Setup, weights: Path, steps: int, over: dict[str, Any]) -> SftConfig:
    """Settings of stage 1 on tiles: those of `sft_config` for the recipe `nano-tiles`.

    Raises:
        ValueError: an unknown or contradictory setting.
    """
    own = {"data": {"variants": _TILES_OF_A_SCENE}}
    return sft_config(setup, weights, steps, merged(own, over))


def untrained(weights: Path, device: torch.device | str = "cpu") -> CoreEngine:
    """The untrained nano with the codec of `weights`."""
    engine = load_nano(device, weights)
    model = untrained_model(0).eval().requires_grad_(False)
    engine.model = model.to(engine.device)  # pyright: ignore[reportArgumentType] (diffusers wraps it)
    return engine


def evaluate_stages(stages: dict[str, Path], out: Path, count: int, setup: Setup) -> dict[str, Any]:
    """Compare each stage with the previous one on the same held-out scenes; also written to `out`.

    The first stage is compared with the untrained nano, unless it is the "start" itself. An
    evaluation of the same files and count is not repeated.
    """
    marks = {name: fingerprint(path) for name, path in stages.items()}
    if out.exists():
        done = json.loads(out.read_text())
        if done["files"] == marks and done["count"] == count:
            return done
    cases = held_out_scenes(count, setup.workers)
    device = pick_device(setup.device)
    rows: dict[str, dict[str, np.ndarray]] = {}
    if "start" not in stages:
        rows["untrained"] = measure(untrained(next(iter(stages.values())), device), cases)
    rows |= {name: measure(load_nano(device, path), cases) for name, path in stages.items()}
    names = list(rows)
    found = {
        f"{a} -> {b}": [asdict(c) for c in paired(rows[a], rows[b])]
        for a, b in zip(names, names[1:], strict=False)
    }
    content = {"files": marks, "count": count, "steps": found}
    write_text(out, json.dumps(content, indent=1))
    return content


def model_card(stages: dict[str, Path], evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """A model card: what was trained, on what, and how well it does."""
    lines = [
        "# nano, trained here",
        "",
        "FLUX.1-Kontext's architecture in miniature. The pack's own model card says what it is for and",
        "what it is not. Files:",
        "",
    ]
    lines += [f"- {name}: `{path.name}`" for name, path in stages.items()]
    lines += ["", "## Training", "", "```", json.dumps(facts, indent=1), "```", "", "## Held out"]
    for step, found in evaluation["steps"].items():
        a, _, b = step.partition(" -> ")
        comparisons = [Comparison(**c) for c in found]
        lines += ["", table(comparisons, (a, b), evaluation["count"])]
    return "\n".join(lines) + "\n"
