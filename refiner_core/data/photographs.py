"""The photographs that procedural scenes use as backgrounds: free ones, or the user's own.

The free ones ship inside scikit-image and scikit-learn. Those held out are never part of training
data: evaluation scenes and the demo are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .source_files import OwnFile

_PHOTO_SIDE = 2048  # px to which the user's own photographs are reduced
_LARGE_CANVAS = 768  # px; for larger pictures they are reduced less
_TRAINING = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/chelsea.png",
    "skimage/data/color.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "sklearn/datasets/images/flower.jpg",
)
_HELD_OUT = (
    "skimage/data/coffee.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
)


def photograph_path(name: str) -> Path | None:
    """The file `package/path` of an installed package, or None if it is not installed."""
    package, path = name.split("/", 1)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / path
    return file if file.is_file() else None


@cache
def photographs(held_out: bool = False) -> tuple[Image.Image, ...]:
    """The photographs for training, or those held out for evaluation.

    Raises:
        ModuleNotFoundError: neither package is installed; says how to install them.
    """
    paths = (photograph_path(name) for name in (_HELD_OUT if held_out else _TRAINING))
    images = tuple(Image.open(path).convert("RGB") for path in paths if path)
    if not images:
        raise ModuleNotFoundError(
            "Procedural scenes need the photographs inside scikit-image and scikit-learn: "
            "pip install scikit-image scikit-learn (the pack's extra train)."
        )
    return images


def draw_background(rng: np.random.Generator, size: tuple[int, int], held_out: bool) -> Image.Image:
    """A random crop of a random photograph, resized to `size` (width, height), perhaps mirrored."""
    photos = photographs(held_out)
    return draw_crop(rng, photos[int(rng.integers(len(photos)))], size)


def draw_own_background(
    rng: np.random.Generator, size: tuple[int, int], photos: Sequence[OwnFile]
) -> tuple[Image.Image, OwnFile]:
    """Like `draw_background` from the user's own photographs; and the one that was drawn.

    Raises:
        ValueError: it cannot be read.
    """
    photo = photos[int(rng.integers(len(photos)))]
    side = _PHOTO_SIDE if max(size) <= _LARGE_CANVAS else 2 * _PHOTO_SIDE
    return draw_crop(rng, _load_photo(photo.path, side), size), photo


@lru_cache(maxsize=24)
def _load_photo(path: Path, side: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"The photograph {path} is damaged or cut off: {e}.") from e
    upright.thumbnail((side, side))
    return upright


def draw_crop(rng: np.random.Generator, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A random crop of a photograph, resized to `size` (width, height), perhaps mirrored."""
    w, h = size
    scale = rng.uniform(0.35, 1.0) * min(photo.width / w, photo.height / h)
    cw, ch = max(8, int(w * scale)), max(8, int(h * scale))
    x = int(rng.integers(0, photo.width - cw + 1))
    y = int(rng.integers(0, photo.height - ch + 1))
    crop = photo.resize(size, Image.Resampling.BICUBIC, (x, y, x + cw, y + ch))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop
