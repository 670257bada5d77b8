"""Where cases to be measured come from: our shards, Critic-10K's layout, or plain folders.

Plain: one folder a case with `draft.png reference.png mask.png`, and `target.png` and
`reference_mask.png` where there are such. Critic-10K: one folder a case with `product.png` (the
reference), `generated.png` (the target), `generated_with_degradation.png` (the draft), `mask.png`
and `prompt.txt`; or JSON lines whose keys A_image, B_image, target, mask and caption name them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.shards import TripletSet
from ..data.stages.files import read_listing
from ..data.triplets import Triplet, check
from ..images.image_io import load_mask, load_picture
from ..images.tensors import to_dtype, to_float

_PLAIN = {n: f"{n}.png" for n in ("draft", "reference", "mask", "target", "reference_mask")}
_CRITIC = {
    "draft": "generated_with_degradation.png", "reference": "product.png", "mask": "mask.png",
    "target": "generated.png",
}  # fmt: skip
_NEEDED = ("draft", "reference", "mask")


class Cases(Protocol):
    """A list of cases that can be sent to other processes and read one by one."""

    @property
    def ids(self) -> Sequence[str]:
        """Their names, unique."""
        ...

    def load(self, index: int) -> Triplet:
        """The case number `index`.

        Raises:
            ValueError: one of its files is missing, damaged or of another size; names it.
        """
        ...


class ShardCases:
    """The triplets of a data set (see `data.shards`), of one split or of all."""

    def __init__(self, folder: Path, split: str | None) -> None:
        self.triplets = TripletSet(folder, split)
        self.ids = [str(entry["id"]) for entry in self.triplets.entries]

    def load(self, index: int) -> Triplet:
        return self.triplets[index]


@dataclass(frozen=True)
class FileCases:
    """Cases whose pictures are files.

    `files` maps, per case, draft, reference, mask, target and reference_mask to paths, as far as
    there are such; `fit` resizes draft and mask to the target's size where they differ (Critic-10K
    stores them apart); `prompts` one a case.
    """

    ids: Sequence[str]
    files: Sequence[Mapping[str, Path]]
    prompts: Sequence[str]
    fit: bool = False
    source: str = "folder"
    notes: Mapping[str, str] = field(default_factory=dict)

    def load(self, index: int) -> Triplet:
        name, files = self.ids[index], self.files[index]
        for needed in _NEEDED:
            if needed not in files:
                raise ValueError(f"{name}: there is no {needed} picture.")
        arrays = {k: _read(path, k) for k, path in files.items()}
        info: dict[str, object] = {"source": self.source}
        target = arrays.get("target")
        if self.fit and target is not None:
            height, width = target.shape[:2]
            for key in ("draft", "mask"):
                if arrays[key].shape[:2] != (height, width):
                    info[f"{key}_resized_from"] = list(arrays[key].shape[1::-1])
                    arrays[key] = _resized(arrays[key], width, height)
        return check(
            Triplet(
                name, arrays["draft"], arrays["reference"], target, arrays["mask"],
                arrays.get("reference_mask"), self.prompts[index], info,
            )
        )  # fmt: skip


def _read(path: Path, name: str) -> np.ndarray:
    if "mask" in name:
        mask = load_mask(path, name)[0, 0]
        # A faint stroke must not round to nothing: over 0 stays over 0.
        return np.where(mask > 0, np.maximum(1, np.rint(mask.numpy() * 255)), 0).astype(np.uint8)
    pixels = to_dtype(to_float(load_picture(path, name).pixels), torch.uint8)
    return pixels[0].permute(1, 2, 0).numpy()


def _resized(array: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))


def unique_ids(names: Sequence[str]) -> list[str]:
    """Names as ids: other characters become "_", and a name that came before gets a number."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:90] or "case"
        chosen, number = base, 2
        while chosen in found:
            chosen, number = f"{base}-{number}", number + 1
        found.append(chosen)
    return found


def _from_folders(folders: list[Path], names: Mapping[str, str], critic: bool) -> FileCases:
    files, prompts = [], []
    for folder in folders:
        files.append({k: folder / n for k, n in names.items() if (folder / n).is_file()})
        prompt = folder / "prompt.txt"
        prompts.append(prompt.read_text(encoding="utf-8").strip() if prompt.is_file() else "")
    source = "Critic-10K's layout" if critic else "folder"
    return FileCases(unique_ids([f.name for f in folders]), files, prompts, critic, source)


def _from_lines(path: Path) -> FileCases:
    pairs = read_listing(path)
    files = [dict(p.files) for p in pairs]
    ids, prompts = unique_ids([p.name for p in pairs]), [p.prompt for p in pairs]
    return FileCases(ids, files, prompts, fit=True, source="Critic-10K's layout")


def open_cases(data: Path, split: str | None = None) -> Cases:
    """The cases of a folder (or a .jsonl file), whatever its layout.

    Raises:
        ValueError: there is no such folder or no case in it; says which layouts there are.
    """
    if data.is_file() and data.suffix == ".jsonl":
        return _from_lines(data)
    if not data.is_dir():
        raise ValueError(f"There is no folder {data}.")
    if any(data.glob("*.tar")):
        return ShardCases(data, split)
    if split is not None:
        raise ValueError(f"{data} holds no shards (*.tar), so it has no split {split!r}.")
    folders = sorted(p for p in data.iterdir() if p.is_dir())
    critic = [f for f in folders if (f / _CRITIC["draft"]).is_file()]
    if critic:
        return _from_folders(critic, _CRITIC, critic=True)
    plain = [f for f in folders if any((f / _PLAIN[n]).is_file() for n in ("draft", "reference"))]
    if plain:
        return _from_folders(plain, _PLAIN, critic=False)
    lines = sorted(data.glob("*.jsonl"))
    if len(lines) == 1:
        return _from_lines(lines[0])
    raise ValueError(
        f"No cases in {data}. Expected shards (*.tar), or one folder a case with draft.png, "
        "reference.png and mask.png (target.png, reference_mask.png if there are such), or "
        "Critic-10K's layout (generated_with_degradation.png, product.png, mask.png)."
    )


def picture(array: np.ndarray) -> Tensor:
    """uint8 H W 3 -> 1 3 H W."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None]


def mask_tensor(array: np.ndarray) -> Tensor:
    """uint8 H W -> float32 1 1 H W in [0, 1]."""
    return torch.from_numpy(np.array(array))[None, None].float() / 255
