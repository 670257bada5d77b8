"""Study `demo-cases`: makes the demo's cases again.

`python -m tests.benchmarks demo-cases DIR` writes `DIR/<case>/{draft,reference,target}.png` and the
two masks. The logo and the word are those of a real product in two photographs: their drafts are
made of the targets in `demo_cases`. The pattern is drawn into photographs of scikit-image. See
`demo_cases/CREDITS.md`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_erosion

from refiner_core.data.degrade import degrade_box
from refiner_core.data.render import Light
from refiner_core.images.demo_cases import CASES
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
class Melted:
    """How a photograph's detail is broken."""

    name: str  # of its folder in `demo_cases`
    strength: float  # of the degradation "warp"
    seed: int


MELTED = (Melted("logo", 0.35, 3), Melted("word", 0.45, 2))
_KEPT = ("target", "reference", "mask", "reference_mask")
_RIM = 3  # px inside the box that stay as they are


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


def pattern() -> DemoCase:
    """The case that is drawn."""
    right = ("#..o..#", ".#.o.#.", "..###..", "oo#.#oo", "..###..", ".#.o.#.", "#..o..#")
    wrong = ("..#.#..", "#.ooo.#", ".#...#.", "o..#..o", ".##.##.", "o.#.#.o", "#.o.o.#")
    scene = Placement(
        "skimage/data/coffee.png",
        (0, 0, 600, 400),
        ((28, 250), (146, 268), (128, 380), (6, 352)),
        _light((0.98, 0.84, 0.66), 0.2, -0.25),
    )
    reference = Placement(
        "skimage/data/grass.png",
        (100, 100, 420, 400),
        ((62, 56), (250, 48), (258, 240), (58, 246)),
        _light((0.9, 1.0, 1.02), -0.15, 0.2),
    )
    return DemoCase("pattern", _tile(right), _tile(wrong), scene, reference, 0.5)


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


def write_melted(folder: Path, photograph: Melted) -> None:
    """A case of two photographs: the draft is the target, melted inside the box."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = {n: Image.open(CASES / photograph.name / f"{n}.png") for n in _KEPT}
    target, mask = np.asarray(shipped["target"].convert("RGB")), np.asarray(shipped["mask"])
    inside = binary_erosion(mask > 0, iterations=_RIM).astype(np.uint8)
    rng = np.random.default_rng(photograph.seed)
    draft = degrade_box(target, inside, "warp", rng, photograph.strength)
    pictures = {**shipped, "draft": Image.fromarray(draft)}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)


def add_parser(names: Any) -> None:
    """Add the study's options."""
    p = names.add_parser("demo-cases", help="render the demo's cases again")
    p.add_argument("out", metavar="DIR", help="gets one folder per case")
    p.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Write every case."""
    out = Path(chosen.out)
    for photograph in MELTED:
        write_melted(out / photograph.name, photograph)
    case = pattern()
    write_case(case, out / case.name)
