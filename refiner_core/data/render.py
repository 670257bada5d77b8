"""Renders a flat surface into a scene: pose, bend, light, shadow, occluders, defocus and grain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..matching import homography as hom
from .source_files import OwnFile
from .textures import Texture

_SUPERSAMPLE = 2
_CELLS = 12  # of the warp's grid per side; each costs a call, and bends are smooth

Color = tuple[int, int, int]
Quad = tuple[float, ...]  # x and y of four corners
Mesh = list[tuple[tuple[int, int, int, int], Quad]]


@dataclass(frozen=True)
class Light:
    """How a surface is lit."""

    gain: np.ndarray  # factor per RGB channel, 3
    gradient: tuple[float, float]  # brightness from edge to edge, across and down; 0 = even
    offset: float  # added to every channel, in values of 255

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The lit surface, float32 H W 3 in values of 255, not clipped."""
        h, w = pixels.shape[:2]
        ramp = (
            1
            + self.gradient[0] * np.linspace(-0.5, 0.5, w)[None, :, None]
            + self.gradient[1] * np.linspace(-0.5, 0.5, h)[:, None, None]
        )
        return pixels * ramp * self.gain + self.offset

    def lit(self, surface: Image.Image) -> Image.Image:
        """The lit surface as an opaque RGBA picture."""
        pixels = self.apply(np.asarray(surface, np.float32))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.putalpha(255)
        return image


def draw_pose(
    rng: np.random.Generator,
    texture: Texture,
    canvas: tuple[int, int],
    fill: float,
    max_angle: float,
    jitter: float,
) -> np.ndarray:
    """A random homography from texture pixels to canvas pixels, 3 3.

    Args:
        rng: the source of randomness.
        texture: the surface; the box of its detail is what is placed.
        canvas: (width, height) in pixels.
        fill: share of the canvas that the detail's box covers.
        max_angle: of the rotation either way, in radians.
        jitter: standard deviation of the corners, as a share of the box's shorter side.
    """
    w, h = canvas
    box = hom.corners(texture.box)
    center = box.mean(0)
    side = np.ptp(box, axis=0).min()
    angle = rng.uniform(-max_angle, max_angle)
    c, s = math.cos(angle), math.sin(angle)
    rotated = (box - center) @ np.array([[c, s], [-s, c]])
    quad = rotated + rng.normal(0, jitter * side, (4, 2))
    low, high = quad.min(0), quad.max(0)
    scale = fill * min(w / (high[0] - low[0]), h / (high[1] - low[1]))
    quad = (quad - (low + high) / 2) * scale
    slack = np.array([w, h]) / 2 - np.abs(quad).max(0)
    shift = rng.uniform(-1, 1, 2) * np.maximum(slack, 0) * 0.5
    return hom.from_points(box, quad + np.array([w, h]) / 2 + shift)


@dataclass(frozen=True)
class Bend:
    """How a surface leaves its plane."""

    kind: str = "flat"  # "flat", "cylinder" or "cloth"
    amount: float = 0.0  # cylinder: visible share of the half turn, 0..0.9; cloth: wave height
    angle: float = 0.0  # of the cylinder's curve or of the waves, in radians
    waves: float = 1.0  # number of waves over the surface
    phase: float = 0.0  # of the waves or of the light, in radians

    def unbend(self, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The surface point (-1..1 in both directions) seen at `uv` ... 2, and its shading (1 =
        unchanged).
        """
        if self.kind == "flat":
            return uv, np.ones(uv.shape[:-1])
        axis = np.array([math.cos(self.angle), math.sin(self.angle)])
        along = uv @ axis
        if self.kind == "cylinder":
            visible = math.sin(self.amount * math.pi / 2)
            turned = np.arcsin(np.clip(along * visible, -0.999, 0.999))
            moved = turned / (self.amount * math.pi / 2) - along
            shade = 0.55 + 0.45 * np.cos(turned + 0.5 * math.sin(self.phase))
            # Beyond the horizon there is no surface.
            moved = np.where(np.abs(along) > 1 / visible, 9.0, moved)
            return uv + moved[..., None] * axis, shade
        across = uv @ np.array([-axis[1], axis[0]])
        angle = math.pi * self.waves * along + self.phase + 0.6 * np.sin(1.7 * across + self.phase)
        shift = self.amount * np.sin(angle)
        return uv + shift[..., None] * axis, 1 + 1.6 * self.amount * self.waves * np.cos(angle)


@dataclass(frozen=True)
class SurfaceView:
    """Everything about a rendered picture except what is printed on the surface."""

    surface: tuple[int, int]  # size of the flat surface, in its pixels
    pose: np.ndarray  # homography from surface pixels to picture pixels, 3 3
    bend: Bend
    light: Light
    background: Image.Image
    bars: tuple[tuple[float, float, float, float, int, Color], ...]  # x0 y0 x1 y1 width colour
    shadow: float  # darkness of the surface's shadow, 0..1
    defocus: float  # standard deviation of the blur, in pixels
    grain: float  # standard deviation of the noise, in values of 255
    grain_seed: int
    photo: OwnFile | None = None  # of the user's own: the one that the background shows


def _window(view: SurfaceView) -> tuple[int, int, int, int]:
    """The box of the picture that the surface can reach, with a margin for its bend."""
    quad = hom.apply(view.pose, hom.corners((0, 0, *view.surface)))
    low, high = quad.min(0), quad.max(0)
    margin = 3 + (0.5 * view.bend.amount * (high - low) if view.bend.kind == "cloth" else 0)
    low, high = np.floor(low - margin), np.ceil(high + margin)
    w, h = view.background.size
    x0, y0 = int(np.clip(low[0], 0, w - 1)), int(np.clip(low[1], 0, h - 1))
    x1 = int(np.clip(high[0], low[0].clip(0) + 1, w))
    y1 = int(np.clip(high[1], low[1].clip(0) + 1, h))
    return x0, y0, x1, y1


@dataclass(frozen=True)
class Projection:
    """The warp of a surface into its window of the picture, computed once for many surfaces."""

    window: tuple[int, int, int, int]
    size: tuple[int, int]  # of the window
    shade: np.ndarray | None  # H W 1, of a bent surface
    mesh: Mesh  # of a bent surface
    inverse: np.ndarray | None  # of a flat surface: window pixels to surface pixels, 3 3

    def __call__(self, surface: Image.Image) -> Image.Image:
        """The surface as it lies in the window."""
        big = (self.size[0] * _SUPERSAMPLE, self.size[1] * _SUPERSAMPLE)
        how, data = Image.Transform.MESH, self.mesh
        if self.inverse is not None:
            inverse = self.inverse @ np.diag([1 / _SUPERSAMPLE, 1 / _SUPERSAMPLE, 1])
            how = Image.Transform.PERSPECTIVE
            data = (inverse / inverse[2, 2]).flatten()[:8].tolist()
        return surface.transform(big, how, data, Image.Resampling.BILINEAR).reduce(_SUPERSAMPLE)


def project(view: SurfaceView) -> Projection:
    """The projection of a view."""
    window = x0, y0, x1, y1 = _window(view)
    w, h = x1 - x0, y1 - y0
    if view.bend.kind == "flat":
        shift = np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1.0]])
        return Projection(window, (w, h), None, [], np.linalg.inv(view.pose) @ shift)
    xs, ys = (np.linspace(0, n, min(n, _CELLS) + 1).round().astype(int) for n in (w, h))
    grid = np.stack(np.meshgrid(xs + x0, ys + y0), -1).astype(np.float64)
    flat = hom.apply(np.linalg.inv(view.pose), grid.reshape(-1, 2)).reshape(grid.shape)
    half = np.array(view.surface) / 2
    uv, shade = view.bend.unbend(flat / half - 1)
    mesh = mesh_of((uv + 1) * half, xs * _SUPERSAMPLE, ys * _SUPERSAMPLE)
    smooth = Image.fromarray(shade.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR)
    return Projection(window, (w, h), np.asarray(smooth)[..., None], mesh, None)


def mesh_of(points: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> Mesh:
    """Pillow's mesh: each cell of the grid `xs`, `ys` shows the quad between its `points` (h w 2)."""
    mesh: Mesh = []
    for j in range(len(ys) - 1):
        for i in range(len(xs) - 1):
            box = (int(xs[i]), int(ys[j]), int(xs[i + 1]), int(ys[j + 1]))
            quad = (points[j, i], points[j + 1, i], points[j + 1, i + 1], points[j, i + 1])
            mesh.append((box, tuple(float(v) for corner in quad for v in corner)))
    return mesh


def _composite(layer: Image.Image, view: SurfaceView, p: Projection) -> Image.Image:
    """The projected layer over the background, with its shadow."""
    alpha = layer.getchannel("A")
    surface = layer.convert("RGB")
    if p.shade is not None:
        shaded = np.asarray(surface, np.float32) * p.shade
        surface = Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))
    picture = view.background.copy()
    if view.shadow > 0:
        _cast_shadow(picture, alpha, view.shadow, p)
    picture.paste(surface, p.window[:2], alpha)
    return picture


def _cast_shadow(picture: Image.Image, alpha: Image.Image, darkness: float, p: Projection) -> None:
    reach = max(2, min(p.size) // 16)
    x0, y0, x1, y1 = p.window
    dark = Image.new("L", picture.size)
    faded = alpha.point([int(v * darkness) for v in range(256)])
    dark.paste(faded, (x0 + reach // 2, y0 + reach))
    left, top = max(0, x0 - 2 * reach), max(0, y0 - 2 * reach)
    right, bottom = min(picture.width, x1 + 3 * reach), min(picture.height, y1 + 3 * reach)
    box = (left, top, right, bottom)
    picture.paste((0, 0, 0), box, dark.crop(box).filter(ImageFilter.GaussianBlur(reach / 2)))


def render(surface: Image.Image, view: SurfaceView, p: Projection | None = None) -> np.ndarray:
    """The picture of a flat RGB `surface`, uint8 H W 3."""
    p = p or project(view)
    picture = _composite(p(view.light.lit(surface)), view, p)
    draw = ImageDraw.Draw(picture)
    for ax, ay, bx, by, width, color in view.bars:
        draw.line((ax, ay, bx, by), fill=color, width=width)
    if view.defocus > 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(view.defocus))
    noise = np.random.default_rng(view.grain_seed)
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + noise.standard_normal(pixels.shape, np.float32) * np.float32(view.grain)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def render_mask(flat: np.ndarray, view: SurfaceView, p: Projection | None = None) -> np.ndarray:
    """A mask of the surface (uint8 h w, in its pixels) as seen in the picture: uint8 H W, 0 or 255."""
    p = p or project(view)
    w, h = view.background.size
    out = np.zeros((h, w), np.uint8)
    x0, y0, x1, y1 = p.window
    out[y0:y1, x0:x1] = np.where(np.asarray(p(Image.fromarray(flat))) > 127, 255, 0)
    return out
