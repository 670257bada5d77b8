"""Train Refiner (SFT): trains a refiner LoRA on a folder of triplets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor, nn

from ..refiner_core.data.shards import TripletSet
from ..refiner_core.data.splits import manifest_hash, split_data
from ..refiner_core.models.kontext import Conditioning
from ..refiner_core.recipes.recipe import NANO, Recipe
from ..refiner_core.training.checkpoint import load_checkpoint, save_checkpoint
from ..refiner_core.training.config import SFT_PRESETS, SftConfig
from ..refiner_core.training.distributed import Workers
from ..refiner_core.training.policy import Policy
from ..refiner_core.training.prepare import PreparedViews, TextCache, fingerprint, prepare
from ..refiner_core.training.settings import build, merged
from ..refiner_core.training.sft import SftTrainer
from ..refiner_core.training.trainable import Trainable
from ..refiner_core.training.validation import look
from ..refiner_core.weights.lora import save_lora, split_pairs
from .conditioning import encode_prompt
from .engine import ComfyEngine
from .folder import input_folder
from .layout import from_core
from .nano import NanoVAE
from .types import TRAINING, Refiner, RefinerSocket

# Attention and feed-forward of both kinds of block, by the names of ComfyUI's own FLUX.
_TARGETS = ("_attn.qkv", "_attn.proj", "_mlp.0", "_mlp.2", ".linear1", ".linear2")
_SAVE_EVERY = 50


class _NativeNet(nn.Module):
    """ComfyUI's FLUX model with the interface that training calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        c = conditioning.repeat(len(x))
        guidance = None if c.guidance is None else x.new_full((len(x),), c.guidance)
        return self.model(
            x,
            t,
            c.text,
            c.pooled,
            guidance,
            ref_latents=list(c.references),
            ref_latents_method=conditioning.layout,
            transformer_options={},
        )


class _Encoder:
    """The engine interface that data preparation needs, in the scale of the network."""

    def __init__(self, refiner: Refiner, model: Any) -> None:
        self.recipe, self.source = refiner.recipe, {"weights": refiner.name}
        if isinstance(refiner.vae, NanoVAE):
            self.source["codec"] = refiner.vae.patcher.model.fingerprint()
        self._engine, self._model = ComfyEngine(refiner), model

    def encode(self, image: Tensor) -> Tensor:
        return self._model.process_latent_in(self._engine.encode(image))

    def decode(self, latent: Tensor) -> Tensor:
        return self._engine.decode(self._model.process_latent_out(latent))


def _own_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone() for x in inputs)


@contextlib.contextmanager
def _adapted(net: nn.Module, rank: int, seed: int, device: Any) -> Iterator[Trainable]:
    """Adds a new LoRA to the linear layers of all blocks, and removes it again at the end."""
    generator = torch.Generator().manual_seed(seed)
    learning: dict[str, nn.Parameter] = {}
    # ComfyUI's blocks add into their input, which a norm's gradient still needs: it gets its own.
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    hooks: list[Any] = [m.register_forward_pre_hook(_own_input) for m in norms]
    for name, module in net.named_modules():
        if not isinstance(module, nn.Linear) or not name.endswith(_TARGETS):
            continue
        a = torch.randn(rank, module.in_features, generator=generator) / rank
        pair = [nn.Parameter(v.to(device)) for v in (a, torch.zeros(module.out_features, rank))]
        learning[f"{name}.lora_A"], learning[f"{name}.lora_B"] = pair

        def add(_: nn.Module, inputs: Any, out: Tensor, pair: Any = pair) -> Tensor:
            low = inputs[0].to(pair[0].dtype) @ pair[0].T
            return out + (low @ pair[1].T).to(out.dtype)

        hooks.append(module.register_forward_hook(add))
    try:
        yield Trainable(learning, rank, rank)
    finally:
        for hook in hooks:
            hook.remove()


def _free_path(name: str) -> Path:
    """A path in models/loras that is not taken yet."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    path = folder / f"{name}.safetensors"
    number = 2
    while path.exists():
        path, number = folder / f"{name}-{number}.safetensors", number + 1
    return path


def _check_name(name: str) -> str:
    if not name.strip() or Path(name).name != name or name.startswith("."):
        raise ValueError(f"lora_name must be a file name without a folder, got {name!r}.")
    return name.removesuffix(".safetensors")


def _check_recipe(recipe: Recipe) -> None:
    if recipe.family != "flux" or recipe.conditioning != "text":
        raise ValueError(
            f"The recipe {recipe.name} cannot be trained with this node. Choose nano, omnirefiner or "
            "kontext in Load Refiner."
        )


def _settings(refiner: Refiner, steps: int, rank: int, rate: float, batch: int, seed: int) -> Any:
    preset = SFT_PRESETS["nano" if refiner.recipe.name == NANO.name else "kontext-24gb"]
    chosen = {
        "model": {"train": "lora", "rank": rank, "alpha": float(rank), "quantize": "none"},
        "data": {"held_out": 4},
        "optimizer": {"rate": rate, "eight_bit": False, "ema": 0.0},
        "run": {"max_steps": steps, "batch": batch, "micro_batch": 1, "seed": seed},
    }
    return build(SftConfig, merged(preset, chosen))


class _Run:
    """A training run: its prepared data, its own copy of the model and its previews."""

    def __init__(self, refiner: Refiner, data: TripletSet, config: SftConfig, name: str) -> None:
        self.refiner, self.config, self.name = refiner, config, name
        self.out = Path(folder_paths.get_output_directory()) / "omnirefiner-training" / name
        self.encoder = _Encoder(refiner, refiner.model.model)
        self.facts: dict[str, str] = {}
        self.views, self.held, self.text = self._prepare(data)
        self.losses: list[float] = []

    def _encode_text(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        cond, values = encode_prompt(self.refiner, prompt)[0]
        return cond.float().cpu(), values["pooled_output"].float().cpu()

    def _prepare(self, data: TripletSet) -> tuple[PreparedViews, PreparedViews, TextCache]:
        settings, recipe = self.config.data, self.refiner.recipe
        train, held = split_data(data, min(settings.held_out, max(1, len(data) // 4)))
        self.facts["data_manifest"] = manifest_hash(data.folder)
        parts: list[PreparedViews] = []
        for part, chosen in (("train", train), ("held", held)):
            source = f"{data.folder.resolve()}/{self.facts['data_manifest']}/{part}/{chosen}"
            place = self.out / "cache" / fingerprint(self.encoder, settings, source, True)
            names = prepare(
                data,
                chosen,
                self.encoder,
                settings,
                place,
                Workers(),
                pixels=True,
                needed=part == "train",
            )
            parts.append(PreparedViews(place, recipe.order, names))
        text = TextCache(self._encode_text, recipe.text_tokens, self.out / "cache" / "texts")
        for prompt in sorted({"", *parts[0].prompts(), *parts[1].prompts()}):
            text(prompt)
        return parts[0], parts[1], text

    def train(self, preview_every: int) -> tuple[Path, np.ndarray]:
        """Train until the end or an interruption. Returns the LoRA's path and an image of examples."""
        with torch.inference_mode(False), torch.enable_grad():
            # Weights that ComfyUI read in inference mode cannot take part in a gradient.
            patcher = self.refiner.model.clone(force_deepcopy=True)
            patcher.model.requires_grad_(False)
            try:
                mm.load_models_gpu([patcher], force_full_load=True)
                mm.in_training = True  # ComfyUI's own switch to kernels that have a gradient
                return self._train(patcher, preview_every)
            finally:
                mm.in_training = False
                patcher.detach()
                del patcher
                mm.cleanup_models()
                mm.soft_empty_cache()

    def _train(self, patcher: Any, preview_every: int) -> tuple[Path, np.ndarray]:
        config, device = self.config, patcher.load_device
        net = patcher.model.diffusion_model
        precision = "bf16" if patcher.model.get_dtype() != torch.float32 else "fp32"
        policy = Policy(_NativeNet(net), device, precision)
        bar = comfy.utils.ProgressBar(config.run.max_steps)
        with _adapted(net, config.model.rank, config.run.seed, device) as trainable:
            trainer = SftTrainer(
                config, policy, trainable, self.views, self.text, self.refiner.recipe
            )
            checkpoint = self.out / "checkpoint.safetensors"
            # The views' folder is named after base, data and framing.
            facts = {"kind": "node", "views": self.views.folder.name}
            if checkpoint.exists():
                found = load_checkpoint(checkpoint, trainable, trainer.optimizer)
                if found.get("views") != facts["views"]:
                    raise ValueError(
                        f"The unfinished training run {self.name!r} belongs to another refiner or "
                        f"folder of triplets. Choose another lora_name, or delete {checkpoint} to "
                        "start again."
                    )
                trainer.step = found["step"]
            picture = self._look(policy)
            try:
                while trainer.step < config.run.max_steps:
                    mm.throw_exception_if_processing_interrupted()
                    self.losses.append(trainer.train_step()["loss"])
                    if preview_every and trainer.step % preview_every == 0:
                        picture = self._look(policy)
                    shown = ("JPEG", Image.fromarray(picture), 512)
                    bar.update_absolute(trainer.step, config.run.max_steps, shown)
                    if trainer.step % _SAVE_EVERY == 0:
                        save_checkpoint(
                            checkpoint, trainable, trainer.optimizer, facts | {"step": trainer.step}
                        )
            except mm.InterruptProcessingException:
                save_checkpoint(
                    checkpoint, trainable, trainer.optimizer, facts | {"step": trainer.step}
                )
                raise
            return self._export(trainable, trainer.step), self._look(policy)

    def _look(self, policy: Policy) -> np.ndarray:
        recipe = self.refiner.recipe
        from ..refiner_core.images.geometry import Extent

        def schedule(size: tuple[int, int]) -> Tensor:
            factor = recipe.latent_factor
            return recipe.sigmas(Extent(size[1] * factor, size[0] * factor))

        return look(policy, self.held, self.encoder, self.text, schedule, recipe)[1]

    def _export(self, trainable: Trainable, steps: int) -> Path:
        path = _free_path(self.name)
        recent = self.losses[-50:]
        metadata = {
            "recipe": self.refiner.recipe.name,
            "base": self.refiner.name,
            "step": str(steps),
            "figures": json.dumps({"loss": sum(recent) / len(recent)} if recent else {}),
            "settings": json.dumps(asdict(self.config)),
            **self.facts,
        }
        save_lora(path, split_pairs(trainable.lora_pairs()), float(trainable.alpha), metadata)
        (self.out / "checkpoint.safetensors").unlink(missing_ok=True)
        return path


def _inputs() -> list[Any]:
    return [
        RefinerSocket.Input("refiner", tooltip="The refiner that the LoRA is trained for."),
        io.String.Input(
            "folder",
            default="triplets",
            tooltip="The folder with the training triplets as omnirefiner data build writes them: a "
            "folder inside ComfyUI's input folder, or a full path.",
        ),
        io.String.Input(
            "lora_name",
            default="my-refiner",
            tooltip="Name of the LoRA file in models/loras. A number is added if the file exists.",
        ),
        io.Int.Input(
            "steps", default=300, min=1, max=100000, tooltip="The number of training steps."
        ),
        io.Int.Input(
            "batch",
            default=4,
            min=1,
            max=64,
            tooltip="Number of triplets for each training step. They are processed one at a time.",
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=1,
            max=256,
            tooltip="The rank of the LoRA. A higher rank can learn more and makes a larger file.",
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-7,
            max=1e-1,
            step=1e-6,
            round=1e-7,
            tooltip="The learning rate. 0.0001 is a good start for Kontext.",
        ),
        io.Int.Input(
            "preview_every",
            default=50,
            min=0,
            max=100000,
            tooltip="Number of steps between previews of the held-out examples. 0 shows only the "
            "first and the last one.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0x7FFFFFFF,
            tooltip="The random seed of the initial weights, the noise and the order of the triplets.",
        ),
    ]


class TrainRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniRefiner_TrainRefiner",
            display_name="Train Refiner (SFT)",
            category=TRAINING,
            description="Trains a refiner LoRA on triplets of draft, reference and target, and saves "
            "it to models/loras.",
            search_aliases=["train omnirefiner lora", "fine-tune refiner"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.String.Output(
                    display_name="lora_name", tooltip="File name of the LoRA in models/loras."
                ),
                io.Image.Output(
                    display_name="held_out",
                    tooltip="Examples that were not used for training: reference, draft, repaired "
                    "draft and target.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        refiner: Refiner,
        folder: str,
        lora_name: str,
        steps: int,
        batch: int,
        rank: int,
        learning_rate: float,
        preview_every: int,
        seed: int,
    ) -> io.NodeOutput:
        name = _check_name(lora_name)
        _check_recipe(refiner.recipe)
        config = _settings(refiner, steps, rank, learning_rate, batch, seed)
        path, picture = _Run(refiner, TripletSet(input_folder(folder)), config, name).train(
            preview_every
        )
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        return io.NodeOutput(path.name, from_core(image))
