"""Draws a scene at random: canvas, pose, bend, light, and what stands in front of the surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ..matching import homography as hom
from .own_files import OwnFiles
from .photographs import draw_background, draw_own_background
from .render import Bend, Light, Projection, SurfaceView, draw_pose, project
from .source_files import OwnFile
from .textures import Texture

_ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (16, 9))


@dataclass(frozen=True)
class Scene:
    """One detail and its two views, before anything is rendered."""

    texture: Texture
    target: SurfaceView
    reference: SurfaceView

    @cached_property
    def to_target(self) -> Projection:
        return project(self.target)

    @cached_property
    def to_reference(self) -> Projection:
        return project(self.reference)


def draw_canvas(rng: np.random.Generator, side: int, square: bool) -> tuple[int, int]:
    """(width, height) of about `side` x `side` pixels in a common aspect, in multiples of 16."""
    a, b = (1, 1) if square else _ASPECTS[int(rng.integers(len(_ASPECTS)))]
    w, h = side * math.sqrt(a / b), side * math.sqrt(b / a)
    return max(16, round(w / 16) * 16), max(16, round(h / 16) * 16)


def _draw_bend(rng: np.random.Generator) -> Bend:
    kind = str(rng.choice(("flat", "cylinder", "cloth"), p=(0.6, 0.2, 0.2)))
    amount = {"flat": 0.0, "cylinder": rng.uniform(0.3, 0.75), "cloth": rng.uniform(0.01, 0.035)}
    angle = rng.uniform(-0.3, 0.3) if kind == "cylinder" else rng.uniform(0, math.pi)
    waves = float(rng.uniform(1.0, 2.5))
    return Bend(kind, float(amount[kind]), float(angle), waves, float(rng.uniform(0, 6.28)))


def _draw_light(
    rng: np.random.Generator, background: Image.Image, pose: np.ndarray, texture: Texture
) -> Light:
    """Light that suits the background around the surface, so that it does not look pasted on."""
    center = hom.apply(pose, hom.corners(texture.box)).mean(0)
    reach = background.width // 5
    x, y = (int(np.clip(v, 0, n - 1)) for v, n in zip(center, background.size, strict=True))
    around = background.crop((x - reach, y - reach, x + reach, y + reach)).reduce(4)
    brightness = float(np.asarray(around.convert("L")).mean()) / 255
    tint = np.exp(rng.normal(0, 0.08, 3))
    gain = float(np.clip(0.55 + 0.6 * brightness + rng.uniform(-0.15, 0.15), 0.55, 1.2))
    gradient = (float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4)))
    return Light(tint * gain, gradient, float(rng.uniform(0, 14)))


def _draw_bars(
    rng: np.random.Generator, pose: np.ndarray, texture: Texture, background: Image.Image
) -> tuple[Any, ...]:
    """In one of eight scenes a strap or wire of the background's colour crosses the surface."""
    if rng.random() > 0.12:
        return ()
    quad = hom.apply(pose, hom.corners(texture.box))
    low, high = quad.min(0), quad.max(0)
    a, b = (low + (high - low) * rng.uniform(-0.2, 1.2, 2) for _ in range(2))
    a[1], b[1] = low[1] - 0.4 * (high - low)[1], high[1] + 0.4 * (high - low)[1]
    color = background.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    width = max(1, round(float((high - low).min()) * rng.uniform(0.03, 0.08)))
    return ((float(a[0]), float(a[1]), float(b[0]), float(b[1]), width, color),)


def draw_view(
    rng: np.random.Generator,
    texture: Texture,
    canvas: tuple[int, int],
    fill: float,
    held_out: bool,
    clean: bool,
    flat: bool,
) -> SurfaceView:
    """A random view of the texture.

    Args:
        rng: the source of randomness.
        texture: the surface.
        canvas: (width, height) of the picture in pixels.
        fill: share of the canvas that the detail's box covers.
        held_out: use the photographs that training never sees.
        clean: sharper, less tilted and with nothing in front (references).
        flat: never bend the surface.
    """
    calm = 0.55 if clean else 1.0
    pose = draw_pose(rng, texture, canvas, fill, max_angle=0.35 * calm, jitter=0.06 * calm)
    background, photo = _draw_background(rng, texture.style.own, canvas, held_out)
    light = _draw_light(rng, background, pose, texture)
    return SurfaceView(
        surface=texture.image.size,
        pose=pose,
        bend=Bend() if flat else _draw_bend(rng),
        light=light,
        background=background,
        bars=() if clean else _draw_bars(rng, pose, texture, background),
        shadow=float(rng.uniform(0, 0.6)),
        defocus=float(rng.uniform(0, 0.8)) * calm,
        grain=float(rng.uniform(0, 2.5)) * calm,
        grain_seed=int(rng.integers(1 << 31)),
        photo=photo,
    )


def _draw_background(
    rng: np.random.Generator, own: OwnFiles, canvas: tuple[int, int], held_out: bool
) -> tuple[Image.Image, OwnFile | None]:
    if not own.photos:
        return draw_background(rng, canvas, held_out), None
    photos = own.held_out_photos if held_out and own.held_out_photos else own.photos
    return draw_own_background(rng, canvas, photos)
