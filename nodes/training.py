"""Train Refiner (SFT): a refiner LoRA from a folder of triplets, without a shell."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
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
from ..refiner_core.data.splits import manifest_hash
from ..refiner_core.models.kontext import Conditioning
from ..refiner_core.recipes.recipe import NANO, Recipe
from ..refiner_core.storage.output_files import atomic_path, check_name
from ..refiner_core.training.checkpoint import read_facts
from ..refiner_core.training.config import SFT_PRESETS, SftConfig
from ..refiner_core.training.distributed import Processes
from ..refiner_core.training.export import describe
from ..refiner_core.training.policy import Policy
from ..refiner_core.training.prepare import prepare_datasets
from ..refiner_core.training.session import CHECKPOINT, Session
from ..refiner_core.training.settings import build, merged
from ..refiner_core.training.tracker import Tracker
from ..refiner_core.training.train import Interruption, train
from ..refiner_core.training.trainable import Trainable
from ..refiner_core.training.triplet_folder import shards_of
from ..refiner_core.weights.lora import save_lora, split_pairs
from .conditioning import encode_prompt
from .engine import ComfyEngine
from .folder import input_folder
from .layout import from_core
from .nano import NanoVAE
from .pictures import show_text
from .types import TRAINING, Refiner, RefinerSocket

# Attention and feed-forward of both kinds of block, by the names of ComfyUI's own FLUX.
_TARGETS = ("_attn.qkv", "_attn.proj", "_mlp.0", "_mlp.2", ".linear1", ".linear2")
_SAVE_EVERY = 50  # steps
_FINISHED = "finished.safetensors"  # the checkpoint of the latest training that came to its end


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
    # ComfyUI's blocks change their input in place, but the gradient of a norm needs it: it gets a copy.
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


def _run_folder(name: str) -> Path:
    """Where the data and the state of a training are kept."""
    return Path(folder_paths.get_output_directory()) / "omnirefiner-training" / name


def _check_name(name: str) -> str:
    return check_name(name.removesuffix(".safetensors"), "lora_name")


def _check_recipe(recipe: Recipe) -> None:
    if recipe.family != "flux" or recipe.conditioning != "text":
        raise ValueError(
            f"The recipe {recipe.name} cannot be trained with this node. Choose nano, omnirefiner or "
            "kontext in Load Refiner."
        )


def _settings(refiner: Refiner, chosen: Mapping[str, Any], preview_every: int, items: int) -> Any:
    """The preset of the recipe with the node's settings; at most a quarter of `items` is held out."""
    preset = SFT_PRESETS["nano" if refiner.recipe.name == NANO.name else "kontext-24gb"]
    steps, rank = chosen["steps"], chosen["rank"]
    over = {
        "model": {"train": "lora", "rank": rank, "alpha": float(rank), "quantize": "none"},
        "data": {"held_out": min(4, max(1, items // 4))},
        "optimizer": {"rate": chosen["rate"], "eight_bit": False, "ema": 0.0},
        "run": {
            "max_steps": steps,
            "batch": chosen["batch"],
            "micro_batch": 1,
            "seed": chosen["seed"],
            "save_every": _SAVE_EVERY,
            "validate_every": preview_every or steps,
            "board": "none",
        },
    }
    return build(SftConfig, merged(preset, over))


class _NodeProgress:
    """ComfyUI's progress bar on the node, with the latest picture of held-out items."""

    def __init__(self, node: type[io.ComfyNode]) -> None:
        self.node = node
        self.began = ""
        self.pixels: np.ndarray | None = None
        self._total = 0
        self._bar: Any = None

    def start(self, done: int, total: int) -> None:
        self._total, self._bar = total, comfy.utils.ProgressBar(total)
        # Also of a new training, or what was said of the one before it would stay in the node.
        self.began = (
            f"Resumed at step {done} of {total}." if done else f"Started at step 0 of {total}."
        )
        show_text(self.node, self.began)

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = None
        if self.pixels is not None:
            shown = ("JPEG", Image.fromarray(self.pixels), 512)
        self._bar.update_absolute(step, self._total, shown)

    def picture(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def close(self) -> None:
        pass


class _NodeInterruption(Interruption):
    """ComfyUI's Cancel button, for which its layers and its progress bar raise an exception."""

    raised = (mm.InterruptProcessingException,)

    def __enter__(self) -> _NodeInterruption:
        return self

    def requested(self) -> bool:
        return False


class _Training:
    """One training: its data on disk, and a copy of the model that lives as long as it runs."""

    def __init__(self, refiner: Refiner, folder: Path, config: SftConfig, name: str) -> None:
        self.refiner, self.config, self.name, self.folder = refiner, config, name, folder
        self.out = _run_folder(name)
        self.encoder = _Encoder(refiner, refiner.model.model)
        self.data = prepare_datasets(
            self.encoder,
            self._encode_text,
            config.data,
            folder,
            self.out / "cache",
            Processes(),
            pixels=True,
        )

    def _encode_text(self, prompt: str, length: int, /) -> tuple[Tensor, Tensor]:
        cond, values = encode_prompt(self.refiner, prompt)[0]
        return cond.float().cpu(), values["pooled_output"].float().cpu()

    def run(self, progress: _NodeProgress) -> tuple[Path, np.ndarray]:
        """Train to the end; the LoRA's path and a picture of held-out items."""
        with torch.inference_mode(False), torch.enable_grad():
            # Weights that ComfyUI read in inference mode cannot take part in a gradient.
            patcher = self.refiner.model.clone(force_deepcopy=True)
            patcher.model.requires_grad_(False)
            try:
                mm.load_models_gpu([patcher], force_full_load=True)
                mm.in_training = True  # ComfyUI's own switch to kernels that have a gradient
                return self._train(patcher, progress)
            finally:
                mm.in_training = False
                patcher.detach()
                del patcher
                mm.cleanup_models()
                mm.soft_empty_cache()

    def _train(self, patcher: Any, progress: _NodeProgress) -> tuple[Path, np.ndarray]:
        model, device = self.config.model, patcher.load_device
        net = patcher.model.diffusion_model
        precision = "bf16" if patcher.model.get_dtype() != torch.float32 else "fp32"
        with _adapted(net, model.rank, self.config.run.seed, device) as trainable:
            session = self._session(Policy(_NativeNet(net), device, precision), trainable)
            self._take_up(session.identity)
            interruption = _NodeInterruption(session.processes)
            made = train(self.config, session, progress=progress, interruption=interruption)
        path = _free_path(self.name)
        with atomic_path(path) as temporary:  # the folder may be on another disk
            shutil.copyfile(made, temporary)
        made.unlink()
        (self.out / CHECKPOINT).replace(self.out / _FINISHED)
        assert progress.pixels is not None, "the last step is validated"
        return path, progress.pixels

    def _take_up(self, identity: Mapping[str, str]) -> None:
        """Let a finished training go on if this one has more steps and is otherwise the same.

        The learning rate, the batch and the previews may differ.
        """
        finished, checkpoint = self.out / _FINISHED, self.out / CHECKPOINT
        if checkpoint.exists() or not finished.exists():
            return
        facts, run = read_facts(finished), self.config.run
        before = facts["settings"]
        mine = (self.config.model.rank, run.seed, *identity.values())
        theirs = (before["model"]["rank"], before["run"]["seed"], *map(facts.get, identity))
        if mine == theirs and facts["step"] < run.max_steps:
            finished.replace(checkpoint)

    def _session(self, policy: Policy, trainable: Trainable) -> Session:
        dataset, held_out, text = self.data
        manifest = manifest_hash(self.folder)
        identity = {
            "kind": "node",
            "data": str(self.folder.resolve()),
            "data_manifest": manifest,
            "base_weights": json.dumps(self.encoder.source, sort_keys=True),
        }

        def export(path: Path, role: str | None, facts: dict[str, Any]) -> None:
            pairs = split_pairs(trainable.lora_pairs(role))
            save_lora(path, pairs, trainable.alpha, describe(self.refiner.recipe, facts))

        return Session(
            policy,
            trainable,
            dataset,
            text,
            self.encoder.decode,
            self.refiner.recipe,
            Processes(),
            held_out,
            Tracker(self.out),
            self.out,
            export,
            identity,
            {"base": self.refiner.name, "settings": asdict(self.config)},
        )


def _inputs() -> list[Any]:
    return [
        RefinerSocket.Input("refiner", tooltip="The refiner that the LoRA is trained for."),
        io.String.Input(
            "folder",
            default="triplets",
            tooltip="The folder with the training triplets: one folder for each, with the images draft, "
            "reference, target and mask, or shards from omnirefiner data build. It is a folder inside "
            "ComfyUI's input folder, or a full path.",
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
            control_after_generate=io.ControlAfterGenerate.fixed,
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
            hidden=[io.Hidden.unique_id],
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
        path = shards_of(input_folder(folder), _run_folder(name) / "triplets")
        chosen = {"steps": steps, "rank": rank, "rate": learning_rate, "batch": batch, "seed": seed}
        config = _settings(refiner, chosen, preview_every, len(TripletSet(path)))
        progress = _NodeProgress(cls)
        lora, picture = _Training(refiner, path, config, name).run(progress)
        show_text(cls, f"{progress.began} Saved models/loras/{lora.name}.")
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        return io.NodeOutput(lora.name, from_core(image))
