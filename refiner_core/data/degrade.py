"""Degradations of a crop, as generators, codecs and upscalers cause them.

Every function takes and returns a float32 array H W 3 in [0, 255] and a strength in [0, 1].
The caller pastes the result through the mask, so no function has to respect it.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from .triplets import mask_box

Degradation = Callable[[np.ndarray, np.random.Generator, float], np.ndarray]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def blur(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Gaussian blur, up to 6 % of the shorter side."""
    radius = (0.015 + 0.045 * strength) * min(pixels.shape[:2])
    return np.asarray(_image(pixels).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def low_resolution(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Downscaled and upscaled again by a factor of 2.5 to 7."""
    h, w = pixels.shape[:2]
    factor = 2.5 + 4.5 * strength
    small = _image(pixels).resize(
        (max(2, int(w / factor)), max(2, int(h / factor))), Image.Resampling.BOX
    )
    how = Image.Resampling.BICUBIC if rng.random() < 0.8 else Image.Resampling.NEAREST
    return np.asarray(small.resize((w, h), how), np.float32)


def warp(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A smooth displacement field: melted letters."""
    from scipy.ndimage import map_coordinates

    h, w = pixels.shape[:2]
    amplitude = (0.03 + 0.07 * strength) * min(h, w)
    cells = int(rng.integers(4, 9))
    field = [
        np.asarray(
            Image.fromarray(rng.normal(0, amplitude, (cells, cells)).astype(np.float32)).resize(
                (w, h), Image.Resampling.BICUBIC
            )
        )
        for _ in range(2)
    ]
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    where = (yy + field[0], xx + field[1])
    return np.stack(
        [map_coordinates(pixels[..., c], where, order=1, mode="nearest") for c in range(3)], -1
    )


def erase(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Only large patches of colour are left."""
    h, w = pixels.shape[:2]
    small = _image(pixels).resize((3, 3), Image.Resampling.BOX)
    smooth = np.asarray(small.resize((w, h), Image.Resampling.BICUBIC), np.float32)
    keep = 0.25 * (1 - strength)
    return keep * pixels + (1 - keep) * smooth


def shuffle(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Blocks replaced by their neighbours: letters in the wrong order."""
    out = pixels.copy()
    h, w = pixels.shape[:2]
    side = max(3, int(min(h, w) * rng.uniform(0.12, 0.3)))
    for _ in range(int(3 + 12 * strength)):
        y, x = int(rng.integers(0, max(1, h - side))), int(rng.integers(0, max(1, w - side)))
        v = int(np.clip(y + rng.integers(-side, side + 1), 0, max(0, h - side)))
        u = int(np.clip(x + rng.integers(-side, side + 1), 0, max(0, w - side)))
        out[y : y + side, x : x + side] = pixels[v : v + side, u : u + side]
    return np.asarray(_image(out).filter(ImageFilter.GaussianBlur(0.7)), np.float32)


def noise(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Coarse noise over a light blur."""
    h, w = pixels.shape[:2]
    grain = rng.normal(0, 15 + 35 * strength, (h // 2 + 1, w // 2 + 1, 3))
    grain = np.repeat(np.repeat(grain, 2, 0), 2, 1)[:h, :w]
    return blur(pixels, rng, 0.1 * strength) + grain


def jpeg(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Heavy JPEG compression after a light blur."""
    stream = io.BytesIO()
    _image(blur(pixels, rng, 0.2 * strength)).save(stream, "JPEG", quality=int(18 - 14 * strength))
    return np.asarray(Image.open(stream).convert("RGB"), np.float32)


def color_shift(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Channel gains and contrast changed over a blur: the right detail in the wrong colours."""
    gain = 1 + rng.uniform(-0.35, 0.35, 3) * (0.4 + 0.6 * strength)
    mean = pixels.mean((0, 1))
    flat = mean + (pixels - mean) * rng.uniform(0.5, 1.1)
    return blur(flat * gain, rng, 0.3 * strength)


DEGRADATIONS: dict[str, Degradation] = {
    f.__name__: f for f in (blur, low_resolution, warp, erase, shuffle, noise, jpeg, color_shift)
}


def degrade_box(
    target: np.ndarray, mask: np.ndarray, name: str, rng: np.random.Generator, strength: float
) -> np.ndarray:
    """The target, uint8 H W 3, with one of `DEGRADATIONS` in the box of a mask that is not empty."""
    box = mask_box(mask)
    assert box is not None, "an empty mask is rejected before"
    x0, y0, x1, y1 = box
    degraded = target.copy()
    patch = DEGRADATIONS[name](target[y0:y1, x0:x1].astype(np.float32), rng, strength)
    degraded[y0:y1, x0:x1] = np.clip(np.rint(patch), 0, 255).astype(np.uint8)
    return degraded
