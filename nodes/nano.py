"""nano as ComfyUI model objects: a native FLUX model, and a VAE of 4x4 pixel blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from PIL import Image
from torch import Tensor

from ..refiner_core.nano import NANO_WEIGHTS, nano_recipe
from ..refiner_core.nano.codec import BLOCK, CHANNELS, BlockCodec
from .types import Refiner


class NanoVAE:
    """nano's codec with the interface of a VAE: `encode(IMAGE)` and `decode(latent)`.

    Latents are in FLUX's raw scale, so that ComfyUI's own (z - shift) * scale gives the network
    what it was trained on, also behind a stock KSampler.
    """

    latent_channels = CHANNELS

    def __init__(self, codec: BlockCodec) -> None:
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher(codec, mm.vae_device(), mm.vae_offload_device())
        self.format = comfy.latent_formats.Flux()

    @property
    def codec(self) -> BlockCodec:
        return self.patcher.model

    def spacial_compression_encode(self) -> int:
        return BLOCK

    def spacial_compression_decode(self) -> int:
        return BLOCK

    def encode(self, pixels: Tensor) -> Tensor:
        mm.load_model_gpu(self.patcher)
        z = self.codec.encode(pixels[..., :3].movedim(-1, 1).float().to(self.patcher.load_device))
        return self.format.process_out(z).to(mm.intermediate_device())

    def decode(self, latent: Tensor, **_: Any) -> Tensor:
        mm.load_model_gpu(self.patcher)
        z = self.format.process_in(latent.float().to(self.patcher.load_device))
        return self.codec.decode(z).clamp(0, 1).movedim(1, -1).to(mm.intermediate_device())

    def preview(self, x0: Tensor) -> Image.Image:
        """Preview of the network's estimate, which is in the scale of the network."""
        pixels = self.codec.decode(x0[:1].float().to(self.codec.mean.device)).clamp(0, 1)
        return Image.fromarray((pixels[0].movedim(0, -1) * 255).byte().cpu().numpy())


def _read(codec: bool) -> dict[str, Tensor]:
    state = comfy.utils.load_torch_file(str(NANO_WEIGHTS), safe_load=True)
    prefix = "codec."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) == codec}


def _load_transformer(**options: Any) -> Any:
    model = comfy.sd.load_diffusion_model_state_dict(
        _read(codec=False), model_options={"dtype": torch.float32}, **options
    )
    if model is None:
        raise RuntimeError(
            "This version of ComfyUI does not recognize the nano model. Update ComfyUI."
        )
    # How ComfyUI makes a second, independent copy, as training needs one.
    model.cached_patcher_init = (_load_transformer, ())
    return model


def _attend(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention in place of ComfyUI's choice."""
    return attention_pytorch(*args, **kwargs)


def _use_fast_attention(model: Any) -> None:
    """Let nano attend by PyTorch's own kernel on a CPU.

    ComfyUI splits attention into parts there, unless it is started with --use-pytorch-cross-attention;
    a step of nano on a 256 px crop then takes half as long again.
    """
    if mm.is_device_cpu(model.load_device):
        model.model_options["transformer_options"]["optimized_attention_override"] = _attend


def load_nano_refiner() -> Refiner:
    """The nano refiner, loaded by ComfyUI's own loader and managed by ComfyUI."""
    codec, model = BlockCodec(), _load_transformer()
    _use_fast_attention(model)
    codec.load_state_dict(_read(codec=True))
    width = model.model.model_config.unet_config["context_in_dim"]
    pooled = model.model.model_config.unet_config["vec_in_dim"]
    conditioning = [[torch.zeros(1, 1, width), {"pooled_output": torch.zeros(1, pooled)}]]
    recipe = nano_recipe(NANO_WEIGHTS)
    return Refiner(
        recipe, model, NanoVAE(codec), None, conditioning, "nano (embedded)", probed=True
    )
