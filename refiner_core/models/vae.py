"""FLUX's autoencoder as the core engine's codec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..storage.text_files import read_object
from ..weights.safetensors_io import fill, read_folder, read_weights

SCALE, SHIFT = 0.3611, 0.1159
_PREFIXES = ("first_stage_model.", "vae.")
# BFL's (that is, the latent diffusion code base's) names, each a pattern and what diffusers writes.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
        (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
        (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
        (r"\.nin_shortcut\.", r".conv_shortcut."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    )
)


def vae_to_diffusers(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BFL's autoencoder weights (ae.safetensors) under diffusers' names, of any depth.

    Raises:
        ValueError: `encoder.conv_in.weight` or `decoder.conv_in.weight` is missing.
    """
    for prefix in _PREFIXES:
        if any(k.startswith(prefix) for k in sd):
            sd = {k.removeprefix(prefix): v for k, v in sd.items() if k.startswith(prefix)}
    for needed in ("encoder.conv_in.weight", "decoder.conv_in.weight"):
        if needed not in sd:
            raise ValueError(f"These are not FLUX's autoencoder weights: {needed} is missing.")
    levels = len({k.split(".")[2] for k in sd if k.startswith("decoder.up.")})
    out: dict[str, Tensor] = {}
    for key, tensor in sd.items():
        name = key
        for pattern, new in _RENAMES:
            name = pattern.sub(new, name)
        # BFL counts the decoder's levels from the latent's end of the encoder, diffusers in order.
        name = re.sub(
            r"\.up_blocks\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name
        )
        is_linear = ".attentions." in name and tensor.ndim == 4
        out[name] = tensor[..., 0, 0] if is_linear else tensor
    return out


def vae_config(sd: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `AutoencoderKL` for weights in diffusers' layout, from their shapes."""
    levels = len({k.split(".")[2] for k in sd if k.startswith("encoder.down_blocks.")})
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    widths = [len(sd[first.format(i)]) for i in range(levels)]
    resnets = {k.split(".")[4] for k in sd if k.startswith("encoder.down_blocks.0.resnets.")}
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": len(resnets),
        "latent_channels": sd["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": min(32, widths[0]),
        "use_quant_conv": "quant_conv.weight" in sd,
        "use_post_quant_conv": "post_quant_conv.weight" in sd,
        "scaling_factor": SCALE,
        "shift_factor": SHIFT,
    }


class FluxCodec:
    """Images 1 3 H W in [0, 1] to FLUX's scaled latents 1 16 H/8 W/8, and back.

    Encoding takes the mode of the posterior, so the same picture is the same latent every time.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(config.shift_factor or 0.0)
        self.factor = 2 ** (len(config.block_out_channels) - 1)

    def to(self, device: torch.device) -> None:
        """Move the autoencoder to a device."""
        self.vae.to(device)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, sides multiples of the factor (8), to latents.

        Raises:
            ValueError: a side is not a multiple of it.
        """
        h, w = images.shape[-2:]
        if h % self.factor or w % self.factor:
            raise ValueError(
                f"FLUX's autoencoder takes sides that are multiples of {self.factor}, got {w}x{h}."
            )
        z = cast(Any, self.vae.encode(images.to(self.vae.dtype) * 2 - 1)).latent_dist.mode()
        return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, not clamped; differentiable in the latents."""
        z = latents.to(self.vae.dtype) / self.scale + self.shift
        return (cast(Any, self.vae).decode(z).sample + 1) / 2


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> FluxCodec:
    """The codec from `ae.safetensors`, or from a diffusers folder's `vae`; float32 everywhere,
    since it is small and rounds the very detail that is to be repaired.

    Raises:
        ValueError: unreadable, or not an AutoencoderKL.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config: dict[str, Any] = _folder_config(path)
        sd = read_folder(path, torch.float32, "VAE")
    else:
        sd = read_weights(path, torch.float32, "VAE")
        if not any(".down_blocks." in k for k in sd):
            try:
                sd = vae_to_diffusers(sd)
            except ValueError as e:
                raise ValueError(f"The VAE {path}: {e} Take FLUX's ae.safetensors.") from e
        config = vae_config(sd)
    with torch.device("meta"):
        vae = cast(AutoencoderKL, AutoencoderKL.from_config(config))
    fill(vae, sd, f"The VAE {path}")
    vae.requires_grad_(False)
    return FluxCodec(cast(AutoencoderKL, vae.to(device)))  # type: ignore[arg-type]


def _folder_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"The VAE folder {folder} has no config.json.")
    config = read_object(file, "configuration")
    if config.get("_class_name") != AutoencoderKL.__name__:
        raise ValueError(f"{folder} holds a {config.get('_class_name')}, not an AutoencoderKL.")
    return {k: v for k, v in config.items() if not k.startswith("_")}
