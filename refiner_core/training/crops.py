"""Training cases out of nano's cached crops (`data.cache`): already framed and aligned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.cache import cut_window
from ..models.engine import Codec
from ..nano.codec import BLOCK
from ..repair.views import prefill, spread_share
from .views import Pixels, Shape, View, latent_region


def read_shards(folder: Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and mapped crops `uint8 N H W 10` of every shard in a folder; N may be 0.

    Raises:
        FileNotFoundError: no crops in the folder.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise FileNotFoundError(f"No training crops (*.npy) in {folder}: build the cache first.")
    return [p.stem for p in paths], [np.load(p, mmap_mode="r") for p in paths]


class CropViews:
    """Cases out of cached crops (`data.cache`): aligned references, encoded as they are read.

    `share` of the aligned reference is laid over the draft's region first, as inference does;
    `start`, `stop` choose a part of the crops; `window` cuts a square of that side (pixels) on the
    region, 0 takes the whole crop. Every crop is `variants` cases: the first as it is, the others
    mirrored, turned and recoloured alike in all pictures (copying does not read letters), every
    second one at another share, as the candidates of best of N are. A case is always the same.

    Raises:
        FileNotFoundError: no crops in the folder.
    """

    def __init__(
        self, folder: Path, codec: Codec, share: float, *,
        start: int = 0, stop: int | None = None, window: int = 0, variants: int = 1,
    ) -> None:  # fmt: skip
        self._names, self._shards = read_shards(folder)
        crops = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard))]
        self._cases = [(*crop, v) for crop in crops[start:stop] for v in range(variants)]
        self._codec, self._share, self._window = codec, share, window

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def shapes(self) -> Sequence[Shape]:
        sizes = [
            (self._window or s.shape[1], self._window or s.shape[2]) for s in self._shards
        ]  # fmt: skip
        shapes = [((h // BLOCK, w // BLOCK),) * 3 for h, w in sizes]
        return [shapes[s] for s, _, _ in self._cases]

    def __getitem__(self, index: int) -> View:
        shard, at, variant = self._cases[index]
        rng = np.random.default_rng([shard, at, 3, variant])
        crop = np.array(self._shards[shard][at])
        if self._window:
            crop = cut_window(rng, crop, self._window)
        x = varied(rng, crop) if variant else planes(crop)
        target, draft, reference, mask = x[:, :3], x[:, 3:6], x[:, 6:9], (x[:, 9:] > 0).float()
        share = spread_share(self._share, variant) if variant % 2 and self._share else self._share
        seen = prefill(draft, reference, mask, share)
        z, a, b = self._codec.encode(torch.cat([target, seen, reference])).split(1)
        region = latent_region(mask, (z.shape[-2], z.shape[-1]))
        pixels = Pixels(target, draft, reference, mask)
        return View(f"{self._names[shard]}-{at}-{variant}", "", z, (a, b), region, pixels)


def planes(crop: np.ndarray) -> Tensor:
    """A crop `uint8 H W 10` as float32 1 10 H W in [0, 1]."""
    return torch.from_numpy(np.array(crop, order="C")).permute(2, 0, 1)[None].float() / 255


def varied(rng: np.random.Generator, crop: np.ndarray) -> Tensor:
    """A crop as `planes`, mirrored, turned and recoloured alike in all its pictures."""
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop[::-1]
    if crop.shape[0] == crop.shape[1] and rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    x = planes(crop)
    order = rng.permutation(3)
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.12, (3, 1, 1)))).float()
    pictures = [(x[:, i : i + 3][:, order] * gain).clamp(0, 1) for i in (0, 3, 6)]
    return torch.cat([*pictures, x[:, 9:]], 1)
