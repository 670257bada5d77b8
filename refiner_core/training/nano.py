"""Trains the embedded default: `omnirefiner train nano`.

Supervised training of a FLUX in miniature on procedural triplets, in stages of growing crops.
Every step draws its batch and noise from (seed, step), so a resumed run is the same run.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .. import flow
from ..data.cache import cut_window
from ..models.kontext import Conditioning, velocity, zero_text
from ..nano.codec import BLOCK, BlockCodec
from ..nano.initialisation import initialise, nano_config
from .loss import masked_flow_loss
from .times import draw_times


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    `steps` optimiser steps; `window` side of the square crops in pixels (0 = the whole cached
    crop, all of one bucket in a batch); `batch` crops a step; `rate` peak learning rate of AdamW.
    """

    steps: int
    window: int
    batch: int
    rate: float


@dataclass(frozen=True)
class NanoConfig:
    """How a nano is trained.

    `seed` of all randomness; `ema` decay of the averaged weights that are shipped; `warmup`
    steps of each stage; `clip` largest gradient norm; `time_mean`, `time_std`, `time_uniform` the
    distribution of noise levels (nearly all high: only there must the model copy, and the recipe's
    schedule stays there); `background` weight of what surrounds the region; `every` steps
    between checkpoints; `threads` of torch (0 = its default); `codec_windows` windows of 64 px that
    the codec is fitted to.
    """

    cache: str
    out: str
    stages: tuple[Stage, ...]
    seed: int = 0
    ema: float = 0.998
    warmup: int = 200
    clip: float = 1.0
    time_mean: float = 4.0
    time_std: float = 1.5
    time_uniform: float = 0.05
    background: float = 0.1
    every: int = 500
    threads: int = 0
    codec_windows: int = 2048


class CropReader:
    """Batches out of the cached shards, `uint8 N H W 10` (see `data.cache`)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))
        if not self.paths:
            raise FileNotFoundError(
                f"No training crops (*.npy) in {folder}: build the cache first."
            )
        shards = (np.load(p, mmap_mode="r") for p in self.paths)
        self.shards = [s for s in shards if len(s)]  # a shard may have lost all to the selection

    def batch(self, rng: np.random.Generator, count: int, window: int) -> Tensor:
        """`count` crops, float32 B 10 h w in [0, 1], flipped and recoloured at random."""
        crops: list[np.ndarray] = []
        if window == 0:
            shard = self.shards[int(rng.integers(len(self.shards)))]
            crops = [shard[int(i)] for i in rng.integers(0, len(shard), count)]
        for _ in range(count if window else 0):
            shard = self.shards[int(rng.integers(len(self.shards)))]
            crops.append(cut_window(rng, shard[int(rng.integers(len(shard)))], window))
        square = crops[0].shape[0] == crops[0].shape[1]
        return torch.stack([_augment(rng, c, square) for c in crops])


def _augment(rng: np.random.Generator, crop: np.ndarray, square: bool) -> Tensor:
    """Mirrored, turned and recoloured alike in all pictures: copying does not read letters."""
    crop = np.asarray(crop)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop[::-1]
    if square and rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    x = torch.from_numpy(np.array(crop, order="C")).permute(2, 0, 1).float() / 255
    order = rng.permutation(3)
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.12, (3, 1, 1)))).float()
    colors = [(x[i : i + 3][order] * gain).clamp(0, 1) for i in (0, 3, 6)]
    return torch.cat([*colors, x[9:]])


def fit_codec(reader: CropReader, seed: int, windows: int = 2048) -> BlockCodec:
    """The codec's components, from that many 64 px windows of the cache."""
    rng = np.random.default_rng([seed, 3])
    x = reader.batch(rng, windows, 64)
    codec = BlockCodec()
    codec.fit(torch.cat([x[:, :3], x[:, 6:9]]))
    return codec


def latent_mask(mask: Tensor, block: int = BLOCK) -> Tensor:
    """A pixel mask B 1 H W to latent pixels: a block counts when any pixel of it does."""
    return (F.max_pool2d(mask, block) > 0.5).float()


class Trainer:
    """State of one run: model, averaged weights, optimiser, step."""

    def __init__(self, config: NanoConfig) -> None:
        self.config = config
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.reader = CropReader(Path(config.cache))
        self.model = FluxTransformer2DModel(**nano_config())  # type: ignore[arg-type]
        initialise(self.model, config.seed)
        self.codec = BlockCodec()
        if not self.checkpoint.exists():
            self.codec = fit_codec(self.reader, config.seed, config.codec_windows)
        self.ema = OrderedDict((k, v.detach().clone()) for k, v in self.model.state_dict().items())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def save(self) -> None:
        """Write model, average and optimiser moments to one file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, p in self.model.named_parameters():
            tensors[f"model.{name}"] = p.detach()
            tensors[f"ema.{name}"] = self.ema[name]
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        for name, b in self.codec.named_buffers():
            tensors[f"codec.{name}"] = b
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            temporary,
            {"step": str(self.step), "config": json.dumps(asdict(self.config))},
        )
        temporary.replace(self.checkpoint)

    def resume(self) -> None:
        """Continue from the run's checkpoint if there is one."""
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as f:
            self.step = int((f.metadata() or {})["step"])
            keys = set(f.keys())
            for name, p in self.model.named_parameters():
                p.data.copy_(f.get_tensor(f"model.{name}"))
                self.ema[name].copy_(f.get_tensor(f"ema.{name}"))
                state = {
                    k: f.get_tensor(f"adam.{k}.{name}")
                    for k in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{k}.{name}" in keys
                }
                if state:
                    self.optimizer.state[p] = state
            for name, b in self.codec.named_buffers():
                b.copy_(f.get_tensor(f"codec.{name}"))

    def stage(self) -> tuple[Stage, int] | None:
        """The stage that the present step lies in and the step within it; None at the end."""
        done = 0
        for stage in self.config.stages:
            if self.step < done + stage.steps:
                return stage, self.step - done
            done += stage.steps
        return None

    def rate(self, stage: Stage, at: int) -> float:
        """Linear warm-up, then a cosine to a twentieth (to zero in the last stage)."""
        warm = min(1.0, (at + 1) / self.config.warmup)
        floor = 0.0 if stage is self.config.stages[-1] else 0.3
        return (
            stage.rate
            * warm
            * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at / stage.steps)))
        )

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The training loss of crops `B 10 h w`."""
        config = self.config
        z, draft, reference = (self.codec.encode(x[:, i : i + 3]) for i in (0, 3, 6))
        t = draw_times(
            len(x), generator,
            mean=config.time_mean, std=config.time_std, uniform=config.time_uniform,
        )  # fmt: skip
        noise = torch.randn(z.shape, generator=generator)
        text, pooled = zero_text(self.model, len(x))
        conditioning = Conditioning((draft, reference), (1, 2), text, pooled)
        predicted = velocity(self.model, flow.interpolate(z, noise, t), t, conditioning)
        return masked_flow_loss(
            predicted,
            flow.velocity_target(z, noise),
            latent_mask(x[:, 9:]),
            background=self.config.background,
        )

    def train_step(self) -> dict[str, float]:
        found = self.stage()
        assert found is not None
        stage, at = found
        seed = (self.config.seed * 1_000_003 + self.step) % (1 << 31)
        x = self.reader.batch(np.random.default_rng([seed, 5]), stage.batch, stage.window)
        loss = self.loss(x, torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(stage, at)
        self.optimizer.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.ema[name].lerp_(p, 1 - decay)
        self.step += 1
        return {"loss": float(loss.detach()), "norm": float(norm)}

    def run(self) -> None:
        """Train to the end of the last stage, logging to `log.jsonl`."""
        log = self.out / "log.jsonl"
        begun, sums, count = time.perf_counter(), {"loss": 0.0, "norm": 0.0}, 0
        while self.stage() is not None:
            for key, value in self.train_step().items():
                sums[key] += value
            count += 1
            last = self.stage() is None
            if self.step % 50 == 0 or last:
                row = {"step": self.step, **{k: v / count for k, v in sums.items()}}
                row["seconds"] = time.perf_counter() - begun
                with log.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                sums, count = dict.fromkeys(sums, 0.0), 0
            if self.step % self.config.every == 0 or last:
                self.save()


def export(checkpoint: Path, path: Path) -> Path:
    """The averaged weights in bf16 and the codec, as the package ships them."""
    tensors: dict[str, Tensor] = {}
    with safe_open(checkpoint, "pt") as f:
        step = (f.metadata() or {})["step"]
        for key in f.keys():  # noqa: SIM118 (not a dict)
            if key.startswith("ema."):
                tensors[key.removeprefix("ema.")] = f.get_tensor(key).to(torch.bfloat16)
            elif key.startswith("codec."):
                tensors[key] = f.get_tensor(key)
    save_file(tensors, path, {"recipe": "nano", "steps": step})
    return path
