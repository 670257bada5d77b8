"""A flat surface photographed: pose, bend, light, shadow, things in front of it, lens and grain.

Unlike `scenes` (whose seeds are frozen: the evaluation draws from them) surfaces may be curved,
and the mask is photographed with the same geometry instead of being computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..matching import homography as hom
from .scenes import Light

_SUPERSAMPLE = 2
_CELLS = 12  # of the warp's grid on a side; each costs a call, and bends are smooth


@dataclass(frozen=True)
class Bend:
    """How a surface leaves its plane.

    `kind` "flat", "cylinder" (`amount` = share of the half turn that is seen, 0 to 0.9) or "cloth"
    (`amount` = wave height as a share of the surface). `angle` of the waves or the axis in radians,
    `waves` over the surface, `phase` in radians.
    """

    kind: str = "flat"
    amount: float = 0.0
    angle: float = 0.0
    waves: float = 1.0
    phase: float = 0.0

    def unbend(self, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where on the surface (-1 to 1 in both directions) the point `uv` ... 2 shows, and the
        shading there, 1 = as lit.
        """
        if self.kind == "flat":
            return uv, np.ones(uv.shape[:-1])
        axis = np.array([math.cos(self.angle), math.sin(self.angle)])
        along = uv @ axis
        if self.kind == "cylinder":
            seen = math.sin(self.amount * math.pi / 2)
            turned = np.arcsin(np.clip(along * seen, -0.999, 0.999))
            moved = turned / (self.amount * math.pi / 2) - along
            shade = 0.55 + 0.45 * np.cos(turned + 0.5 * math.sin(self.phase))
            # Beyond the horizon there is no surface.
            moved = np.where(np.abs(along) > 1 / seen, 9.0, moved)
            return uv + moved[..., None] * axis, shade
        across = uv @ np.array([-axis[1], axis[0]])
        angle = math.pi * self.waves * along + self.phase + 0.6 * np.sin(1.7 * across + self.phase)
        shift = self.amount * np.sin(angle)
        return uv + shift[..., None] * axis, 1 + 1.6 * self.amount * self.waves * np.cos(angle)


@dataclass(frozen=True)
class Shot:
    """Everything about a photograph except what is printed on the surface.

    `surface` size of the flat surface in its pixels; `pose` maps them to the picture's (3x3);
    `bars` things in front: (x0, y0, x1, y1, width, colour); `shadow` darkness in [0, 1];
    `defocus` and `grain` standard deviations in pixels and in values of 255.
    """

    surface: tuple[int, int]
    pose: np.ndarray
    bend: Bend
    light: Light
    background: Image.Image
    bars: tuple[tuple[float, float, float, float, int, tuple[int, int, int]], ...]
    shadow: float
    defocus: float
    grain: float
    grain_seed: int


def _window(shot: Shot) -> tuple[int, int, int, int]:
    """The part of the picture that the surface can reach, with a margin for its bend."""
    quad = hom.apply(shot.pose, hom.corners((0, 0, *shot.surface)))
    low, high = quad.min(0), quad.max(0)
    margin = 3 + (0.5 * shot.bend.amount * (high - low) if shot.bend.kind == "cloth" else 0)
    low, high = np.floor(low - margin), np.ceil(high + margin)
    w, h = shot.background.size
    return (
        int(np.clip(low[0], 0, w - 1)), int(np.clip(low[1], 0, h - 1)),
        int(np.clip(high[0], low[0].clip(0) + 1, w)), int(np.clip(high[1], low[1].clip(0) + 1, h)),
    )  # fmt: skip


@dataclass(frozen=True)
class Projection:
    """The warp from a surface into its window of the picture, computed once for many surfaces.

    `mesh` for a bent surface, `inverse` (window pixel to surface pixel, 3x3) for a flat one.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    shade: np.ndarray | None
    mesh: list[tuple[tuple[int, int, int, int], tuple[float, ...]]]
    inverse: np.ndarray | None

    def __call__(self, surface: Image.Image) -> Image.Image:
        """The surface as it lies in the window."""
        big = (self.size[0] * _SUPERSAMPLE, self.size[1] * _SUPERSAMPLE)
        how, data = Image.Transform.MESH, self.mesh
        if self.inverse is not None:
            inverse = self.inverse @ np.diag([1 / _SUPERSAMPLE, 1 / _SUPERSAMPLE, 1])
            how = Image.Transform.PERSPECTIVE
            data = (inverse / inverse[2, 2]).flatten()[:8].tolist()
        return surface.transform(big, how, data, Image.Resampling.BILINEAR).reduce(_SUPERSAMPLE)


def project(shot: Shot) -> Projection:
    """The projection of a shot."""
    x0, y0, x1, y1 = _window(shot)
    w, h = x1 - x0, y1 - y0
    if shot.bend.kind == "flat":
        shift = np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1.0]])
        return Projection((x0, y0, x1, y1), (w, h), None, [], np.linalg.inv(shot.pose) @ shift)
    xs, ys = (np.linspace(0, n, min(n, _CELLS) + 1).round().astype(int) for n in (w, h))
    grid = np.stack(np.meshgrid(xs + x0, ys + y0), -1).astype(np.float64)
    flat = hom.apply(np.linalg.inv(shot.pose), grid.reshape(-1, 2)).reshape(grid.shape)
    half = np.array(shot.surface) / 2
    uv, shade = shot.bend.unbend(flat / half - 1)
    at = (uv + 1) * half
    mesh = []
    for j in range(len(ys) - 1):
        for i in range(len(xs) - 1):
            box = tuple(int(v) * _SUPERSAMPLE for v in (xs[i], ys[j], xs[i + 1], ys[j + 1]))
            corners = (at[j, i], at[j + 1, i], at[j + 1, i + 1], at[j, i + 1])
            mesh.append((box, tuple(float(v) for c in corners for v in c)))
    smooth = Image.fromarray(shade.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR)
    return Projection((x0, y0, x1, y1), (w, h), np.asarray(smooth)[..., None], mesh, None)


def _over(background: Image.Image, layer: Image.Image, shot: Shot, p: Projection) -> Image.Image:
    """The projected layer over the background, with its shadow."""
    alpha = layer.getchannel("A")
    surface = layer.convert("RGB")
    if p.shade is not None:
        lit = np.asarray(surface, np.float32) * p.shade
        surface = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    picture = background.copy()
    if shot.shadow > 0:
        reach = max(2, min(p.size) // 16)
        dark = Image.new("L", background.size)
        dark.paste(alpha.point([int(v * shot.shadow) for v in range(256)]),
                   (p.window[0] + reach // 2, p.window[1] + reach))  # fmt: skip
        x0, y0, x1, y1 = p.window
        box = (max(0, x0 - 2 * reach), max(0, y0 - 2 * reach),
               min(picture.width, x1 + 3 * reach), min(picture.height, y1 + 3 * reach))  # fmt: skip
        picture.paste((0, 0, 0), box, dark.crop(box).filter(ImageFilter.GaussianBlur(reach / 2)))
    picture.paste(surface, p.window[:2], alpha)
    return picture


def photograph(surface: Image.Image, shot: Shot, p: Projection | None = None) -> np.ndarray:
    """The picture of a flat RGB `surface`, uint8 H W 3."""
    p = p or project(shot)
    lit = shot.light.apply(np.asarray(surface, np.float32))
    printed = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    printed.putalpha(255)
    picture = _over(shot.background, p(printed), shot, p)
    draw = ImageDraw.Draw(picture)
    for ax, ay, bx, by, width, color in shot.bars:
        draw.line((ax, ay, bx, by), fill=color, width=width)
    if shot.defocus > 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(shot.defocus))
    noise = np.random.default_rng(shot.grain_seed)
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + noise.standard_normal(pixels.shape, np.float32) * np.float32(shot.grain)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def photographed_mask(flat: np.ndarray, shot: Shot, p: Projection | None = None) -> np.ndarray:
    """Where a part of the surface, uint8 h w in its pixels, shows in the picture: uint8 H W, 0 or
    255.
    """
    p = p or project(shot)
    w, h = shot.background.size
    out = np.zeros((h, w), np.uint8)
    x0, y0, x1, y1 = p.window
    out[y0:y1, x0:x1] = np.where(np.asarray(p(Image.fromarray(flat))) > 127, 255, 0)
    return out
