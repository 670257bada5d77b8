"""Training cases out of nano's cached crops (`data.cache`): already framed and aligned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.cache import cut_window
from ..models.engine import Codec
from ..repair.views import prefill
from .views import Pixels, Shape, View, latent_region


class CropViews:
    """Cases out of cached crops (`data.cache`): aligned references, encoded as they are read.

    `share` of the aligned reference is laid over the draft's region first, as inference does;
    `start`, `stop` choose a part of the cases; `window` cuts a square of that side (pixels) on the
    region, always the same one of a case, 0 takes the whole crop.

    Raises:
        FileNotFoundError: no crops in the folder.
    """

    def __init__(
        self, folder: Path, codec: Codec, share: float, *,
        start: int = 0, stop: int | None = None, window: int = 0,
    ) -> None:  # fmt: skip
        paths = sorted(folder.glob("*.npy"))
        if not paths:
            raise FileNotFoundError(
                f"No training crops (*.npy) in {folder}: build the cache first."
            )
        self._shards = [np.load(p, mmap_mode="r") for p in paths]
        cases = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard))]
        self._cases, self._names = cases[start:stop], [p.stem for p in paths]
        self._codec, self._share, self._window = codec, share, window

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def shapes(self) -> list[Shape]:
        if self._window:
            return [((self._window // 4, self._window // 4),) * 3] * len(self._cases)
        sizes = [(s.shape[1] // 4, s.shape[2] // 4) for s in self._shards]
        return [(sizes[s],) * 3 for s, _ in self._cases]

    def __getitem__(self, index: int) -> View:
        shard, at = self._cases[index]
        crop = np.array(self._shards[shard][at])
        if self._window:
            crop = np.array(cut_window(np.random.default_rng([shard, at, 3]), crop, self._window))
        x = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
        target, draft, reference, mask = x[:, :3], x[:, 3:6], x[:, 6:9], (x[:, 9:] > 0).float()
        seen = prefill(draft, reference, mask, self._share)
        z, a, b = (self._codec.encode(p) for p in (target, seen, reference))
        region = latent_region(mask, (z.shape[-2], z.shape[-1]))
        pixels = Pixels(target, draft, reference, mask)
        return View(f"{self._names[shard]}-{at}", "", z, (a, b), region, pixels)
