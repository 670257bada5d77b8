"""A training run in miniature for the tests, also as a program that can be killed or launched twice.

`python -m tests.tiny_training STAGE OUT STEPS [NAME=VALUE ...]` trains a tiny FLUX's LoRA for STEPS.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from refiner_core.data.preferences import Preference
from refiner_core.data.triplets import encode_png
from refiner_core.models.core_engine import CoreEngine
from refiner_core.recipes.recipe import OMNIREFINER
from refiner_core.training.config import GrpoConfig, RunConfig, SftConfig
from refiner_core.training.config_dpo import DpoConfig
from refiner_core.training.config_unrolled import UnrolledConfig
from refiner_core.training.dataset import Item, Pixels
from refiner_core.training.distributed import launched_processes
from refiner_core.training.open_session import assemble
from refiner_core.training.preference_dataset import PreferenceDataset
from refiner_core.training.reward import make_reward
from refiner_core.training.session import Session
from refiner_core.training.settings import build, merged, parse_assignments
from refiner_core.training.sft import SftObjective
from refiner_core.training.text_cache import TextCache
from refiner_core.training.train import train
from refiner_core.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ["-m", "tests.tiny_training"]
SETTINGS: dict[str, Any] = {
    "model": {"rank": 3, "alpha": 6.0},
    "loss": {"reference_dropout": 0.3, "caption_dropout": 0.3},
    "optimizer": {"rate": 1e-2, "ema": 0.9},
    "run": {"max_steps": 6, "batch": 4, "micro_batch": 2, "save_every": 1, "validate_every": 0},
}
GRPO_SETTINGS: dict[str, Any] = {
    "model": {"rank": 3, "alpha": 6.0},
    "rollout": {"groups": 4, "group": 4, "steps": 4, "window": 1, "guidance": 1.0},
    "objective": {"kl": 0.1, "kl_to": "ref", "clip": 10.0},
    "optimizer": {"rate": 1e-2, "ema": 0.9},
    "run": {"max_steps": 3, "micro_batch": 2, "save_every": 1, "validate_every": 0},
}
REWARD_SETTINGS: dict[str, Any] = {
    "model": {"rank": 3, "alpha": 6.0},
    "unroll": {"steps": 3, "gradient_steps": 2},
    "optimizer": {"rate": 1e-2, "ema": 0.9},
    "run": {"max_steps": 3, "batch": 2, "micro_batch": 1, "save_every": 1, "validate_every": 0},
}


def write_preference(folder: Path, preference: Preference) -> Path:
    """Write a case into its own folder as `rank-N.png`; the folder.

    Repairs of equal rank are not supported by these names; give each its own rank.
    """
    target = folder / preference.id
    target.mkdir(parents=True, exist_ok=True)
    pictures = {
        "draft": preference.draft,
        "reference": preference.reference,
        "mask": preference.mask,
        "reference_mask": preference.reference_mask,
        **{f"rank-{r.rank}": r.pixels for r in preference.repairs},
    }
    for name, pixels in pictures.items():
        if pixels is not None:
            (target / f"{name}.png").write_bytes(encode_png(pixels))
    if preference.prompt:
        (target / "prompt.txt").write_text(preference.prompt, encoding="utf-8")
    return target


DPO_SETTINGS: dict[str, Any] = {
    "model": {"rank": 3, "alpha": 6.0},
    "optimizer": {"rate": 1e-2, "ema": 0.9},
    "run": {"max_steps": 3, "batch": 2, "micro_batch": 1, "save_every": 1, "validate_every": 0},
}
STAGES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sft": (SftConfig, SETTINGS),
    "grpo": (GrpoConfig, GRPO_SETTINGS),
    "nft": (GrpoConfig, merged(GRPO_SETTINGS, {"objective": {"algorithm": "nft"}})),
    "reward": (UnrolledConfig, REWARD_SETTINGS),
    "dpo": (DpoConfig, DPO_SETTINGS),
}


def tiny_flux() -> FluxTransformer2DModel:
    """Two blocks of width 32, with guidance, random weights of a size that does something."""
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.1, generator=generator)
    return model.eval()


class FlatCodec:
    """16 channels at an eighth of the size: the mean colour of a block, repeated."""

    def encode(self, images: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(images, 8)
        return small.repeat(1, 6, 1, 1)[:, :16] * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3] / 2 + 0.5, scale_factor=8)


class TinyDataset:
    """Ten items of two shapes: random latents and what the codec decodes from them."""

    def __init__(self) -> None:
        sizes = [(4, 6), (6, 4)]
        self.shapes = [((h, w), (h, w), (4, 4)) for h, w in (sizes[i % 2] for i in range(10))]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Item:
        g = torch.Generator().manual_seed(index)
        target, draft, reference = (
            torch.randn(1, 16, h, w, generator=g) for h, w in self.shapes[index]
        )
        mask = (torch.rand(1, 1, *self.shapes[index][0], generator=g) < 0.4).float()
        decode, large = FlatCodec().decode, torch.nn.functional.interpolate(mask, scale_factor=8)
        pixels = Pixels(*(decode(z).clamp(0, 1) for z in (target, draft, reference)), large)
        return Item(f"tiny{index}", "a word", target, (draft, reference), mask, pixels)


class TinyRepairs(TinyDataset):
    """Two repairs of each of the ten items, with names as prepared items have them."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = [shape for shape in self.shapes for _ in range(2)]
        self.names = [f"tiny{i}_{rank}-0" for i in range(10) for rank in (1, 2)]
        self.ranks = {f"tiny{i}_{rank}": (f"tiny{i}", rank) for i in range(10) for rank in (1, 2)}

    def __getitem__(self, index: int) -> Item:
        item = TinyDataset()[index // 2]
        g = torch.Generator().manual_seed(100 + index)
        return replace(item, target=torch.randn(item.target.shape, generator=g))


def tiny_engine() -> CoreEngine:
    """A tiny OmniRefiner."""

    def text(prompt: str, length: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(len(prompt))
        return torch.randn(1, 5, 12, generator=g), torch.randn(1, 10, generator=g)

    return CoreEngine(OMNIREFINER, tiny_flux(), FlatCodec(), text)


def tiny_session(config: RunConfig, out: Path) -> Session:
    """An open run on it, on one thread as the program has it: the last bits depend on how many."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    engine = tiny_engine()
    text = TextCache(engine.text, 5, out / "texts")
    processes = launched_processes(torch.device("cpu"))
    dataset: Any = TinyDataset()
    if config.data_form == "preferences":
        repairs: Any = TinyRepairs()
        dataset = PreferenceDataset(repairs, repairs.ranks)
    return assemble(config, engine, (dataset, TinyDataset()), text, out, processes, "none")


def tiny_train(config: RunConfig, session: Session) -> Path:
    """Train on an open session; the refiner's file."""
    reward = None
    if isinstance(config, GrpoConfig | UnrolledConfig):
        reward = make_reward(config.objective, torch.device("cpu"))
    return train(config, session, reward)


def tiny_run(stage: str, out: Path, steps: int, over: dict[str, Any]) -> Path:
    """Train for some steps; the refiner's file."""
    kind, settings = STAGES[stage]
    config = build(kind, merged(merged(settings, over), {"run": {"max_steps": steps}}))
    return tiny_train(config, tiny_session(config, out))


def tiny_trainer(config: SftConfig, session: Session) -> Trainer:
    """A trainer of stage 1 on an open session."""
    objective = SftObjective(config, session)
    return Trainer(objective, session.trainable, config.optimizer, config.run.max_steps)


def environment() -> dict[str, str]:
    """What the program is started with, from `ROOT`."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def final(out: Path) -> dict[str, Tensor]:
    """The state that a run left: weights as `now.*`, copies, the optimiser's moments."""
    return load_file(out / "checkpoint.safetensors")


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of any number in tensors of the same names."""
    assert a.keys() == b.keys()
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), parse_assignments(sys.argv[4:]))
