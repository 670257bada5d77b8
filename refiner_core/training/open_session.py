"""Opens a session: loads the base, prepares the data, and adds the trainable weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from ..data.splits import manifest_hash
from ..load import load_engine
from ..models.core_engine import CoreEngine
from ..models.devices import pick_device
from ..nano import resolve_weights
from ..recipes.recipe import KONTEXT, NANO_TILES, OMNIREFINER
from .config import DataSettings, ModelSettings, RunConfig, SftConfig
from .dataset import Dataset
from .distributed import Processes, launched_processes
from .export import export, fingerprint
from .policy import Policy, VelocityNet
from .preference_data import group_preferences, write_preferences
from .prepare import prepare_datasets
from .quantize import quantize
from .session import Session
from .sharding import Sharding
from .text_cache import TextCache
from .tile_dataset import HELD_OUT_SCENES, TileDataset
from .tracker import Tracker
from .trainable import Trainable, add_lora, all_weights, continue_lora


def load_base(model: ModelSettings) -> CoreEngine:
    """The base on the CPU, with the recipe it is trained for.

    Raises:
        ValueError: as `load_engine`.
    """
    engine = load_engine(
        model.base,
        device="cpu",
        recipe=model.recipe,
        clip_l=model.clip_l,
        t5=model.t5,
        vae=model.vae,
        tokenizers=model.tokenizers,
    )
    if model.recipe is None and engine.recipe is KONTEXT:
        engine.recipe = OMNIREFINER  # the training of an OmniRefiner starts from a plain Kontext
    if model.attention != "recipe":
        engine.recipe = replace(engine.recipe, attention=model.attention)
    return engine


def make_trainable(
    engine: CoreEngine, model: ModelSettings, seed: int, sharding: Sharding | None = None
) -> Trainable:
    """Put trainable weights on the engine's transformer and everything on its device.

    Raises:
        ValueError: the base is to be sharded, but all weights are trained or the base is quantized.
    """
    net = engine.model
    if sharding is not None:
        model.check_shardable()
    if model.train == "lora":
        net.requires_grad_(False)
        if model.precision == "bf16":
            net.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        quantize(net, model.quantize, engine.device)
    if sharding is None:
        net.to(engine.device)  # pyright: ignore[reportArgumentType]
    else:
        sharding.shard(net, engine.device)
    if model.checkpointing:
        net.enable_gradient_checkpointing()
    if model.train == "full":
        return all_weights(net)
    if model.lora:
        trainable = continue_lora(net, model.lora)
    else:
        trainable = add_lora(net, model.rank, model.alpha, seed)
    for p in trainable.parameters.values():
        p.data = p.data.to(engine.device)  # the base may be kept in the memory of the CPU
    return trainable


def open_session(
    config: RunConfig,
    data: Path,
    out: Path,
    device: str,
    *,
    pixels: bool | None = None,
    cache: Path | None = None,
) -> Session:
    """Load the base, prepare the data, and add the trainable weights.

    Args:
        data: a folder of triplet shards.
        out: the folder of the run; an existing run is continued.
        device: auto, cpu, cuda or cuda:N.
        pixels: keep the pixels of the training items; None: if the stage needs them.
        cache: where prepared items are kept; None: in `out`.

    Raises:
        ValueError: settings, a base or data that cannot be used.
    """
    where = pick_device(device)
    processes = launched_processes(where)
    if processes.accelerator is not None:
        where = processes.accelerator.device
    config.check_processes(processes.count)
    if processes.sharding is not None:
        config.model.check_shardable()
    out.mkdir(parents=True, exist_ok=True)
    engine = load_base(config.model)
    engine.to(where)
    if pixels is None:
        pixels = config.needs_pixels
    cache = cache or out / "cache"
    settings, triplets = config.data, data
    if config.data_form == "preferences":
        triplets, held = _written(config.data, data, cache, processes)
        settings = replace(settings, held_out=held)
    dataset, held_out, text = prepare_datasets(
        engine, engine.text, settings, triplets, cache, processes, pixels
    )
    if config.data_form == "preferences":
        dataset = group_preferences(dataset, triplets)
    engine.release()
    return assemble(
        config, engine, (dataset, held_out), text, out, processes, manifest_hash(triplets)
    )


def _written(
    settings: DataSettings, data: Path, cache: Path, processes: Processes
) -> tuple[Path, int]:
    """The preferences of a folder as triplets, written by the main process."""
    if not processes.main:
        processes.wait()
    found = write_preferences(data, cache, settings.held_out, processes.log)
    if processes.main:
        processes.wait()
    return found


def open_tile_session(config: SftConfig, files: Sequence[Path], out: Path, device: str) -> Session:
    """A session that trains on tiles of drawn scenes, the first of which are held out.

    Args:
        files: more scenes than are held out (see `draw_scenes`).
        out: the folder of the run; an existing run is continued.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: a base that cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    engine = load_base(config.model)
    engine.recipe = NANO_TILES
    engine.to(pick_device(device))
    held_out = TileDataset(files[:HELD_OUT_SCENES], engine, 1)
    dataset = TileDataset(files[HELD_OUT_SCENES:], engine, config.data.variants)
    text = TextCache(engine.text, engine.recipe.text_tokens, out / "texts")
    text(engine.recipe.text(None))
    described = f"{len(files)} scenes"
    processes = launched_processes(engine.device)
    return assemble(config, engine, (dataset, held_out), text, out, processes, described)


def assemble(
    config: RunConfig,
    engine: CoreEngine,
    datasets: tuple[Dataset, Dataset],
    text: TextCache,
    out: Path,
    processes: Processes,
    data_hash: str,
) -> Session:
    """A session of existing parts; `datasets` are the training and the held-out items."""
    sharding = processes.sharding
    trainable = make_trainable(engine, config.model, config.run.seed, sharding)
    settings = json.loads(json.dumps(asdict(cast(Any, config))))
    identity = {
        "kind": config.kind,
        "base_fingerprint": fingerprint(resolve_weights(config.model.base)),
    }

    def write(path: Path, role: str | None, facts: dict[str, Any]) -> None:
        export(path, engine, trainable, role, facts)

    return Session(
        Policy(
            VelocityNet(engine.model, engine.recipe.attention),
            engine.device,
            config.model.precision,
        ),
        trainable,
        datasets[0],
        text,
        engine.codec.decode,
        engine.recipe,
        processes,
        datasets[1],
        Tracker(out, config.run.board, processes.main, settings),
        out,
        write,
        identity,
        {"data_manifest": data_hash, "settings": settings},
        1.0 if sharding is None else sharding.base_share(engine.model),
    )
