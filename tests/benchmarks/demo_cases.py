"""Study `demo-cases`: the demo's word, logo and pattern, rendered into real photographs.

`python -m tests.benchmarks demo-cases DIR` writes `DIR/<case>/{draft,reference,target}.png` and the
two masks. The photographs come with scikit-image and scikit-learn; see `demo_cases/CREDITS.md`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from refiner_core.data.fonts import bundled_fonts
from refiner_core.data.render import Light
from refiner_core.matching import homography as hom

Quad = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Placement:
    """Where a surface lies in a photograph: `photo` in its package, `crop` box of it (x0 y0 x1 y1),
    `quad` the surface's corners in the crop, clockwise from top left, and its light.
    """

    photo: str
    crop: tuple[int, int, int, int]
    quad: Quad
    light: Light


@dataclass(frozen=True)
class DemoCase:
    """The right and the wrong surface (flat pictures of one size) and where they lie."""

    name: str
    right: Image.Image
    wrong: Image.Image
    scene: Placement
    reference: Placement
    soften: float


def _photo(placement: Placement) -> Image.Image:
    package, rest = placement.photo.split("/", 1)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install -e '.[train]'")
    path = Path(spec.submodule_search_locations[0]) / rest
    # Through an array: an embedded profile must not travel into the cases.
    return Image.fromarray(np.asarray(Image.open(path).convert("RGB"))).crop(placement.crop)


def _render(
    surface: Image.Image, placement: Placement, soften: float
) -> tuple[Image.Image, Image.Image]:
    """The photograph with the surface in it, and the surface's outline as a mask."""
    photo = _photo(placement)
    lit = placement.light.apply(np.asarray(surface, np.float32))
    layer = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    layer.putalpha(255)
    quad = np.array(placement.quad, np.float64)
    pose = np.diag([3, 3, 1.0]) @ hom.from_points(hom.corners((0, 0, *surface.size)), quad)
    big = hom.warp(layer, pose, (photo.width * 3, photo.height * 3))
    small = big.resize(photo.size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(soften))
    photo.paste(small.convert("RGB"), (0, 0), small.getchannel("A"))
    center = quad.mean(0)
    outline = Image.new("L", photo.size)
    grown = [tuple(p) for p in center + (quad - center) * 1.04]
    ImageDraw.Draw(outline).polygon(grown, fill=255)
    return photo, outline


def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for path in bundled_fonts():
        if Path(path).stem == name:
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def _sign(text: str) -> Image.Image:
    image = Image.new("RGB", (480, 150), (236, 226, 204))
    draw = ImageDraw.Draw(image)
    draw.rectangle((6, 6, 473, 143), outline=(110, 44, 30), width=7)
    draw.text(
        (240, 75), text, fill=(110, 44, 30), font=_font("SourceSerifPro-Bold", 92), anchor="mm"
    )
    return image


def _badge(points: int, turn: float, letter: str) -> Image.Image:
    image = Image.new("RGB", (320, 320), (24, 44, 96))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 300, 300), fill=(240, 240, 236))
    draw.ellipse((38, 38, 282, 282), fill=(200, 36, 44))
    angles = turn + np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, 62, 116)
    star = np.c_[160 + np.sin(angles) * radius, 160 - np.cos(angles) * radius]
    draw.polygon([tuple(p) for p in star], fill=(250, 208, 60))
    draw.text(
        (160, 160), letter, fill=(24, 44, 96), font=_font("SourceSansPro-Black", 84), anchor="mm"
    )
    return image


def _tile(rows: tuple[str, ...]) -> Image.Image:
    colors = {".": (228, 216, 190), "#": (30, 84, 92), "o": (196, 98, 40)}
    n = len(rows)
    image = Image.new("RGB", (n * 40 + 40, n * 40 + 40), (60, 40, 28))
    draw = ImageDraw.Draw(image)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            box = (20 + x * 40, 20 + y * 40, 20 + x * 40 + 39, 20 + y * 40 + 39)
            draw.rectangle(box, fill=colors[cell])
    return image


def _light(gain: tuple[float, float, float], gx: float, gy: float, offset: float = 4) -> Light:
    return Light(np.array(gain), (gx, gy), offset)


def cases() -> list[DemoCase]:
    """The three cases."""
    right = ("#..o..#", ".#.o.#.", "..###..", "oo#.#oo", "..###..", ".#.o.#.", "#..o..#")
    wrong = ("..#.#..", "#.ooo.#", ".#...#.", "o..#..o", ".##.##.", "o.#.#.o", "#.o.o.#")
    return [
        DemoCase(
            "logo", _badge(5, 0.0, "R"), _badge(7, 0.3, "K"),
            Placement("skimage/data/rocket.jpg", (0, 0, 640, 427),
                      ((402, 148), (520, 162), (512, 276), (398, 268)),
                      _light((0.62, 0.66, 0.86), -0.3, 0.2)),
            Placement("skimage/data/brick.png", (60, 80, 380, 400),
                      ((72, 62), (256, 70), (250, 252), (64, 246)),
                      _light((1.02, 0.98, 0.9), 0.25, -0.1)),
            0.5,
        ),
        DemoCase(
            "pattern", _tile(right), _tile(wrong),
            Placement("skimage/data/coffee.png", (0, 0, 600, 400),
                      ((28, 250), (146, 268), (128, 380), (6, 352)),
                      _light((0.98, 0.84, 0.66), 0.2, -0.25)),
            Placement("skimage/data/grass.png", (100, 100, 420, 400),
                      ((62, 56), (250, 48), (258, 240), (58, 246)),
                      _light((0.9, 1.0, 1.02), -0.15, 0.2)),
            0.5,
        ),
        DemoCase(
            "word", _sign("TEMPLE"), _sign("TEPMLE"),
            Placement("sklearn/datasets/images/china.jpg", (0, 0, 640, 427),
                      ((430, 318), (590, 296), (594, 346), (434, 370)),
                      _light((0.78, 0.76, 0.74), -0.2, -0.2)),
            Placement("skimage/data/gravel.png", (40, 120, 400, 320),
                      ((50, 62), (306, 54), (310, 136), (54, 142)),
                      _light((1.02, 1.0, 0.94), 0.2, 0.15)),
            0.5,
        ),
    ]  # fmt: skip


def write_case(case: DemoCase, folder: Path) -> None:
    """Render one case; outside the mask draft and target are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    target, mask = _render(case.right, case.scene, case.soften)
    swapped, _ = _render(case.wrong, case.scene, case.soften + 0.6)
    draft = target.copy()
    draft.paste(swapped, (0, 0), mask)
    reference, reference_mask = _render(case.right, case.reference, 0.4)
    pictures = {
        "draft": draft, "target": target, "mask": mask,
        "reference": reference, "reference_mask": reference_mask,
    }  # fmt: skip
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)


def add_parser(names: Any) -> None:
    """Add the study's options."""
    p = names.add_parser("demo-cases", help="render the demo's cases again")
    p.add_argument("out", metavar="DIR", help="gets one folder per case")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Write every case."""
    for case in cases():
        write_case(case, Path(chosen.out) / case.name)
