"""A MODEL of ComfyUI that works on overlapping tiles which share one process (see `models.tiles`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..refiner_core.models.tiles import Tiling
from .one_way import Caches

_WRAPPER = "model_function_wrapper"


def tiled(model: Any, side: int, caches: Caches) -> Any:
    """A clone of the model that denoises tile by tile under any sampler.

    Args:
        side: of a tile, in latent pixels.
        caches: of the clean tokens, for one-way attention; told which pass comes next.
    """
    model = model.clone()
    previous = model.model_options.get(_WRAPPER)

    def denoise(apply_model: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        if previous is not None:
            return previous(apply_model, arguments)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    def wrapper(apply_model: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        x = arguments["input"]
        tiling = Tiling(x.shape[-2], x.shape[-1], side)
        if not tiling.covers(arguments["c"].get("ref_latents", [])):
            return denoise(apply_model, arguments)  # references that are not aligned
        total = torch.zeros_like(x)
        for number, tiles in enumerate(tiling.chunks(len(x))):
            caches.select(number)
            part = _arguments_of(tiling, tiles, arguments)
            tiling.add(total, denoise(apply_model, part), tiles)
        return total

    model.set_model_unet_function_wrapper(wrapper)
    return model


def _arguments_of(
    tiling: Tiling, tiles: Sequence[int], arguments: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a model function for some tiles."""
    rows, count = len(arguments["input"]), len(tiles)

    def of_tiles(name: str, value: Any) -> Any:
        if name == "ref_latents":
            return [tiling.cut(v, tiles) for v in value]
        if isinstance(value, Tensor) and value.ndim and len(value) == rows:
            return torch.cat([value] * count)
        return value

    return {
        **arguments,
        "input": tiling.cut(arguments["input"], tiles),
        "timestep": torch.cat([arguments["timestep"]] * count),
        "c": {name: of_tiles(name, value) for name, value in arguments["c"].items()},
    }
