"""Draws what nano's tiles are cut from: a region of a photograph with the reference's detail laid
over it by the code that also runs at inference, beside the truth.

The alignment is not run, because it takes seconds. What it leaves over is drawn instead: the
reference is rendered in the draft's pose, off by a rigid and an elastic motion of a few pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..data.degrade import DEGRADATIONS, degrade_box
from ..data.textures import Texture, alternative, draw_texture
from ..images.filters import blur
from ..images.geometry import Box, Extent
from ..images.masks import Region, bounds
from ..matching.detail_transfer import DetailTransfer, transfer_detail
from ..matching.surface_map import box_to_box
from ..nano.tile_inputs import with_draft_tone

_CANVAS = 288  # px
_SIDES = (44, 190)  # px, of the region
_LEAST_AGREEMENT = 20.0  # dB, of a scene that is kept
_LEAST_AREA = 300  # px
_KEPT_DETAIL = 3.0  # px: finer differences between truth and transfer are not asked of the model
_FAULTS = ("other", "half", "blank", "photograph", "right")
_FAULT_SHARES = (0.20, 0.08, 0.08, 0.04, 0.10)  # the rest is broken by a degradation


@dataclass(frozen=True)
class TileScene:
    """A region and its surroundings, float 1 C h w of one size."""

    target: Tensor
    """The transferred detail in the truth's light, the truth around it."""
    draft: Tensor
    """As the model sees it."""
    reference: Tensor
    """The transferred detail, as the model sees it."""
    mask: Tensor
    """Where the transferred detail is shown inside the region, 0 or 1."""

    def agreement(self) -> float:
        """PSNR of the draft or the reference, whichever is nearer to the target, in dB."""
        errors = [
            float(((x - self.target).square() * self.mask).sum())
            for x in (self.draft, self.reference)
        ]
        return -10 * math.log10(min(errors) / float(3 * self.mask.sum()) + 1e-7)

    def stacked(self) -> np.ndarray:
        """uint8 h w 10, to be stored."""
        planes = torch.cat([self.target, self.draft, self.reference, self.mask], 1)[0]
        return (planes * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class _Print:
    """What is printed on a surface: its colours, and how much they cover, 1 C h w."""

    colors: Tensor
    cover: Tensor

    def over(self, surface: Tensor) -> Tensor:
        return surface + self.cover * (self.colors - surface)

    def moved(self, grid: Tensor) -> _Print:
        return _Print(_resample(self.colors, grid), _resample(self.cover, grid).clamp(0, 1))


def draw_tile_scene(rng: np.random.Generator, photographs: Sequence[Image.Image]) -> TileScene:
    """A scene: a print on a photograph, broken in the draft, and its transfer from a reference.

    One of which neither the transfer nor the draft's tone says how it is to look is drawn again: a
    squared error would be that of such scenes alone.

    Args:
        photographs: RGB, what surfaces and some prints are cut from.
    """
    while True:
        scene = _draw_any_scene(rng, photographs)
        if scene.mask.sum() >= _LEAST_AREA and scene.agreement() >= _LEAST_AGREEMENT:
            return scene


def _draw_any_scene(rng: np.random.Generator, photographs: Sequence[Image.Image]) -> TileScene:
    surface = _draw_surface(rng, photographs)
    box = _draw_box(rng)
    right, wrong = _draw_prints(rng, box, photographs)
    light = _draw_light(rng)
    camera = _Camera.draw(rng)
    mask = _draw_mask(rng, box, right)
    truth = camera.take(light(right.over(surface)))
    prints = (right, wrong, _photograph_print(rng, box, photographs))
    draft = _break(rng, truth, mask, lambda p: camera.take(light(p.over(surface))), prints)
    off = _draw_motion(rng)
    printed = right.moved(off)
    reference = _draw_reference(rng, surface, printed, off, photographs)
    region = _region(mask)
    transfer = _transfer(rng, draft, region, reference)
    lit = camera.take(light(printed.over(surface)))
    return _scene(transfer, draft, region, (truth, lit))


def _scene(
    transfer: DetailTransfer, draft: Tensor, region: Region, truths: tuple[Tensor, Tensor]
) -> TileScene:
    """What the model sees of a transfer, and what it is to make of it.

    Args:
        truths: the truth, and the truth with the print where the reference has it.
    """
    w = transfer.window
    draft, truth, lit = (x[..., w.y0 : w.y1, w.x0 : w.x1] for x in (draft, *truths))
    mask = torch.zeros_like(transfer.shown)
    b = region.box.moved(-w.x0, -w.y0)
    mask[..., b.y0 : b.y1, b.x0 : b.x1] = region.mask
    picture = transfer.picture
    shown = with_draft_tone(draft, picture, mask)
    wanted = picture + blur(lit - picture, _KEPT_DETAIL)
    target = truth + mask * (wanted - truth)
    used = mask * (transfer.shown > 0.3)
    return TileScene(target.clamp(0, 1), shown, picture, used)


def _transfer(
    rng: np.random.Generator, draft: Tensor, region: Region, reference: Tensor
) -> DetailTransfer:
    """The reference, which lies in the draft's pose already, laid over the region; in half of the
    scenes its light is then misjudged.
    """
    surface = box_to_box(region.box, region.box, Extent(_CANVAS, _CANVAS))
    transfer = transfer_detail(draft, region, reference, surface)
    if rng.random() < 0.5:
        return transfer
    w = transfer.window
    h, width = w.extent.height, w.extent.width
    error = _smooth_field(rng, 3, (h, width), cells=int(rng.integers(1, 4)))
    strength = float(rng.uniform(0.02, 0.2))
    wrong = ((transfer.picture + 0.06) * (strength * error).exp() - 0.06).clamp(0, 1)
    picture = transfer.picture + transfer.shown * (wrong - transfer.picture)
    return replace(transfer, picture=picture)


def _tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Pixels in values of 255, 1 3 h w in [0, 1]."""
    pixels = np.asarray(image, np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


def _pixels(x: Tensor) -> np.ndarray:
    """1 3 h w to uint8 h w 3."""
    return (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(0, 1, shape)).float()


def _smooth_field(
    rng: np.random.Generator, channels: int, size: tuple[int, int], cells: int
) -> Tensor:
    """A random field 1 C h w of unit variance at its nodes."""
    nodes = _normal(rng, 1, channels, cells + 1, cells + 1)
    return F.interpolate(nodes, size, mode="bicubic", align_corners=True)


def _cut_photograph(
    rng: np.random.Generator, photographs: Sequence[Image.Image], size: tuple[int, int]
) -> Tensor:
    """A random part of a random photograph, resized to `size` (width, height), perhaps mirrored."""
    photo = photographs[int(rng.integers(len(photographs)))]
    w, h = size
    scale = min(float(rng.uniform(0.6, 2.5)), photo.width / w, photo.height / h)
    cw, ch = max(4, int(w * scale)), max(4, int(h * scale))
    x, y = int(rng.integers(photo.width - cw + 1)), int(rng.integers(photo.height - ch + 1))
    part = photo.resize(size, Image.Resampling.BICUBIC, (x, y, x + cw, y + ch))
    return _tensor(part).flip(-1) if rng.random() < 0.5 else _tensor(part)


def _draw_surface(rng: np.random.Generator, photographs: Sequence[Image.Image]) -> Tensor:
    """A photograph, often with less contrast or of another colour, sometimes a plain colour."""
    photo = _cut_photograph(rng, photographs, (_CANVAS, _CANVAS))
    base = torch.from_numpy(rng.uniform(0.05, 0.95, (1, 3, 1, 1))).float()
    kind = rng.random()
    if kind < 0.35:
        return photo
    mean = photo.mean((2, 3), keepdim=True)
    kept = float(rng.uniform(0.05, 0.7))
    return ((base if kind < 0.8 else mean) + kept * (photo - mean)).clamp(0, 1)


def _draw_box(rng: np.random.Generator) -> Box:
    """Where the print lies."""
    area = float(rng.uniform(*_SIDES)) ** 2
    aspect = float(np.exp(rng.normal(0, 0.45)))
    w, h = (int(np.clip((area * a) ** 0.5, 32, 210)) for a in (aspect, 1 / aspect))
    x, y = (int(rng.integers(24, _CANVAS - 24 - n + 1)) for n in (w, h))
    return Box(x, y, x + w, y + h)


def _draw_prints(
    rng: np.random.Generator, box: Box, photographs: Sequence[Image.Image]
) -> tuple[_Print, _Print]:
    """The right print and a wrong one, on one label or none."""
    label = _draw_label(rng, box) if rng.random() < 0.5 else None
    if rng.random() < 0.2:
        pair = [_photograph_print(rng, box, photographs) for _ in range(2)]
    else:
        pair = _texture_prints(rng, box)
    right, wrong = (p if label is None else _on_label(p, label) for p in pair)
    return right, wrong


def _blank_print() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 3, _CANVAS, _CANVAS), torch.zeros(1, 1, _CANVAS, _CANVAS)


def _draw_label(rng: np.random.Generator, box: Box) -> _Print:
    """A sheet of one colour, as large as the print or larger."""
    colors, _ = _blank_print()
    colors += torch.from_numpy(rng.uniform(0.05, 0.95, (1, 3, 1, 1))).float()
    grow = int(rng.integers(-2, 40))
    image = Image.new("L", (2 * _CANVAS, 2 * _CANVAS))
    corners = [2 * v for v in (box.x0 - grow, box.y0 - grow, box.x1 + grow, box.y1 + grow)]
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.7:
        draw.rounded_rectangle(corners, int(rng.integers(0, 40)), fill=255)
    else:
        draw.ellipse(corners, fill=255)
    cover = torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None]
    return _Print(colors, F.avg_pool2d(cover, 2))


def _on_label(top: _Print, label: _Print) -> _Print:
    cover = top.cover + label.cover * (1 - top.cover)
    return _Print(top.over(label.colors), cover)


def _photograph_print(
    rng: np.random.Generator, box: Box, photographs: Sequence[Image.Image]
) -> _Print:
    colors, cover = _blank_print()
    rows, columns = slice(box.y0, box.y1), slice(box.x0, box.x1)
    colors[..., rows, columns] = _cut_photograph(rng, photographs, box.extent)
    cover[..., rows, columns] = 1
    return _Print(colors, cover)


def _texture_prints(rng: np.random.Generator, box: Box) -> list[_Print]:
    """One to four words, logos or patterns below one another, and others in their places."""
    lines = int(rng.integers(1, 5)) if box.extent.height > 60 else 1
    edges = np.linspace(box.y0, box.y1, lines + 1).round().astype(int)
    pairs = [_blank_print(), _blank_print()]
    strength = float(rng.uniform(0.7, 1.0))
    for top, bottom in zip(edges[:-1], edges[1:], strict=True):
        texture = draw_texture(rng, max(24, int(bottom - top)), "word" if lines > 1 else None)
        for pair, drawn in zip(pairs, (texture, alternative(rng, texture)), strict=True):
            line = Box(box.x0, int(top), box.x1, int(bottom))
            _add_texture(pair, drawn, line, strength)
    return [_Print(*pair) for pair in pairs]


def _add_texture(pair: tuple[Tensor, Tensor], drawn: Texture, line: Box, strength: float) -> None:
    """Put the ink of a texture where it fits into the line's box."""
    ink = np.asarray(drawn.image, np.float32)
    apart = np.abs(ink - np.asarray(drawn.style.material, np.float32)).max(-1)
    cover = np.clip(apart / 40, 0, 1) * strength
    planes = np.concatenate([ink / 255, cover[..., None]], -1)
    x0, y0, x1, y1 = drawn.box
    part = torch.from_numpy(planes[y0:y1, x0:x1]).permute(2, 0, 1)[None]
    w, h = line.extent
    fit = min(w / (x1 - x0), h / (y1 - y0))
    size = [max(2, int((y1 - y0) * fit)), max(2, int((x1 - x0) * fit))]
    part = F.interpolate(part, size, mode="bicubic", antialias=True).clamp(0, 1)
    y, x = line.y0 + (h - size[0]) // 2, line.x0 + (w - size[1]) // 2
    for whole, planes_of in zip(pair, (part[:, :3], part[:, 3:]), strict=True):
        whole[..., y : y + size[0], x : x + size[1]] = planes_of


@dataclass(frozen=True)
class _Light:
    """Factor 1 3 h w and what is added, 1 1 h w."""

    gain: Tensor
    added: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.gain + self.added).clamp(0, 1)


def _draw_light(rng: np.random.Generator) -> _Light:
    """Brightness, tint, a gradient, soft shading, and sometimes a highlight."""
    size = (_CANVAS, _CANVAS)
    tint = _normal(rng, 1, 3, 1, 1) * 0.08 + float(rng.normal(-0.1, 0.25))
    slope = _smooth_field(rng, 1, size, cells=1) * float(rng.uniform(0, 0.4))
    shade = _smooth_field(rng, 1, size, cells=int(rng.integers(2, 7))) * float(rng.uniform(0, 0.2))
    added = torch.full((1, 1, *size), float(rng.uniform(0, 0.06)))
    if rng.random() < 0.3:
        glare = _smooth_field(rng, 1, size, cells=int(rng.integers(2, 5))).clamp_min(0)
        added = added + glare.square() * float(rng.uniform(0.02, 0.15))
    return _Light((tint + slope + shade).exp(), added)


@dataclass(frozen=True)
class _Camera:
    """Sharpness, grain and compression of a picture."""

    zoom: float
    defocus: float
    sharpening: float
    grain: float
    grain_size: float
    quality: int | None
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator, zoom: float = 1.0) -> _Camera:
        return cls(
            zoom,
            float(rng.uniform(0, 1.3)),
            float(rng.uniform(0.2, 1.0)) if rng.random() < 0.25 else 0.0,
            float(rng.uniform(0, 0.02)),
            float(rng.uniform(0, 0.9)),
            int(rng.integers(55, 96)) if rng.random() < 0.5 else None,
            int(rng.integers(1 << 31)),
        )

    def take(self, x: Tensor) -> Tensor:
        """The picture 1 3 h w as this camera shows it."""
        size = x.shape[-2:]
        if self.zoom < 1:
            small = [max(8, round(n * self.zoom)) for n in size]
            x = F.interpolate(x, small, mode="area")
        x = blur(x, self.defocus * min(1.0, self.zoom))
        rng = np.random.default_rng(self.seed)
        grain = blur(_normal(rng, 1, 3, *x.shape[-2:]), self.grain_size)
        x = x + self.sharpening * (x - blur(x, 1.0)) + self.grain * grain
        if self.quality is not None:
            stream = io.BytesIO()
            Image.fromarray(_pixels(x)).save(stream, "JPEG", quality=self.quality)
            x = _tensor(Image.open(stream).convert("RGB"))
        if self.zoom < 1:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False)
        return x.clamp(0, 1)


def _draw_mask(rng: np.random.Generator, box: Box, print_: _Print) -> Tensor:
    """What somebody draws around the print: a box, an ellipse or its outline, 1 1 h w."""
    room = (3, 3, _CANVAS - 3, _CANVAS - 3)
    sides = [int(rng.integers(-3, 26)) for _ in range(4)]
    grown = [box.x0 - sides[0], box.y0 - sides[1], box.x1 + sides[2], box.y1 + sides[3]]
    x0, y0 = max(room[0], grown[0]), max(room[1], grown[1])
    x1, y1 = min(room[2], grown[2]), min(room[3], grown[3])
    image = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    kind = rng.random()
    if kind < 0.72:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
    elif kind < 0.86:
        draw.ellipse((x0, y0, x1 - 1, y1 - 1), fill=255)
    else:
        reach = 2 * int(rng.integers(3, 9)) + 1
        outline = F.max_pool2d((print_.cover > 0.2).float(), reach, 1, reach // 2)
        outline[..., :3, :], outline[..., -3:, :] = 0, 0
        outline[..., :3], outline[..., -3:] = 0, 0
        return outline
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None]


def _region(mask: Tensor) -> Region:
    box = bounds(mask)
    assert box is not None, "every mask marks something"
    return Region(box, mask[..., box.y0 : box.y1, box.x0 : box.x1].contiguous())


def _break(
    rng: np.random.Generator,
    truth: Tensor,
    mask: Tensor,
    render: Callable[[_Print], Tensor],
    prints: tuple[_Print, _Print, _Print],
) -> Tensor:
    """The draft: the truth with something else inside the mask.

    Args:
        render: a print on the truth's surface, as its camera shows it.
        prints: the right print, a wrong one, and a photograph.
    """
    right, wrong, photograph = prints
    names = [*_FAULTS, "degraded"]
    name = str(rng.choice(names, p=[*_FAULT_SHARES, 1 - sum(_FAULT_SHARES)]))
    if name == "degraded":
        kind, strength = str(rng.choice(list(DEGRADATIONS))), float(rng.uniform(0, 1))
        shape = (mask[0, 0] > 0).numpy().astype(np.uint8) * 255
        inside = _tensor(degrade_box(_pixels(truth), shape, kind, rng, strength))
    elif name == "half":
        edge = _smooth_field(rng, 1, (_CANVAS, _CANVAS), cells=2)
        share = (edge * 8).sigmoid()
        inside = truth + share * (render(wrong) - truth)
    elif name == "blank":
        inside = render(_Print(right.colors, right.cover * 0))
    else:
        other = {"other": wrong, "photograph": photograph, "right": right}[name]
        inside = truth if name == "right" else render(other)
    soft = blur(mask, float(rng.uniform(0.5, 2.5))) * mask if rng.random() < 0.5 else mask
    return _tensor(_pixels(truth + soft * (inside - truth)))


def _grid(motion: Tensor) -> Tensor:
    """Places to read from, for `grid_sample`, of a motion 1 2 h w in px."""
    h, w = motion.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    places = torch.stack([(x + motion[0, 0]) / w, (y + motion[0, 1]) / h], -1)
    return (2 * places - 1)[None]


def _resample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, "bicubic", "border", align_corners=False)


def _draw_motion(rng: np.random.Generator) -> Tensor:
    """What alignment leaves over: none, or a shift, a bend and an elastic motion, up to 3 px."""
    size = (_CANVAS, _CANVAS)
    if rng.random() < 0.15:
        return _grid(torch.zeros(1, 2, *size))
    bend = _smooth_field(rng, 2, size, cells=2)
    elastic = _smooth_field(rng, 2, size, cells=int(rng.integers(4, 10)))
    motion = _normal(rng, 1, 2, 1, 1) + bend + 0.5 * elastic
    length = motion.square().sum(1).sqrt().mean()
    return _grid(motion * (float(rng.uniform(0.1, 3.0)) / length))


def _draw_reference(
    rng: np.random.Generator,
    surface: Tensor,
    printed: _Print,
    off: Tensor,
    photographs: Sequence[Image.Image],
) -> Tensor:
    """The moved print on the same surface or another one, in its own light, by another camera."""
    own = rng.random() < 0.35
    below = _resample(surface, off) if own else _draw_surface(rng, photographs)
    zoom = float(rng.uniform(0.35, 1.0)) if rng.random() < 0.5 else 1.0
    lit = _draw_light(rng)(printed.over(below))
    if rng.random() < 0.5:
        lit = lit.clamp_min(1e-4) ** float(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.3:
        grey = lit.mean(1, keepdim=True)
        lit = grey + float(rng.uniform(0.4, 1.4)) * (lit - grey)
    return _Camera.draw(rng, zoom).take(lit)
