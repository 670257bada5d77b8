"""DreamSim as safetensors: one file per variant, with the LoRA merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..weights.safetensors_io import fill, read_header, read_weights, save_weights
from .dreamsim import VARIANTS, DreamSim, Variant, tower_config
from .vit import HEAD, ViTConfig

FORMAT = "omnirefiner-dreamsim-1"


def tower_configs(variant: Variant, shapes: Mapping[str, tuple[int, ...]]) -> list[ViTConfig]:
    """The transformers whose weights have these shapes.

    Raises:
        ValueError: they are not this variant's: the number of towers, a patch size or a
            projection differs; names it.
    """
    count = len({k.split(".")[1] for k in shapes if k.startswith("towers.")})
    if count != len(variant.towers):
        raise ValueError(f"{variant.name} has {len(variant.towers)} towers, the file has {count}.")
    configs: list[ViTConfig] = []
    for i, (family, patch) in enumerate(variant.towers):
        of = {k.removeprefix(f"towers.{i}."): v for k, v in shapes.items()}
        if "patch_embed.weight" not in of or "pos_embed" not in of:
            raise ValueError(f"Tower {i} has no patch_embed.weight or pos_embed.")
        width, _, found, _ = of["patch_embed.weight"]
        grid = round((of["pos_embed"][1] - 1) ** 0.5)
        depth = len({k.split(".")[1] for k in of if k.startswith("blocks.")})
        projection = of["proj"][1] if "proj" in of else None
        if found != patch or width % HEAD or (projection is None) == family.endswith("clip"):
            raise ValueError(
                f"Tower {i} of {variant.name} is {family} with patches of {patch} px; these weights "
                f"have patches of {found} px, width {width} and "
                f"{'no' if projection is None else 'a'} projection."
            )
        configs.append(
            tower_config(
                family, patch=patch, grid=grid, width=width, depth=depth, projection=projection
            )
        )
    return configs


def save_dreamsim(
    state: Mapping[str, Tensor],
    variant: Variant,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, object] | None = None,
) -> None:
    """Write a model's weights (named as in `DreamSim.state_dict`) and their sources.

    Matrices are stored in `dtype`; vectors, positions and the class token (1 % of the bytes) stay
    float32.

    Raises:
        ValueError: a weight is not finite, or too large for `dtype`.
    """
    tower_configs(variant, {k: tuple(v.shape) for k, v in state.items()})
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        small = tensor.ndim == 1 or name.endswith(("pos_embed", "cls_token"))
        stored = tensor.detach().to(torch.float32 if small else dtype).contiguous().cpu()
        if not bool(torch.isfinite(stored).all()):
            raise ValueError(f"{name} has values that are not finite in {stored.dtype}.")
        out[name] = stored
    metadata = {"format": FORMAT, "variant": variant.name} | {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in (notes or {}).items()
    }
    save_weights(path, out, metadata)


def read_variant(path: str | Path) -> Variant:
    """The variant that a file holds, from its metadata.

    Raises:
        ValueError: it is missing, damaged, or not made by `omnirefiner convert dreamsim`.
    """
    _, metadata = read_header(path, "DreamSim file")
    found = metadata.get("format")
    if found != FORMAT or metadata.get("variant") not in VARIANTS:
        raise ValueError(
            f"{path} is not a DreamSim file of this pack (its metadata has format {found!r}, variant "
            f"{metadata.get('variant')!r}). Convert an official release: omnirefiner convert "
            "dreamsim RELEASE.zip OUT.safetensors"
        )
    return VARIANTS[metadata["variant"]]


def load_dreamsim(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DreamSim:
    """The network of a file made by `omnirefiner convert dreamsim`, in `dtype`, without gradients.

    Raises:
        ValueError: as `read_variant`; or weights are missing, unexpected or of a wrong shape.
    """
    variant = read_variant(path)
    shapes, _ = read_header(path, "DreamSim file")
    try:
        configs = tower_configs(variant, shapes)
    except ValueError as e:
        raise ValueError(f"{path}: {e} Convert the release again.") from e
    with torch.device("meta"):
        model = DreamSim(variant, configs)
    fill(model, read_weights(path, dtype, "DreamSim file"), str(path))
    model.source = (str(path), dtype)
    return model.to(device)
