"""Procedural triplets: a surface with a detail, photographed twice, once gone wrong.

`make_scene` renders one detail on a surface, once into a *target* (a photograph with its own
light and perspective), once into a *reference* (another background, pose and light). The *draft*
is the target with the detail broken inside the mask and equal to it, bit for bit, outside.
Everything follows from the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..matching import homography as hom
from .degrade import DEGRADATIONS
from .textures import Texture, alternative, draw_texture

_SUPERSAMPLE = 2
# Photographs that ship inside scikit-image and scikit-learn. The held-out ones are seen by no
# training sample: the evaluation and the demo are made of them.
_TRAIN_PHOTOS = (
    "skimage/data/astronaut.png", "skimage/data/brick.png", "skimage/data/chelsea.png",
    "skimage/data/color.png", "skimage/data/grass.png", "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg", "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png", "skimage/data/retina.jpg",
    "sklearn/datasets/images/flower.jpg",
)  # fmt: skip
_HELD_OUT_PHOTOS = (
    "skimage/data/coffee.png", "skimage/data/rocket.jpg", "sklearn/datasets/images/china.jpg",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One triplet. Images are uint8 H W 3, masks uint8 H W (0 or 255).

    `to_target` maps reference pixels to target pixels (3x3). `degradation` is a key of
    `DEGRADATIONS`, "swap" or "identity"; `strength` in [0, 1].
    """

    target: np.ndarray
    draft: np.ndarray
    mask: np.ndarray
    reference: np.ndarray
    reference_mask: np.ndarray
    to_target: np.ndarray
    kind: str
    label: str
    degradation: str
    strength: float
    seed: int


@dataclass(frozen=True)
class Light:
    """Channel gains, a linear gradient over the surface and a vignette-like falloff."""

    gain: np.ndarray
    gradient: tuple[float, float]
    offset: float

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        h, w = pixels.shape[:2]
        ramp = (
            1
            + self.gradient[0] * np.linspace(-0.5, 0.5, w)[None, :, None]
            + self.gradient[1] * np.linspace(-0.5, 0.5, h)[:, None, None]
        )
        return pixels * ramp * self.gain + self.offset


def random_light(rng: np.random.Generator) -> Light:
    tint = np.exp(rng.normal(0, 0.10, 3))
    return Light(
        gain=tint * rng.uniform(0.55, 1.2),
        gradient=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        offset=float(rng.uniform(0, 18)),
    )


@cache
def photographs(held_out: bool = False) -> tuple[Image.Image, ...]:
    """The free photographs of scikit-image and scikit-learn (training extra).

    Raises:
        ModuleNotFoundError: neither package is there; names the extra to install.
    """
    found = []
    for name in _HELD_OUT_PHOTOS if held_out else _TRAIN_PHOTOS:
        package, rest = name.split("/", 1)
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / rest
            if path.is_file():
                found.append(Image.open(path).convert("RGB"))
    if not found:
        raise ModuleNotFoundError(
            "Procedural scenes need the photographs inside scikit-image and scikit-learn: "
            "pip install 'omnirefiner[train]'."
        )
    return tuple(found)


def draw_background(rng: np.random.Generator, size: tuple[int, int], held_out: bool) -> Image.Image:
    photos = photographs(held_out)
    photo = photos[int(rng.integers(len(photos)))]
    w, h = size
    scale = rng.uniform(0.35, 1.0) * min(photo.width / w, photo.height / h)
    cw, ch = max(8, int(w * scale)), max(8, int(h * scale))
    x = int(rng.integers(0, photo.width - cw + 1))
    y = int(rng.integers(0, photo.height - ch + 1))
    crop = photo.resize(size, Image.Resampling.BICUBIC, (x, y, x + cw, y + ch))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def draw_pose(
    rng: np.random.Generator,
    texture: Texture,
    canvas: tuple[int, int],
    fill: float,
    turn: float,
    jitter: float,
) -> np.ndarray:
    """Texture pixel -> canvas pixel, so that the detail's box covers `fill` of the canvas."""
    w, h = canvas
    box = hom.corners(texture.box)
    center = box.mean(0)
    side = np.ptp(box, axis=0).min()
    angle = rng.uniform(-turn, turn)
    c, s = math.cos(angle), math.sin(angle)
    turned = (box - center) @ np.array([[c, s], [-s, c]])
    bent = turned + rng.normal(0, jitter * side, (4, 2))
    low, high = bent.min(0), bent.max(0)
    scale = fill * min(w / (high[0] - low[0]), h / (high[1] - low[1]))
    bent = (bent - (low + high) / 2) * scale
    slack = np.array([w, h]) / 2 - np.abs(bent).max(0)
    shift = rng.uniform(-1, 1, 2) * np.maximum(slack, 0) * 0.5
    return hom.from_points(box, bent + np.array([w, h]) / 2 + shift)


def _render(
    texture: Texture, pose: np.ndarray, background: Image.Image, light: Light, defocus: float
) -> np.ndarray:
    """The lit surface over the background, float32 H W 3 in [0, 255]."""
    w, h = background.size
    s = _SUPERSAMPLE
    big = (w * s, h * s)
    to_big = np.diag([s, s, 1.0]) @ pose
    lit = Light.apply(light, np.asarray(texture.image, np.float32))
    surface = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    surface.putalpha(255)
    layer = hom.warp(surface, to_big, big).resize((w, h), Image.Resampling.BOX)
    alpha = np.asarray(layer.getchannel("A"), np.float32)[..., None] / 255
    pixels = alpha * np.asarray(layer.convert("RGB"), np.float32) + (1 - alpha) * np.asarray(
        background, np.float32
    )
    if defocus > 0.2:
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(defocus)), np.float32)
    return pixels


def _polygon_mask(size: tuple[int, int], points: np.ndarray) -> np.ndarray:
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon([tuple(p) for p in points], fill=255)
    return np.asarray(image)


def _rough_mask(
    rng: np.random.Generator, size: tuple[int, int], quad: np.ndarray, rough: bool
) -> np.ndarray:
    """What a person would paint over the quad: its outline grown, its box, or an ellipse."""
    center = quad.mean(0)
    grown = center + (quad - center) * rng.uniform(1.04, 1.2)
    style = rng.random() if rough else 0.0
    if style < 0.5:
        return _polygon_mask(size, grown)
    low, high = grown.min(0), grown.max(0)
    image = Image.new("L", size)
    shape = (*low, *high)
    if style < 0.8:
        ImageDraw.Draw(image).rectangle(shape, fill=255)
    else:
        half = (high - low) / 2 * 1.25
        ImageDraw.Draw(image).ellipse((*(center - half), *(center + half)), fill=255)
    return np.asarray(image)


def _camera_noise(rng: np.random.Generator, pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)


def _break(
    rng: np.random.Generator,
    target: np.ndarray,
    swapped: np.ndarray | None,
    mask: np.ndarray,
    name: str,
    strength: float,
) -> np.ndarray:
    """The target with one degradation (or the swapped rendering) inside the mask."""
    if name == "identity":
        return target
    if name == "swap":
        assert swapped is not None
        broken = swapped.astype(np.float32)
    else:
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        y0, y1, x0, x1 = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
        broken = target.astype(np.float32)
        box = (slice(y0, y1), slice(x0, x1))
        broken[box] = DEGRADATIONS[name](broken[box], rng, strength)
    out = np.clip(np.rint(broken), 0, 255).astype(np.uint8)
    return np.where(mask[..., None] > 0, out, target)


def make_scene(
    seed: int,
    canvas: tuple[int, int] = (320, 240),
    fill: tuple[float, float] = (0.35, 0.55),
    rough_masks: bool = True,
    held_out: bool = False,
    kind: str | None = None,
    degradation: str | None = None,
) -> Scene:
    """Render the triplet of `seed`.

    Args:
        seed: everything random follows from it.
        canvas: (width, height) of target and draft in pixels.
        fill: range of the share of the canvas that the detail's box covers.
        rough_masks: boxes and ellipses beside exact outlines.
        held_out: use the photographs that training never sees.
        kind, degradation: fix what is otherwise drawn.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2511_19990]))
    share = rng.uniform(*fill)
    texture = draw_texture(rng, max(24, int(1.3 * share * canvas[1] * 1.4)), kind)
    pose = draw_pose(rng, texture, canvas, share, turn=0.35, jitter=0.06)
    light, back = random_light(rng), draw_background(rng, canvas, held_out)
    defocus, grain = float(rng.uniform(0, 0.8)), float(rng.uniform(0, 2.5))
    target_pixels = _render(texture, pose, back, light, defocus)
    noise_seed = int(rng.integers(1 << 31))
    target = _camera_noise(np.random.default_rng(noise_seed), target_pixels, grain)
    quad = hom.apply(pose, hom.corners(texture.box))
    mask = _rough_mask(rng, canvas, quad, rough_masks)

    names = [*DEGRADATIONS, "swap", "swap", "swap", "swap", "identity"]
    name = degradation or str(rng.choice(names))
    strength = float(rng.uniform(0, 1))
    swapped = None
    if name == "swap":
        pixels = _render(alternative(rng, texture), pose, back, light, defocus)
        swapped = _camera_noise(np.random.default_rng(noise_seed), pixels, grain)
    draft = _break(rng, target, swapped, mask, name, strength)

    ref_scale = rng.uniform(0.9, 1.5) * share
    ref_canvas = (max(24, int(canvas[0] * ref_scale * 1.7)),
                  max(24, int(canvas[1] * ref_scale * 1.7)))  # fmt: skip
    ref_pose = draw_pose(rng, texture, ref_canvas, rng.uniform(0.5, 0.8), turn=0.2, jitter=0.035)
    reference = _camera_noise(
        rng,
        _render(
            texture, ref_pose, draw_background(rng, ref_canvas, held_out), random_light(rng),
            float(rng.uniform(0, 0.5)),
        ),
        float(rng.uniform(0, 1.5)),
    )  # fmt: skip
    ref_quad = hom.apply(ref_pose, hom.corners(texture.box))
    reference_mask = _rough_mask(rng, ref_canvas, ref_quad, rough_masks)
    return Scene(
        target, draft, mask, reference, reference_mask, pose @ np.linalg.inv(ref_pose),
        texture.kind, texture.label, name, strength, seed,
    )  # fmt: skip
