"""Opens a training run: base, weights that learn, data, processes, log; saves and resumes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.shards import TripletSet
from ..data.splits import manifest_hash, split_data
from ..images.geometry import Extent
from ..load import load_engine
from ..models.core_engine import CoreEngine
from ..models.devices import pick_device
from ..models.text import FluxText
from ..models.vae import FluxCodec
from ..nano import resolve_weights
from ..recipes.recipe import KONTEXT, OMNIREFINER, Recipe
from .augment import VariedViews
from .checkpoint import load_checkpoint, save_checkpoint
from .config import DataSettings, GrpoConfig, ModelSettings, SftConfig
from .dataset import Views
from .distributed import Workers, find_workers
from .export import export, fingerprint
from .policy import Policy, VelocityNet
from .prepare import PreparedViews, TextCache, prepare
from .prepare import fingerprint as preparation
from .quantize import quantize
from .sharding import Sharding, check_divisible
from .tracker import Journal
from .trainable import Trainable, add_lora, all_weights, continue_lora
from .validation import look

CHECKPOINT = "checkpoint.safetensors"
REFINER = "refiner.safetensors"
BEST = "best.safetensors"


@dataclass
class Session:
    """Everything a trainer needs, and where it writes."""

    engine: CoreEngine
    trainable: Trainable
    policy: Policy
    views: Views
    held_out: Views
    text: TextCache
    workers: Workers
    journal: Journal
    out: Path
    facts: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        return self.engine.recipe

    def schedule(self, size: tuple[int, int], steps: int | None = None) -> Tensor:
        """The recipe's noise levels for a latent of (height, width)."""
        factor = self.recipe.latent_factor
        return self.recipe.sigmas(Extent(size[1] * factor, size[0] * factor), steps)

    def look(self, role: str | None) -> tuple[dict[str, float], np.ndarray]:
        """Figures and a picture of the held-out cases, by a copy of the weights or as they are."""
        views = self.held_out

        def run() -> tuple[dict[str, float], np.ndarray]:
            return look(
                self.policy, views, self.engine.codec, self.text, self.schedule,
                self.recipe,
            )  # fmt: skip

        if role is None:
            return run()
        with self.trainable.using(role):
            return run()

    def save(
        self, kind: str, step: int, optimizer: torch.optim.Optimizer, extra: dict[str, Any]
    ) -> None:
        """Write the checkpoint and the refiner as it is now (main process only)."""
        if not self.workers.main:
            return
        facts = {**self.facts, **extra, "kind": kind, "step": step}
        save_checkpoint(self.out / CHECKPOINT, self.trainable, optimizer, facts)
        self._export(REFINER, facts)

    def keep_best(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Write the refiner as it is now beside the run's own (main process only)."""
        if self.workers.main:
            self._export(BEST, {**self.facts, "figures": figures, "kind": kind, "step": step})

    def _export(self, name: str, facts: dict[str, Any]) -> None:
        role = "ema" if "ema" in self.trainable.copies else None
        export(self.out / name, self.engine, self.trainable, role, facts)

    def resume(self, kind: str, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Continue from the run's checkpoint if there is one; its facts.

        Raises:
            ValueError: it is of another kind of training, another base or other weights.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return None
        facts = load_checkpoint(path, self.trainable, optimizer)
        for key, mine in (("kind", kind), ("base_fingerprint", self.facts["base_fingerprint"])):
            if facts.get(key) != mine:
                raise ValueError(
                    f"The checkpoint {path} has {key} {facts.get(key)}, this run {mine}. Give "
                    "another --out folder, or the settings it was started with."
                )
        return facts


def load_base(model: ModelSettings) -> CoreEngine:
    """The base on the CPU, with the recipe it is to be trained for.

    Raises:
        ValueError: as `load_engine`.
    """
    engine = load_engine(
        model.base, device="cpu", recipe=model.recipe, clip_l=model.clip_l, t5=model.t5,
        vae=model.vae, tokenizers=model.tokenizers,
    )  # fmt: skip
    if model.recipe is None and engine.recipe is KONTEXT:
        engine.recipe = OMNIREFINER  # a bare Kontext is where an OmniRefiner starts from
    if model.attention != "recipe":
        engine.recipe = replace(engine.recipe, attention=model.attention)
    return engine


def move_codec(engine: CoreEngine, device: torch.device) -> None:
    """Put the codec, and what the engine encodes, on a device; texts are encoded there too."""
    engine.device = device
    if isinstance(engine.text, FluxText):
        engine.text.device = device  # it moves there for a prompt, if there is room
    codec = engine.codec
    module: Any = codec.vae if isinstance(codec, FluxCodec) else codec
    if isinstance(module, nn.Module):
        module.to(device)


def make_trainable(
    engine: CoreEngine, model: ModelSettings, seed: int, sharding: Sharding | None = None
) -> Trainable:
    """Put the weights that learn on the engine's transformer and everything on its device.

    Raises:
        ValueError: all weights are to learn, or the base is quantised, and it is to be divided.
    """
    net = engine.model
    if sharding is not None:
        check_divisible(model)
    if model.train == "lora":
        net.requires_grad_(False)
        if model.precision == "bf16":
            net.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        quantize(net, model.quantize, engine.device)
    if sharding is None:
        net.to(engine.device)  # pyright: ignore[reportArgumentType]
    else:
        sharding.divide(net, engine.device)
    if model.checkpointing:
        net.enable_gradient_checkpointing()
    if model.train == "full":
        return all_weights(net)
    if model.lora:
        trainable = continue_lora(net, model.lora)
    else:
        trainable = add_lora(net, model.rank, model.alpha, seed)
    for p in trainable.parameters.values():
        p.data = p.data.to(engine.device)  # a base that is kept in the CPU's memory is elsewhere
    return trainable


def prepare_views(
    engine: CoreEngine, data: DataSettings, folder: Path, cache: Path, workers: Workers,
    pixels: bool,
) -> tuple[Views, Views, TextCache]:  # fmt: skip
    """The training and the held-out views of a data set, and the texts they speak of.

    Args:
        folder: the data set.
        cache: where what was prepared is kept, and found again.
        pixels: keep the training views' pixels, for rewards.
    """
    triplets = TripletSet(folder)
    train, held = split_data(triplets, data.held_out)
    order = engine.recipe.order
    source = manifest_hash(folder)
    texts = TextCache(engine.text, engine.recipe.text_tokens, cache / "texts")
    found: list[PreparedViews] = []
    for part, chosen, keep in (("train", train, pixels or data.variants > 1), ("held", held, True)):
        place = cache / preparation(engine, data, f"{source}/{part}/{chosen}", keep)
        names = prepare(
            triplets, chosen, engine, data, place, workers, pixels=keep, needed=part == "train"
        )  # fmt: skip
        found.append(PreparedViews(place, order, names))
    prompts = sorted({"", *found[0].prompts(), *found[1].prompts()})
    for prompt in prompts[workers.rank :: workers.count]:
        texts(prompt)
    workers.wait()
    texts.encoder = None
    if isinstance(engine.text, FluxText):
        engine.text.release()
    views: Views = found[0]
    if data.variants > 1:
        views = VariedViews(views, engine, data.variants, data.grow)
    return views, found[1], texts


def open_session(
    config: SftConfig | GrpoConfig, data: Path, out: Path, device: str, *, pixels: bool,
    cache: Path | None = None,
) -> Session:  # fmt: skip
    """Load the base, prepare the data, and put the weights that learn on it.

    Args:
        data: a folder of triplet shards.
        out: the run's folder; a run that is there already goes on.
        device: auto, cpu, cuda or cuda:N.
        pixels: keep the training views' pixels, for rewards.
        cache: where prepared views are kept; None = in `out`.

    Raises:
        ValueError: settings, base or data that cannot be used.
    """
    where = pick_device(device)
    workers = find_workers(where)
    if workers.accelerator is not None:
        where = workers.accelerator.device
    config.check_processes(workers.count)
    if workers.sharding is not None:
        check_divisible(config.model)
    out.mkdir(parents=True, exist_ok=True)
    engine = load_base(config.model)
    move_codec(engine, where)
    cache = cache or out / "cache"
    views, held, text = prepare_views(engine, config.data, data, cache, workers, pixels)
    return assemble(config, engine, views, held, text, out, workers, manifest_hash(data))


def assemble(
    config: SftConfig | GrpoConfig, engine: CoreEngine, views: Views, held_out: Views, text: TextCache,
    out: Path, workers: Workers, data_hash: str,
) -> Session:  # fmt: skip
    """A session of parts that are there already."""
    trainable = make_trainable(engine, config.model, config.run.seed, workers.sharding)
    net = VelocityNet(engine.model, engine.recipe.attention)
    policy = Policy(net, engine.device, config.model.precision)
    facts: dict[str, Any] = {
        "base_fingerprint": fingerprint(resolve_weights(config.model.base)),
        "data_manifest": data_hash,
        "settings": json.loads(json.dumps(asdict(config))),
    }
    journal = Journal(out, config.run.board, workers.main, facts["settings"])
    return Session(
        engine, trainable, policy, views, held_out, text, workers, journal, out, facts
    )  # fmt: skip
