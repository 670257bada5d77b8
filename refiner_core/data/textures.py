"""Draws the details to be repaired: words, logos and patterns on flat textured surfaces.

A `Texture` is a flat RGB picture of a surface (material and detail) with the box of the detail.
`alternative` draws another detail of the same kind on the same material: the wrong word or logo
that a generator would have put there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .artwork import load_artwork
from .fonts import Font, bundled_fonts, load_font
from .own_files import NO_FILES, OwnFiles
from .scripts import LATIN, letters, misspell, random_word
from .source_files import OwnFile

KINDS = ("word", "logo", "pattern")
_LATIN_SHARE = 0.5
_MIN_CONTRAST = 60.0  # of 255, luminance of detail against material: less is not a detail


@dataclass(frozen=True)
class Texture:
    """A flat surface with one detail."""

    image: Image.Image  # RGB
    box: tuple[int, int, int, int]  # x0 y0 x1 y1 of the detail, in pixels
    kind: str  # one of `KINDS`
    label: str  # the word, or the name of the logo or pattern
    style: TextureStyle
    artwork: OwnFile | None = None  # of the user's own: the one that the logo is


@dataclass(frozen=True)
class TextureStyle:
    """Everything about a texture except which detail it carries, so that a swap keeps the rest."""

    size: tuple[int, int]  # width and height in pixels
    material: Image.Image  # the surface without the detail, RGB
    ink: tuple[int, int, int]
    second_ink: tuple[int, int, int]
    font: Font | None  # None = Pillow's own
    font_share: float  # height of letters as a share of the surface
    kind: str  # one of `KINDS`
    script: str = LATIN  # of words and letters
    own: OwnFiles = NO_FILES  # what else can be drawn in its place


def draw_texture(
    rng: np.random.Generator, height: int, kind: str | None = None, own: OwnFiles = NO_FILES
) -> Texture:
    """Draw a random surface `height` pixels high carrying one detail of `kind` (random if None).

    Raises:
        ValueError: a file of the user's `own` cannot be read.
    """
    kind = kind or str(rng.choice(KINDS, p=(0.5, 0.3, 0.2)))
    aspect = rng.uniform(1.8, 3.6) if kind == "word" else rng.uniform(0.8, 1.4)
    size = (max(16, round(height * aspect)), height)
    material, base = _material(rng, size)
    ink, second_ink = _ink(rng, base), _ink(rng, base)
    script = _draw_script(rng, own)
    style = TextureStyle(
        size=size,
        material=material,
        ink=ink,
        second_ink=second_ink,
        font=_draw_font(rng, own, script),
        font_share=float(rng.uniform(0.45, 0.72)),
        kind=kind,
        script=script,
        own=own,
    )
    return _with_detail(rng, style)


def _draw_script(rng: np.random.Generator, own: OwnFiles) -> str:
    """A script that the fonts can write: Latin about as often as all others together."""
    if not own.fonts:
        return LATIN
    others = [s for s in own.scripts if s != LATIN]
    if not others or (LATIN in own.scripts and rng.random() < _LATIN_SHARE):
        return LATIN
    return others[int(rng.integers(len(others)))]


def _draw_font(rng: np.random.Generator, own: OwnFiles, script: str) -> Font | None:
    """A font that has every letter of the script, or None where no font files are there."""
    if own.fonts:
        able = own.fonts_of(script)
        return able[int(rng.integers(len(able)))]
    return Font(str(rng.choice(bundled_fonts()))) if bundled_fonts() else None


def alternative(rng: np.random.Generator, texture: Texture) -> Texture:
    """The same surface with another detail of the same kind, sometimes only partly different."""
    style = texture.style
    if texture.kind == "word" and rng.random() < 0.6:
        return _with_detail(rng, style, misspell(rng, texture.label, style.script))
    if rng.random() < 0.3 and style.font:
        style = replace(style, font=_draw_font(rng, style.own, style.script))
    if texture.artwork and len(style.own.artwork) > 1:
        return _with_artwork(rng, style, texture.artwork)
    return _with_detail(rng, style if not texture.artwork else replace(style, own=NO_FILES))


def _material(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    w, h = size
    base = rng.uniform(20, 235, 3) * rng.uniform(0.5, 1.0) + rng.uniform(0, 40)
    low = rng.normal(0, rng.uniform(2, 14), (4, 6, 3)).astype(np.float32)
    planes = (Image.fromarray(low[..., c]) for c in range(3))
    field = np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in planes], -1)
    pixels = base + field
    yy, xx = np.mgrid[0:h, 0:w]
    surface = rng.random()
    if surface < 0.25:
        angle, period = rng.uniform(0, math.pi), rng.uniform(6, h / 2)
        wave = np.sin((xx * math.cos(angle) + yy * math.sin(angle)) * 2 * math.pi / period)
        pixels = pixels + rng.uniform(4, 14) * wave[..., None]
    elif surface < 0.45:
        pixels = pixels + rng.normal(0, rng.uniform(2, 8), (h, w, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        edge = tuple(int(v) for v in _ink(rng, base))
        width = max(1, h // 24)
        ImageDraw.Draw(image).rectangle((0, 0, w - 1, h - 1), outline=edge, width=width)
    return image, base


def _luminance(rgb: np.ndarray) -> float:
    return float(np.dot(rgb, (0.299, 0.587, 0.114)))


def _ink(rng: np.random.Generator, base: np.ndarray) -> tuple[int, int, int]:
    for _ in range(20):
        color = rng.uniform(0, 255, 3)
        if abs(_luminance(color) - _luminance(base)) > _MIN_CONTRAST:
            return (int(color[0]), int(color[1]), int(color[2]))
    v = 250 if _luminance(base) < 128 else 8
    return (v, v, v)


def _with_detail(
    rng: np.random.Generator, style: TextureStyle, label: str | None = None
) -> Texture:
    image = style.material.copy()
    if style.kind == "word":
        label = label or random_word(rng, style.script)
        box = _draw_word(image, style, label)
    elif style.kind == "logo" and style.own.artwork:
        return _with_artwork(rng, style)
    elif style.kind == "logo":
        label = label or f"logo-{int(rng.integers(1 << 30))}"
        box = _draw_logo(image, style, np.random.default_rng(_stable_seed(label)))
    else:
        label = label or f"pattern-{int(rng.integers(1 << 30))}"
        box = _draw_pattern(image, style, np.random.default_rng(_stable_seed(label)))
    return Texture(image, box, style.kind, label, style)


def _with_artwork(
    rng: np.random.Generator, style: TextureStyle, instead_of: OwnFile | None = None
) -> Texture:
    """The surface with artwork of the user's own, other than `instead_of`."""
    choice = [f for f in style.own.artwork if f != instead_of]
    file = choice[int(rng.integers(len(choice)))]
    image = style.material.copy()
    box = _draw_artwork(image, style, file)
    # Icon themes hold one drawing in many sizes, under one name: they are one identity.
    return Texture(image, box, style.kind, f"artwork-{file.path.stem}", style, file)


def _stable_seed(label: str) -> int:
    return int.from_bytes(label.encode()[-8:], "little") % (1 << 32)


def _draw_word(image: Image.Image, style: TextureStyle, word: str) -> tuple[int, int, int, int]:
    w, h = image.size
    draw = ImageDraw.Draw(image)
    size = max(6, round(h * style.font_share))
    while size > 6:
        left, top, right, bottom = draw.textbbox((0, 0), word, font=load_font(style.font, size))
        if right - left <= 0.9 * w and bottom - top <= 0.9 * h:
            break
        size = max(6, int(size * 0.92))
    font = load_font(style.font, size)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
    x, y = (w - (right - left)) / 2 - left, (h - (bottom - top)) / 2 - top
    draw.text((x, y), word, fill=style.ink, font=font)
    # The box spans the width that a longer word could take, so that a swapped word stays inside.
    pad = h * 0.04
    return (
        max(0, int(0.04 * w)),
        max(0, int(y + top - pad)),
        min(w, int(0.96 * w)),
        min(h, int(y + bottom + pad)),
    )


def _draw_logo(
    image: Image.Image, style: TextureStyle, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    w, h = image.size
    draw = ImageDraw.Draw(image)
    cx, cy, r = w / 2, h / 2, 0.42 * min(w, h)
    box = (cx - r, cy - r, cx + r, cy + r)
    frame = rng.random()
    inner = r
    if frame < 0.35:
        draw.ellipse(box, outline=style.ink, width=max(2, int(r * rng.uniform(0.08, 0.2))))
        inner = 0.7 * r
    elif frame < 0.6:
        draw.ellipse(box, fill=style.second_ink)
        inner = 0.8 * r
    elif frame < 0.75:
        draw.rounded_rectangle(box, radius=r * 0.3, fill=style.second_ink)
        inner = 0.85 * r
    shape = rng.random()
    turn = rng.uniform(0, 2 * math.pi)
    if shape < 0.35:
        points, notch = int(rng.integers(3, 9)), rng.uniform(0.35, 0.7)
        star = [
            (
                cx + math.cos(turn + i * math.pi / points) * inner * (notch if i % 2 else 1),
                cy + math.sin(turn + i * math.pi / points) * inner * (notch if i % 2 else 1),
            )
            for i in range(2 * points)
        ]
        draw.polygon(star, fill=style.ink)
    elif shape < 0.6:
        text = "".join(rng.choice(list(letters(style.script)), int(rng.integers(1, 3))))
        font = load_font(style.font, max(6, int(inner * (1.5 if len(text) == 1 else 1.0))))
        draw.text((cx, cy), text, fill=style.ink, font=font, anchor="mm")
    elif shape < 0.8:
        for i in range(int(rng.integers(2, 5))):
            start = math.degrees(turn) + i * 97
            q = inner * (1 - 0.22 * i)
            draw.arc(
                (cx - q, cy - q, cx + q, cy + q),
                start,
                start + rng.uniform(120, 280),
                fill=style.ink,
                width=max(2, int(r * 0.12)),
            )
    else:
        for i in range(int(rng.integers(2, 5))):
            y = cy - inner * 0.6 + i * inner * 0.4
            half = inner * rng.uniform(0.3, 0.85)
            draw.rectangle((cx - half, y, cx + half, y + inner * 0.2), fill=style.ink)
    pad = 0.04 * r
    return int(cx - r - pad), int(cy - r - pad), int(cx + r + pad), int(cy + r + pad)


def _draw_artwork(
    image: Image.Image, style: TextureStyle, file: OwnFile
) -> tuple[int, int, int, int]:
    """The drawing in the middle, on a light or dark plate where the surface would hide it."""
    side = round(0.8 * min(image.size))
    drawing = load_artwork(file.path, (side, side))
    x, y = (image.width - drawing.width) // 2, (image.height - drawing.height) // 2
    pad = max(1, side // 24)
    box = (x - pad, y - pad, x + drawing.width + pad, y + drawing.height + pad)
    if _hidden(drawing, image.crop((x, y, x + drawing.width, y + drawing.height))):
        shade = 245 if _luminance(_mean_color(drawing)) < 128 else 24
        plate = (box[0], box[1], box[2] - 1, box[3] - 1)
        ImageDraw.Draw(image).rounded_rectangle(plate, 2 * pad, fill=(shade, shade, shade))
    image.paste(drawing, (x, y), drawing)
    return box


def _mean_color(drawing: Image.Image) -> np.ndarray:
    pixels = np.asarray(drawing, np.float32)
    share = pixels[..., 3:] / 255
    return (pixels[..., :3] * share).sum((0, 1)) / max(1.0, float(share.sum()))


def _hidden(drawing: Image.Image, surface: Image.Image) -> bool:
    """Whether a drawing hardly differs from the surface under it."""
    pixels, under = np.asarray(drawing, np.float32), np.asarray(surface, np.float32)
    share = pixels[..., 3] / 255
    apart = np.abs(pixels[..., :3] - under).mean(-1)
    return float((apart * share).sum()) < _MIN_CONTRAST * max(1.0, float(share.sum()))


def _draw_pattern(
    image: Image.Image, style: TextureStyle, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    w, h = image.size
    cells = int(rng.integers(4, 8))
    half = rng.random((cells, (cells + 1) // 2)) < 0.5
    grid = np.concatenate([half, half[:, : cells // 2][:, ::-1]], axis=1)
    second = rng.random(grid.shape) < 0.35
    side = int(0.84 * min(w, h)) // cells * cells
    alpha = Image.fromarray((grid * 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.NEAREST
    )
    colors = np.where(second[..., None], style.second_ink, style.ink).astype(np.uint8)
    tile = Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST)
    if rng.random() < 0.3:  # rounded cells: pixels read as beads
        alpha = alpha.filter(ImageFilter.GaussianBlur(side / cells / 5)).point(
            [0] * 129 + [255] * 127
        )
    x, y = (w - side) // 2, (h - side) // 2
    image.paste(tile, (x, y), alpha)
    pad = max(1, side // 40)
    return x - pad, y - pad, x + side + pad, y + side + pad
