"""Where evaluation cases come from: our shards, or folders of pictures (see `data.pair_files`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.pair_files import PairFiles, find_cases, read_pixels
from ..data.shards import TripletSet
from ..data.triplets import Triplet, check
from ..images.image_io import load_picture
from ..images.mask_io import load_mask

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
            ValueError: a file is missing, damaged or of another size; names it.
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

    Transparent pictures are composited over white, and the alpha of a reference is its mask unless
    there is a file with another; both are noted in the case's info. In
    Critic-10K's layout draft and mask are resized to the target's size where they differ.
    """

    ids: Sequence[str]
    pairs: Sequence[PairFiles]

    def load(self, index: int) -> Triplet:
        name, pair = self.ids[index], self.pairs[index]
        for role in _NEEDED:
            if role not in pair.files:
                raise ValueError(
                    f"{name}: there is no {role} picture. Every case needs {', '.join(_NEEDED)}. "
                    "If there are only pairs of reference, target and mask, make the drafts with "
                    "`omnirefiner data build --pairs`."
                )
        info: dict[str, object] = {"source": "Critic-10K's layout" if pair.critic else "folder"}
        arrays: dict[str, np.ndarray] = {}
        composited: list[str] = []
        for role, path in pair.files.items():
            if "mask" in role:
                arrays[role] = _read_mask(path, role)
                continue
            arrays[role], transparent = read_pixels(path, role)
            composited += [role] * transparent
            if role == "reference" and transparent and "reference_mask" not in pair.files:
                arrays["reference_mask"] = _read_alpha(path)
                info["reference_mask"] = "alpha of the reference"
        if composited:
            info["composited_over_white"] = composited
        target = arrays.get("target")
        if pair.critic and target is not None:
            height, width = target.shape[:2]
            for role in ("draft", "mask"):
                if arrays[role].shape[:2] != (height, width):
                    info[f"{role}_resized_from"] = list(arrays[role].shape[1::-1])
                    arrays[role] = _resize(arrays[role], width, height)
        return check(
            Triplet(
                name,
                arrays["draft"],
                arrays["reference"],
                target,
                arrays["mask"],
                arrays.get("reference_mask"),
                pair.prompt,
                info,
            )
        )


def _read_alpha(path: Path) -> np.ndarray:
    mask = load_picture(path, "reference").as_reference()[1]
    assert mask is not None, "the reference is transparent"
    return _in_bytes(mask[0, 0])


def _read_mask(path: Path, role: str) -> np.ndarray:
    return _in_bytes(load_mask(path, role)[0, 0])


def _in_bytes(mask: Tensor) -> np.ndarray:
    # A faint stroke must not round to nothing: over 0 stays over 0.
    return np.where(mask > 0, np.maximum(1, np.rint(mask.numpy() * 255)), 0).astype(np.uint8)


def _resize(array: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))


def open_cases(data: Path, split: str | None = None) -> Cases:
    """The cases of a folder or a .jsonl file, in any of the layouts.

    Raises:
        ValueError: the folder does not exist or holds no case; names the possible layouts.
    """
    if data.is_dir() and any(data.glob("*.tar")):
        return ShardCases(data, split)
    if split is not None:
        raise ValueError(f"{data} holds no shards (*.tar), so it has no split {split!r}.")
    found = find_cases(data)
    if not found:
        raise ValueError(f"{data} holds no cases: no folder has draft.png and reference.png.")
    return FileCases(list(found), list(found.values()))
