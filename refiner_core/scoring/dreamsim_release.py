"""Converts official DreamSim releases to safetensors. The only module that reads pickles."""

from __future__ import annotations

import contextlib
import pickle
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..storage.checksums import sha256
from ..storage.text_files import read_object
from ..weights.safetensors_io import read_weights
from .dreamsim import VARIANTS, Family, Variant
from .dreamsim_files import save_dreamsim
from .vit import resample_positions

SIDE = 224
_RELEASES = "https://github.com/ssundaram21/dreamsim/releases/download"
_META = "https://dl.fbaipublicfiles.com"
_LORA_FOLDERS = {
    "ensemble": "ensemble_lora",
    "dino_vitb16": "dino_vitb16_single_lora",
    "clip_vitb32": "clip_vitb32_single_lora",
    "open_clip_vitb32": "open_clip_vitb32_single_lora",
    "dinov2_vitb14": "dinov2_vitb14_single_lora",
    "synclr_vitb16": "synclr_vitb16_single_lora",
    "dino_vitb16_patch": "dino_vitb16_patch_lora",
    "dinov2_vitb14_patch": "dinov2_vitb14_patch_lora",
}
# File names in torch.hub and URLs of the backbones that the dreamsim package downloads from Meta.
BACKBONES: dict[Family, tuple[str, str]] = {
    "dino": (
        "dino_vitbase16_pretrain.pth",
        f"{_META}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ),
    "dinov2": (
        "dinov2_vitb14_pretrain.pth",
        f"{_META}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    ),
}
TEACHER = "teacher"


def release_url(variant: str) -> str:
    """The URL of a variant's official release."""
    first = ("ensemble", "dino_vitb16", "clip_vitb32", "open_clip_vitb32")
    tag = "v0.2.0" if variant in first else "v0.2.1"
    return f"{_RELEASES}/{tag}-checkpoints/dreamsim_{variant}_checkpoint.zip"


@dataclass
class Sources:
    """The files of a release."""

    folder: Path
    backbone: str | None  # a file that the release does not include, or "teacher"
    digests: dict[str, str] = field(default_factory=dict)  # of the files that were read

    def file(self, name: str) -> Path:
        """A file of the release.

        Raises:
            ValueError: it is missing.
        """
        path = self.folder / name
        if not path.is_file():
            raise ValueError(
                f"{name} is missing in the release, which holds "
                f"{', '.join(sorted(p.name for p in self.folder.iterdir())) or 'nothing'}."
            )
        return self.seen(path, name)

    def seen(self, path: Path, name: str) -> Path:
        """Record the digest of a file that is read."""
        self.digests[name] = sha256(path)
        return path


def convert_release(
    source: Path,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    backbone: str | None = None,
    side: int = SIDE,
) -> Variant:
    """Merge the LoRA of a release into its towers and write one safetensors file.

    Args:
        source: the release as a zip, or the folder it was unpacked to (dreamsim's `cache_dir`).
        out: the safetensors file, written completely or not at all.
        dtype: of the stored matrices.
        variant: which one, if the folder holds several.
        backbone: the DINO or DINOv2 weights that releases do not include; or "teacher" to use
            DINO's teacher from the release's own training checkpoint.
        side: input size of the towers in pixels; 224 in every official release.

    Raises:
        ValueError: it is not a release, an entry of the zip leads out of its folder, a file is
            missing, damaged or of another model, or the LoRA is of an unknown kind.
    """
    with _unpacked(source, out.parent) as folder:
        adapter = _find_adapter(folder, variant, source)
        name = _name_of(adapter)
        sources = Sources(adapter.parent, backbone)
        if source.is_file():
            sources.digests[source.name] = sha256(source)
        state = _merged_state(VARIANTS[name], adapter, sources, side)
    notes = {"sources": sources.digests, "url": release_url(name), "stored": str(dtype)}
    save_dreamsim(state, VARIANTS[name], out, dtype=dtype, notes=notes)
    return VARIANTS[name]


@contextlib.contextmanager
def _unpacked(source: Path, beside: Path) -> Generator[Path, None, None]:
    """The folder of a release; a zip is unpacked next to the output as long as it is needed."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise ValueError(f"The release {source} does not exist.")
    with tempfile.TemporaryDirectory(dir=beside, prefix=".dreamsim-") as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                for entry in archive.infolist():
                    _check_entry(entry, source)
                archive.extractall(folder)
        # RuntimeError: encrypted; NotImplementedError: an unknown compression.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as e:
            raise ValueError(
                f"The release {source} ({source.stat().st_size} bytes) is not a zip, damaged or "
                f"truncated: {e}. Download it again."
            ) from e
        yield Path(folder)


def _check_entry(entry: zipfile.ZipInfo, source: Path) -> None:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    climbs = path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
    if climbs or stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(
            f"The zip {source} has the entry {entry.filename!r}, which leads out of its folder. "
            "This is not an official release; nothing was unpacked."
        )


def _name_of(adapter: Path) -> str:
    return next(v for v, folder in _LORA_FOLDERS.items() if folder == adapter.name)


def _find_adapter(folder: Path, variant: str | None, source: Path) -> Path:
    """The folder of the LoRA, whose name tells the variant."""
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose from {', '.join(VARIANTS)}.")
    configs = [*folder.glob("*/adapter_config.json"), *folder.glob("*/*/adapter_config.json")]
    found = {
        _name_of(c.parent): c.parent for c in configs if c.parent.name in _LORA_FOLDERS.values()
    }
    if not found:
        raise ValueError(
            f"{source} is not a DreamSim release: it holds none of the folders "
            f"{', '.join(_LORA_FOLDERS.values())}. Take {release_url('ensemble')} (the older "
            "dreamsim_checkpoint.zip of v0.1 has another LoRA and cannot be used)."
        )
    if variant is None and len(found) > 1:
        raise ValueError(f"{source} holds {', '.join(found)}: choose one with --variant.")
    if variant is not None and variant not in found:
        raise ValueError(
            f"{source} holds {', '.join(found)}, not {variant}. Take {release_url(variant)}."
        )
    return found[variant or next(iter(found))]


def _merged_state(
    variant: Variant, adapter: Path, sources: Sources, side: int
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, (family, patch) in enumerate(variant.towers):
        tower = _tower_state(_backbone_state(family, patch, sources), family, side // patch)
        state |= {f"towers.{i}.{k}": v for k, v in tower.items()}
    _merge_adapter(state, adapter, sources)
    return state


def read_pickle(path: Path) -> Any:
    """The tensors of a .pth file; code in it is rejected, never run.

    Raises:
        ValueError: the file is damaged or truncated, or holds more than tensors.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as e:
        said = str(e).strip().splitlines()[:1]
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) cannot be read as plain weights: it is "
            f"damaged or truncated, or holds code, which is never run. ({said[0] if said else e!r})"
        ) from e


def _backbone_state(family: Family, patch: int, sources: Sources) -> Mapping[str, Tensor]:
    """A tower's weights before the LoRA, under the names of the dreamsim package."""
    if family in ("clip", "open_clip"):
        return read_pickle(sources.file(f"{family}_vitb{patch}_pretrain.pth.tar"))["state_dict"]
    if family == "synclr":
        whole = read_pickle(sources.file("synclr_vit_b_16.pth"))["model"]
        return {k.removeprefix("module.visual."): v for k, v in whole.items()}
    return _meta_backbone(family, sources)


def _meta_backbone(family: Family, sources: Sources) -> Mapping[str, Tensor]:
    """DINO's or DINOv2's weights: the user's file, torch.hub's, or the release's teacher."""
    file, url = BACKBONES[family]
    if sources.backbone == TEACHER:
        return _teacher(sources)
    if sources.backbone is not None:
        places = [Path(sources.backbone).expanduser()]
    else:
        places = [sources.folder / "checkpoints" / file, sources.folder / file]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        hint = (
            f" or --backbone {TEACHER}, for the teacher in the release" if family == "dino" else ""
        )
        raise ValueError(
            f"The {family} backbone is missing ({' or '.join(map(str, places))}). Download {url} "
            f"and name it with --backbone FILE{hint}."
        )
    sources.seen(path, path.name)
    return (
        read_weights(path, None, "backbone") if path.suffix == ".safetensors" else read_pickle(path)
    )


def _teacher(sources: Sources) -> dict[str, Tensor]:
    whole = read_pickle(sources.file("dino_vitb16_pretrain.pth"))
    prefixes = ("module.backbone.", "backbone.")
    out = {
        k.removeprefix(p): v
        for k, v in whole.get(TEACHER, {}).items()
        for p in prefixes
        if k.startswith(p)
    }
    if not out:
        raise ValueError("dino_vitb16_pretrain.pth has no teacher: name a file with --backbone.")
    return out


def _tower_state(state: Mapping[str, Tensor], family: Family, grid: int) -> dict[str, Tensor]:
    """A tower's weights with our names, its positions resampled to the grid in use."""
    if not isinstance(state, Mapping) or "pos_embed" not in state:
        raise ValueError(
            f"The {family} weights have no pos_embed: they are not of a vision transformer."
        )
    is_clip = family in ("clip", "open_clip")
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "mask_token" or key.startswith("head.") or (key[:5] == "norm." and not is_clip):
            continue  # unused: features are taken before DINO's last norm
        name = key.replace("patch_embed.proj.", "patch_embed.").replace("pos_drop.", "pre_norm.")
        out[name.removesuffix(".gamma")] = tensor.float()
    out["pos_embed"] = resample_positions(out["pos_embed"], grid)
    return out


def _merge_adapter(state: dict[str, Tensor], adapter: Path, sources: Sources) -> None:
    """W += alpha / r * B A for every attention of every tower (Hu et al. 2021, equation 3)."""
    scale = _lora_scale(adapter)
    lora = dict(_adapter_weights(adapter, sources))
    for target in [k for k in state if k.endswith(".attn.qkv.weight")]:
        tower, _, layer = target.removeprefix("towers.").removesuffix(".weight").partition(".")
        base = f"base_model.model.extractor_list.{tower}.model.{layer}"
        down, up = (lora.pop(f"{base}.lora_{part}.weight", None) for part in "AB")
        if down is None or up is None:
            raise ValueError(f"{adapter.name} has no {base}.lora_A.weight and lora_B.weight.")
        if (up.shape[0], down.shape[1]) != tuple(state[target].shape):
            raise ValueError(
                f"{adapter.name}: {base} is {up.shape[0]}x{down.shape[1]}, but the tower's weight is "
                f"{'x'.join(map(str, state[target].shape))}."
            )
        state[target] = (state[target].double() + scale * (up.double() @ down.double())).float()
    if lora:
        raise ValueError(f"{adapter.name} has weights that belong to no tower: {next(iter(lora))}.")


def _lora_scale(adapter: Path) -> float:
    config = read_object(adapter / "adapter_config.json", "configuration")
    unknown = ("use_rslora", "use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")
    strange = [k for k in unknown if config.get(k)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or strange:
        raise ValueError(f"{adapter.name} is a LoRA of an unknown kind: {strange or config}.")
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, (int, float)) or not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"{adapter.name} has lora_alpha {alpha!r} and r {rank!r}, not two numbers."
        )
    return alpha / rank


def _adapter_weights(adapter: Path, sources: Sources) -> dict[str, Tensor]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        path = adapter / name
        if path.is_file():
            sources.seen(path, f"{adapter.name}/{name}")
            return read_weights(path, None, "LoRA") if path.suffix != ".bin" else read_pickle(path)
    raise ValueError(f"{adapter.name} has no adapter_model.safetensors.")
