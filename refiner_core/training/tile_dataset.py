"""Training items of a nano that works on tiles: parts of drawn scenes (see `tile_scenes`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.photographs import photographs
from ..images.image_io import PICTURE_SUFFIXES
from ..storage.output_files import atomic_path
from ..workers.pool import Progress, worker_pool
from .augment import augment
from .dataset import Encoder, Item, Pixels, Shape, latent_mask
from .tile_scenes import draw_tile_scene

TILE = 64  # px
HELD_OUT_SCENES = 48  # the first ones
_LARGEST = 1600  # px, longer side at which photographs are used
_CHUNK = 8  # scenes between two reports


def draw_scenes(
    folder: Path, count: int, photos: Path | None, seed: int, workers: int, progress: Progress
) -> list[Path]:
    """Draw what is missing of `count` scenes; the files of all of them, in order.

    Args:
        photos: a folder of photographs for surfaces; None = those of scikit-image.
        progress: told the scenes done and all that were missing.

    Raises:
        ValueError: there is no photograph in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"scene-{i:06d}.npy" for i in range(count)]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    draw = partial(_draw_scene, folder, photos, seed)
    if missing:
        _read_photographs(photos)
        with worker_pool(workers) as pool:
            for done, _ in enumerate(pool.map(draw, missing, chunksize=_CHUNK), 1):
                if done % _CHUNK == 0 or done == len(missing):
                    progress(done, len(missing), {})
    return files


def _draw_scene(folder: Path, photos: Path | None, seed: int, number: int) -> None:
    """Everything random of a scene follows from (seed, number)."""
    rng = np.random.default_rng([seed, number, 64])
    scene = draw_tile_scene(rng, _read_photographs(photos))
    with atomic_path(folder / f"scene-{number:06d}.npy") as temporary, temporary.open("wb") as out:
        np.save(out, scene.stacked())


@lru_cache(1)
def _read_photographs(folder: Path | None) -> tuple[Image.Image, ...]:
    if folder is None:
        return photographs()
    files = [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in PICTURE_SUFFIXES]
    if not files:
        raise ValueError(
            f"There is no photograph in {folder}; its files must end in {', '.join(PICTURE_SUFFIXES)}."
        )
    pictures = [Image.open(f).convert("RGB") for f in files]
    for picture in pictures:
        picture.thumbnail((_LARGEST, _LARGEST))
    return tuple(pictures)


class TileDataset:
    """Random tiles of scenes, each mirrored, transposed and recoloured (a `Dataset`).

    Tile n of a scene is always the same one.
    """

    def __init__(self, files: Sequence[Path], encoder: Encoder, tiles: int) -> None:
        self.files, self._encoder, self._tiles = list(files), encoder, tiles

    def __len__(self) -> int:
        return len(self.files) * self._tiles

    @property
    def shapes(self) -> Sequence[Shape]:
        latent = TILE // self._encoder.recipe.latent_factor
        return [((latent, latent),) * 3] * len(self)

    def __getitem__(self, index: int) -> Item:
        at, number = divmod(index, self._tiles)
        file = self.files[at]
        rng = np.random.default_rng([int(file.stem.split("-")[1]), number, 65])
        p = augment(rng, _cut_tile(rng, np.load(file, mmap_mode="r")))
        encode, recipe = self._encoder.encode, self._encoder.recipe
        z = encode(p.target).cpu()
        pictures = {"draft": p.draft, "reference": p.reference}
        references = tuple(encode(pictures[role]).cpu() for role in recipe.order)
        mask = latent_mask(p.mask, (z.shape[-2], z.shape[-1]))
        return Item(f"{file.stem}-{number}", recipe.text(None), z, references, mask, p)


def _cut_tile(rng: np.random.Generator, scene: np.ndarray) -> Pixels:
    """A tile around a random point of the scene's mask, as far as the scene's edges allow.

    Args:
        scene: uint8 h w 10 (see `TileScene.stacked`); the edges of a smaller one are repeated.
    """
    short = [(0, max(0, TILE - n)) for n in scene.shape[:2]]
    scene = np.pad(scene, (*short, (0, 0)), mode="edge")
    h, w = scene.shape[:2]
    inside = np.flatnonzero(scene[..., 9])
    point = int(inside[int(rng.integers(len(inside)))]) if len(inside) else h * w // 2
    # The point may lie anywhere in the tile, so that tiles at a region's edge are seen too.
    y, x = (
        int(np.clip(v - rng.integers(TILE), 0, n - TILE))
        for v, n in zip(divmod(point, w), (h, w), strict=True)
    )
    part = np.array(scene[y : y + TILE, x : x + TILE], np.float32) / 255
    planes: Tensor = torch.from_numpy(part).permute(2, 0, 1)[None]
    return Pixels(planes[:, :3], planes[:, 3:6], planes[:, 6:9], (planes[:, 9:] > 0.5).float())
