"""Benchmark `train`: time and memory of a training step of both stages, with random weights."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .measuring import median_seconds

if TYPE_CHECKING:
    from refiner_core.models.core_engine import CoreEngine
    from refiner_core.training.config import GrpoConfig, SftConfig
    from refiner_core.training.dataset import Item, Shape

_SIDES = {"tiny": [64], "nano": [128], "kontext": [512, 1024]}


def add_parser(names: Any) -> None:
    """Add the benchmark's options."""
    p = names.add_parser("train", help="seconds and memory of a training step, random weights")
    p.add_argument(
        "--model",
        choices=tuple(_SIDES),
        help="default: nano on a CPU, kontext (11.9 G random weights, bf16, LoRA) on a GPU",
    )
    p.add_argument(
        "--sides", type=int, nargs="+", metavar="PX", help="default: depends on the model"
    )
    p.add_argument("--batch", type=int, default=4, help="samples per step; default: %(default)s")
    p.add_argument("--rounds", type=int, default=3, help="timed steps; the median is reported")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.set_defaults(run=run)


class _FlatCodec:
    """Mean colours at the latent's size; stands in for an autoencoder, which is not measured."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, self.factor).repeat(1, 6, 1, 1)[:, :16]

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=self.factor)


class _RandomDataset:
    """Two items of noise, square pictures of `side` pixels."""

    def __init__(self, side: int, codec: Any) -> None:
        g = torch.Generator().manual_seed(0)
        self._pictures = [torch.rand(1, 3, side, side, generator=g) for _ in range(4)]
        self._latents = [codec.encode(p) for p in self._pictures]
        h, w = self._latents[0].shape[-2:]
        self.shapes: list[Shape] = [((h, w),) * 3] * 2

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Item:
        from refiner_core.training.dataset import Item, Pixels, latent_mask

        mask = torch.zeros_like(self._pictures[0][:, :1])
        side = mask.shape[-1]
        mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1
        target, draft, reference = self._pictures[index : index + 3]
        a, b, c = self._latents[index : index + 3]
        region = latent_mask(mask, (a.shape[-2], a.shape[-1]))
        return Item(str(index), "", a, (b, c), region, Pixels(target, draft, reference, mask))


def _random_engine(kind: str, device: torch.device) -> CoreEngine:
    """Random weights of a model's size, on the device, in the type that they are trained in."""
    from diffusers import FluxTransformer2DModel

    from refiner_core.models.core_engine import CoreEngine
    from refiner_core.nano.nano_engine import load_nano
    from refiner_core.recipes.recipe import OMNIREFINER

    if kind == "nano":
        return load_nano(device)
    small = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    with torch.device("meta"):
        shape: Any = small if kind == "tiny" else {}
        model = FluxTransformer2DModel(**shape, guidance_embeds=True)
    model.to(torch.bfloat16 if kind == "kontext" else torch.float32)  # pyright: ignore[reportArgumentType]
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.02, generator=generator)
    width = model.context_embedder.in_features
    pooled = model.time_text_embed.text_embedder.linear_1.in_features

    def text(prompt: str, length: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, length, width), torch.zeros(1, pooled)

    return CoreEngine(OMNIREFINER, model.eval(), _FlatCodec(8), text, device)


def _settings(kind: str, batch: int) -> tuple[SftConfig, GrpoConfig]:
    """Settings of both stages: the presets', with one group of `batch` samples an epoch."""
    from refiner_core.training.config import GRPO_PRESETS, SFT_PRESETS, GrpoConfig, SftConfig
    from refiner_core.training.settings import build, merged

    preset = "nano" if kind == "nano" else "kontext-80gb"
    run = {"batch": batch, "micro_batch": batch if kind == "nano" else 1}
    over: dict[str, Any] = {"run": run}
    if kind == "tiny":
        over["model"] = {"precision": "fp32"}
    sft = build(SftConfig, merged(SFT_PRESETS[preset], over))
    over = merged(over, {"rollout": {"groups": 1, "group": batch}, "objective": {"updates": 1}})
    return sft, build(GrpoConfig, merged(GRPO_PRESETS[preset], over))


@dataclass(frozen=True)
class _Work:
    """A stage's step, and its arithmetic in floating-point operations."""

    name: str
    step: Callable[[], object]
    flops: float


def _stages(kind: str, side: int, batch: int, device: torch.device) -> list[_Work]:
    from refiner_core.training.distributed import Processes
    from refiner_core.training.memory_estimate import forward_flops, step_flops
    from refiner_core.training.objective import Learner
    from refiner_core.training.open_session import make_trainable
    from refiner_core.training.policy import Policy, VelocityNet
    from refiner_core.training.reward import make_reward
    from refiner_core.training.train import make_objective
    from refiner_core.training.trainer import Trainer

    engine = _random_engine(kind, device)
    recipe, (sft, grpo) = engine.recipe, _settings(kind, batch)

    def text(prompt: str) -> tuple[Tensor, Tensor]:
        return engine.text(prompt, recipe.text_tokens)

    learner = Learner(
        Policy(VelocityNet(engine.model), device, sft.model.precision),
        make_trainable(engine, sft.model, 0),
        _RandomDataset(side, _FlatCodec(recipe.latent_factor)),
        text,
        engine.codec.decode,
        recipe,
        Processes(),
    )
    tokens = 3 * (side // (2 * recipe.latent_factor)) ** 2 + recipe.text_tokens
    once = forward_flops(engine.model, tokens)
    reward = make_reward(grpo.objective, device)
    works: list[_Work] = []
    for name, config in (("SFT step", sft), ("GRPO epoch", grpo)):
        objective = make_objective(config, learner, reward)
        trainer = Trainer(objective, learner.trainable, config.optimizer, config.run.max_steps)
        cost = config.cost(config.sampler_steps or recipe.steps)
        works.append(_Work(name, trainer.train_step, step_flops(config, once, cost)))
    return works


def _matmul_rate(device: torch.device, rounds: int) -> float:
    """FLOP/s of a large matrix product in the type that the network computes in."""
    side, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 / median_seconds(_waited(lambda: a @ b, device), rounds)


def _waited(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _peak(work: Callable[[], object], device: torch.device) -> float:
    """MB while `work` runs: on a GPU all that is allocated, on a CPU the whole process (where Linux
    does not let the mark be reset, its peak so far).
    """
    if device.type != "cuda":
        import resource

        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            work()
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(v.split()[1]) for v in lines if v.startswith("VmHWM")) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / 1e6


def _measure(kind: str, side: int, chosen: argparse.Namespace, device: torch.device) -> None:
    rate = _matmul_rate(device, chosen.rounds)
    for work in _stages(kind, side, chosen.batch, device):
        seconds = median_seconds(_waited(work.step, device), chosen.rounds)
        share = work.flops / seconds / rate
        print(
            f"{side:<7}{work.name:<12}{seconds:>9.3f}{chosen.batch / seconds:>11.3f}"
            f"{work.flops / 1e12:>10.3f}{100 * share:>14.0f} %{_peak(work.step, device):>10.0f}"
        )


def run(chosen: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ValueError: numbers that cannot be measured with.
    """
    from refiner_core.models.devices import pick_device

    if chosen.batch < 2 or chosen.rounds < 1:
        raise ValueError(
            f"The benchmark needs --batch of 2 and --rounds of 1 or more, got {chosen.batch} and "
            f"{chosen.rounds}."
        )
    device = pick_device(chosen.device)
    kind = chosen.model or ("kontext" if device.type == "cuda" else "nano")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{kind}, random pictures, {where}, {torch.get_num_threads()} threads, batch and group "
        f"{chosen.batch}, no autoencoder, structural reward"
    )
    print(
        f"{'px':<7}{'':<12}{'seconds':>9}{'samples/s':>11}{'TFLOP':>10}"
        f"{'of matmul rate':>16}{'peak MB':>10}"
    )
    for side in chosen.sides or _SIDES[kind]:
        _measure(kind, side, chosen, device)
