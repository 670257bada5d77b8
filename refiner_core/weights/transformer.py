"""Weight files: safetensors in, a diffusers FLUX transformer out, whatever the file's spelling.

Reads single files as ComfyUI's users have them (BFL's or diffusers' names, fp8 with or without
scales) and diffusers folders. Nothing is unpickled, nothing is guessed: a file that is not a FLUX
transformer is named for what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..storage.text_files import read_object
from .inspection import architecture
from .keys import bfl_to_diffusers, is_bfl, strip_prefix
from .safetensors_io import fill, folder_files, read_folder, read_header, read_weights

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

_HEAD = 128


def flux_config(sd: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `FluxTransformer2DModel` for weights in diffusers' layout.

    They come from the shapes; what those do not tell is FLUX's: heads of 128, rotary axes
    (16, 56, 56).

    Raises:
        ValueError: an embedding is missing, or the width is not a multiple of 128.
    """
    text = "time_text_embed.text_embedder.linear_1.weight"
    needed = ("x_embedder.weight", "context_embedder.weight", "proj_out.weight", text)
    missing = [k for k in needed if k not in sd]
    if missing:
        raise ValueError(f"These are not FLUX weights: {', '.join(missing)} missing.")
    hidden, channels = sd["x_embedder.weight"].shape
    if hidden % _HEAD:
        raise ValueError(f"FLUX's width is a multiple of {_HEAD}, this file's is {hidden}.")
    return {
        "in_channels": channels,
        "out_channels": len(sd["proj_out.weight"]),
        "num_layers": _depth(sd, "transformer_blocks."),
        "num_single_layers": _depth(sd, "single_transformer_blocks."),
        "attention_head_dim": _HEAD,
        "num_attention_heads": hidden // _HEAD,
        "joint_attention_dim": sd["context_embedder.weight"].shape[1],
        "pooled_projection_dim": sd[text].shape[1],
        "guidance_embeds": any(k.startswith("time_text_embed.guidance_embedder.") for k in sd),
        "axes_dims_rope": (16, 56, 56),
    }


def _depth(sd: Mapping[str, Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].split(".")[0] for k in sd if k.startswith(prefix)})


def _architecture(keys: Mapping[str, object]) -> str:
    name = architecture(keys)
    return f"{name} (give it with --lora, beside the model)" if name == "a LoRA" else name


def _is_flux(keys: Mapping[str, object]) -> bool:
    names = {strip_prefix(k) for k in keys}
    bfl = {"img_in.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight"}
    diffusers = {"x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"}
    return bfl <= names or diffusers <= names


def _single_file(path: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    shapes, _ = read_header(path, "diffusion model")
    if not _is_flux(shapes):
        raise ValueError(
            f"The diffusion model {path} is not a FLUX.1 transformer but {_architecture(shapes)}. "
            "Take FLUX.1-Kontext-dev."
        )
    sd = read_weights(path, dtype, "diffusion model")
    prefixed = [k for k in sd if strip_prefix(k) != k]
    if prefixed:  # a whole checkpoint: the text encoders and the autoencoder stand beside it
        sd = {strip_prefix(k): sd[k] for k in prefixed}
    if is_bfl(sd):
        sd = bfl_to_diffusers(sd)
    return flux_config(sd), sd


def transformer_folder(folder: str | Path) -> Path:
    """The folder with the transformer's config.json: `folder/transformer` or `folder` itself.

    Raises:
        ValueError: neither has one.
    """
    folder = Path(folder)
    for candidate in (folder / "transformer", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise ValueError(
        f"{folder} is not a diffusers folder: it has no transformer/config.json. Give the folder "
        "that holds model_index.json, or a single .safetensors file."
    )


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = transformer_folder(folder)
    config = read_object(folder / "config.json", "configuration")
    kind = config.get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(f"{folder} holds a {kind}, not a FluxTransformer2DModel (FLUX.1).")
    kept = {k: v for k, v in config.items() if not k.startswith("_")}
    return kept, read_folder(folder, dtype, "diffusion model")


def count_parameters(path: str | Path) -> int:
    """How many numbers a weight file, or a folder with a config.json beside its weights, holds."""
    path = Path(path)
    files = folder_files(path, "model folder") if path.is_dir() else [path]
    shapes = [s for f in files for s in read_header(f)[0].values()]
    return sum(int(torch.Size(s).numel()) for s in shapes)


def load_transformer(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FluxTransformer2DModel:
    """A FLUX transformer from a single file in either layout, or from a diffusers folder.

    The module is built without memory and takes the file's tensors as they are, so the weights
    are in memory once.

    Raises:
        ValueError: unreadable file, another architecture (named), a FLUX variant with other
            inputs, weights missing, left over or of the wrong shape.
    """
    path = Path(path).expanduser()
    config, sd = _from_folder(path, dtype) if path.is_dir() else _single_file(path, dtype)
    if config.get("out_channels") not in (None, config["in_channels"]):
        raise ValueError(
            f"{path} takes {config['in_channels']} channels a token and returns "
            f"{config['out_channels']}: a FLUX Fill, Canny or Depth model. Take FLUX.1-Kontext-dev."
        )
    # Importing diffusers takes seconds: the nano, which does not need it, would wait for it.
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = cast(FluxTransformer2DModel, FluxTransformer2DModel.from_config(config))
    fill(model, sd, str(path))
    return model.to(device)  # type: ignore[arg-type]
