"""Wrong details on the right surface, as a generator draws them in place of a logo or a word.

Each function takes a texture and returns its picture with a wrong detail. Rendered like the true
one, the error has the scene's own light, perspective and sharpness, and no seam.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from .render import mesh_of
from .textures import Texture, alternative

Corruption = Callable[[np.random.Generator, Texture, float], Image.Image]


def swap(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """Another detail of the same kind, or the word misspelt."""
    return alternative(rng, texture).image


def scramble(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """Vertical strips of the detail, about a letter wide, flipped, mirrored or exchanged."""
    image = texture.image.copy()
    x0, y0, x1, y1 = texture.box
    count = int(rng.integers(4, 9))
    edges = np.linspace(x0, x1, count + 1).round().astype(int)
    width = int(np.diff(edges).min())
    chosen = rng.random(count) < 0.35 + 0.65 * strength
    chosen[int(rng.integers(count))] = True
    for i in np.flatnonzero(chosen):
        source = int(edges[i if rng.random() < 0.6 else int(rng.integers(count))])
        strip = texture.image.crop((source, y0, source + width, y1))
        turn = rng.random()
        if turn < 0.4 or source == edges[i]:
            strip = strip.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        elif turn < 0.8:
            strip = strip.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.paste(strip, (int(edges[i]), y0))
    return image


def melt(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """Strokes that wave, swell and run together; the material stays."""
    x0, y0, x1, y1 = texture.box
    w, h = texture.image.size
    reach = (0.05 + 0.11 * strength) * (y1 - y0)
    cells = (max(2, round(6 * (x1 - x0) / (y1 - y0))), 5)
    nodes = rng.normal(0, reach, (cells[1] + 1, cells[0] + 1, 2))
    xs = np.linspace(x0, x1, cells[0] + 1).round().astype(int)
    ys = np.linspace(y0, y1, cells[1] + 1).round().astype(int)
    nodes[0], nodes[-1], nodes[:, 0], nodes[:, -1] = 0, 0, 0, 0
    at = np.stack(np.meshgrid(xs, ys), -1) + nodes
    at = np.clip(at, 0, (w, h))
    mesh = mesh_of(at, xs, ys)
    bent = texture.image.transform((w, h), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    out = texture.image.copy()
    out.paste(bent.crop(texture.box), (x0, y0))
    return out


def recolor(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """The right shapes in the wrong colours."""
    kept = np.asarray(texture.image, np.float32)
    ink = np.abs(kept - np.asarray(texture.style.material, np.float32)).max(-1, keepdims=True) > 12
    wrong = kept[..., rng.permutation(3)] * rng.uniform(0.6, 1.4, 3)
    wrong = (255 - wrong) if rng.random() < 0.5 else wrong
    share = 0.45 + 0.55 * strength
    mixed = np.where(ink, (1 - share) * kept + share * wrong, kept)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def partial(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """Another detail on one side: the first letters are right, the rest are not."""
    x0, _, x1, _ = texture.box
    w, h = texture.image.size
    edge = rng.uniform(0.3, 0.75) * (x1 - x0) + x0
    ramp = np.clip((np.arange(w) - edge) / max(2.0, 0.06 * (x1 - x0)) + 0.5, 0, 1)
    ramp = ramp if rng.random() < 0.5 else 1 - ramp
    share = Image.fromarray((np.broadcast_to(ramp, (h, w)) * 255).astype(np.uint8))
    out = texture.image.copy()
    out.paste(alternative(rng, texture).image, (0, 0), share)
    return out


def smear(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """Strokes thickened until they close, or thinned until they vanish."""
    side = 2 * max(1, round((0.02 + 0.035 * strength) * (texture.box[3] - texture.box[1]))) + 1
    how = ndimage.minimum_filter if rng.random() < 0.5 else ndimage.maximum_filter
    run_out = how(np.asarray(texture.image.crop(texture.box)), (side, side, 1))
    out = texture.image.copy()
    out.paste(Image.fromarray(run_out), texture.box[:2])
    return out


def blank(rng: np.random.Generator, texture: Texture, strength: float) -> Image.Image:
    """The detail missing except for a faint trace."""
    return Image.blend(texture.image, texture.style.material, 0.75 + 0.25 * strength)


CORRUPTIONS: dict[str, Corruption] = {
    f.__name__: f for f in (swap, scramble, melt, recolor, partial, smear, blank)
}
