"""The held-out scenes that refiners are measured on; every seed gives the same bits for ever.

A surface with one detail is rendered into a *target* and, with another pose, light and background,
into a *reference*. The *draft* is the target with the detail degraded inside the mask and equal to
it, bit for bit, outside. Training data come from `data.scene` instead: changing that renderer must
not move the figures that were measured on these scenes, so it is frozen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..data.degrade import DEGRADATIONS, degrade_box
from ..data.photographs import draw_background
from ..data.render import Light, draw_pose
from ..data.textures import Texture, alternative, draw_texture
from ..matching import homography as hom

FIRST_SEED = 10_000_000  # of the scenes that figures are measured on

_SUPERSAMPLE = 2
_SALT = 251119990  # keeps these seeds apart from those of training data


@dataclass(frozen=True)
class HeldOutScene:
    """One triplet. Pictures are uint8 H W 3, masks uint8 H W (0 or 255)."""

    target: np.ndarray
    draft: np.ndarray
    mask: np.ndarray
    reference: np.ndarray
    reference_mask: np.ndarray
    to_target: np.ndarray  # homography from reference pixels to target pixels, 3 3
    kind: str  # "word", "logo" or "pattern"
    label: str  # the word, or the name of the logo or pattern
    degradation: str  # a key of `DEGRADATIONS`, "swap" or "identity"
    strength: float  # of the degradation, 0..1
    seed: int


def _draw_light(rng: np.random.Generator) -> Light:
    tint = np.exp(rng.normal(0, 0.10, 3))
    return Light(
        gain=tint * rng.uniform(0.55, 1.2),
        gradient=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        offset=float(rng.uniform(0, 18)),
    )


def _render(
    texture: Texture, pose: np.ndarray, background: Image.Image, light: Light, defocus: float
) -> np.ndarray:
    """The lit surface over the background, float32 H W 3 in [0, 255]."""
    w, h = background.size
    big = (w * _SUPERSAMPLE, h * _SUPERSAMPLE)
    to_big = np.diag([_SUPERSAMPLE, _SUPERSAMPLE, 1.0]) @ pose
    layer = hom.warp(light.lit(texture.image), to_big, big).resize((w, h), Image.Resampling.BOX)
    alpha = np.asarray(layer.getchannel("A"), np.float32)[..., None] / 255
    surface, behind = (np.asarray(i, np.float32) for i in (layer.convert("RGB"), background))
    pixels = alpha * surface + (1 - alpha) * behind
    if defocus > 0.2:
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(defocus)), np.float32)
    return pixels


def _draw_mask(
    rng: np.random.Generator, size: tuple[int, int], quad: np.ndarray, rough: bool
) -> np.ndarray:
    """What a person would paint over the quad: its outline enlarged, its box, or an ellipse."""
    center = quad.mean(0)
    grown = center + (quad - center) * rng.uniform(1.04, 1.2)
    style = rng.random() if rough else 0.0
    low, high = grown.min(0), grown.max(0)
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    if style < 0.5:
        draw.polygon([tuple(p) for p in grown], fill=255)
    elif style < 0.8:
        draw.rectangle((*low, *high), fill=255)
    else:
        half = (high - low) / 2 * 1.25
        draw.ellipse((*(center - half), *(center + half)), fill=255)
    return np.asarray(image)


def _add_noise(rng: np.random.Generator, pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)


def _make_draft(
    rng: np.random.Generator,
    target: np.ndarray,
    mask: np.ndarray,
    name: str,
    strength: float,
    render_alternative: Callable[[], np.ndarray],
) -> np.ndarray:
    """The target with one degradation, or another detail rendered, inside the mask."""
    if name == "identity":
        return target
    swap = name == "swap"
    degraded = render_alternative() if swap else degrade_box(target, mask, name, rng, strength)
    return np.where(mask[..., None] > 0, degraded, target)


def make_scene(
    seed: int,
    canvas: tuple[int, int] = (320, 240),
    fill: tuple[float, float] = (0.35, 0.55),
    rough_masks: bool = True,
    held_out: bool = False,
    kind: str | None = None,
    degradation: str | None = None,
) -> HeldOutScene:
    """Render the triplet of `seed`.

    Args:
        seed: everything random follows from it.
        canvas: (width, height) of target and draft in pixels.
        fill: range of the share of the canvas that the detail's box covers.
        rough_masks: boxes and ellipses in addition to exact outlines.
        held_out: use the photographs that training never sees.
        kind, degradation: fix what is otherwise drawn at random.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, _SALT]))
    share = rng.uniform(*fill)
    texture = draw_texture(rng, max(24, int(1.3 * share * canvas[1] * 1.4)), kind)
    pose = draw_pose(rng, texture, canvas, share, max_angle=0.35, jitter=0.06)
    light, background = _draw_light(rng), draw_background(rng, canvas, held_out)
    defocus, grain = float(rng.uniform(0, 0.8)), float(rng.uniform(0, 2.5))
    noise_seed = int(rng.integers(1 << 31))

    def render(texture: Texture) -> np.ndarray:
        pixels = _render(texture, pose, background, light, defocus)
        return _add_noise(np.random.default_rng(noise_seed), pixels, grain)

    target = render(texture)
    quad = hom.apply(pose, hom.corners(texture.box))
    mask = _draw_mask(rng, canvas, quad, rough_masks)
    names = [*DEGRADATIONS, "swap", "swap", "swap", "swap", "identity"]
    name = degradation or str(rng.choice(names))
    strength = float(rng.uniform(0, 1))
    draft = _make_draft(
        rng, target, mask, name, strength, lambda: render(alternative(rng, texture))
    )
    reference, reference_mask, reference_pose = _render_reference(
        rng, texture, canvas, share, rough_masks, held_out
    )
    return HeldOutScene(
        target=target,
        draft=draft,
        mask=mask,
        reference=reference,
        reference_mask=reference_mask,
        to_target=pose @ np.linalg.inv(reference_pose),
        kind=texture.kind,
        label=texture.label,
        degradation=name,
        strength=strength,
        seed=seed,
    )


def _render_reference(
    rng: np.random.Generator,
    texture: Texture,
    canvas: tuple[int, int],
    share: float,
    rough_mask: bool,
    held_out: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference, its mask, and the pose of the surface in it."""
    scale = rng.uniform(0.9, 1.5) * share
    w, h = (max(24, int(side * scale * 1.7)) for side in canvas)
    fill = rng.uniform(0.5, 0.8)
    pose = draw_pose(rng, texture, (w, h), fill, max_angle=0.2, jitter=0.035)
    background, light = draw_background(rng, (w, h), held_out), _draw_light(rng)
    pixels = _render(texture, pose, background, light, float(rng.uniform(0, 0.5)))
    reference = _add_noise(rng, pixels, float(rng.uniform(0, 1.5)))
    quad = hom.apply(pose, hom.corners(texture.box))
    return reference, _draw_mask(rng, (w, h), quad, rough_mask), pose
