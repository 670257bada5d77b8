"""The examples that ship with the package, and how a repair of one is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .image_io import load_picture
from .mask_io import load_mask

CASES = Path(__file__).parent.parent / "demo_cases"
_GAP, _TITLE = 8, 22


@dataclass(frozen=True)
class Case:
    """A triplet from the package: pictures 1 3 H W uint8, masks 1 1 H W."""

    name: str
    draft: Tensor
    reference: Tensor
    target: Tensor
    mask: Tensor
    reference_mask: Tensor


def load_case(folder: Path) -> Case:
    """Read one folder of `demo_cases`."""
    picture = {
        n: load_picture(folder / f"{n}.png").pixels for n in ("draft", "reference", "target")
    }
    return Case(
        folder.name, picture["draft"], picture["reference"], picture["target"],
        load_mask(folder / "mask.png"), load_mask(folder / "reference_mask.png"),
    )  # fmt: skip


def _tile(pixels: Tensor, title: str, height: int) -> Image.Image:
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    image = image.resize(
        (round(image.width * height / image.height), height), Image.Resampling.LANCZOS
    )
    tile = Image.new("RGB", (image.width, height + _TITLE), "white")
    tile.paste(image, (0, _TITLE))
    ImageDraw.Draw(tile).text((2, 3), title, fill="black", font=ImageFont.load_default(14))
    return tile


def comparison(case: Case, refined: Tensor) -> Image.Image:
    """Draft, reference and result side by side; below, the detail of draft and result enlarged."""
    ys, xs = (case.mask[0, 0] > 0).nonzero(as_tuple=True)
    h, w = case.mask.shape[-2:]
    my, mx = int((ys.max() - ys.min()) // 4) + 4, int((xs.max() - xs.min()) // 4) + 4
    y = slice(max(0, int(ys.min()) - my), min(h, int(ys.max()) + my))
    x = slice(max(0, int(xs.min()) - mx), min(w, int(xs.max()) + mx))
    rows = [
        [(case.draft, "draft"), (case.reference, "reference"), (refined, "refined")],
        [(p[..., y, x], f"{n}, detail") for p, n in
         ((case.draft, "draft"), (refined, "refined"), (case.target, "truth"))],
    ]  # fmt: skip
    tiles = [[_tile(p, t, 300) for p, t in row] for row in rows]
    # Details are often wide: shrink a row to the width of the first.
    width = sum(t.width for t in tiles[0]) + 2 * _GAP
    bands = []
    for row in tiles:
        band = Image.new("RGB", (sum(t.width for t in row) + 2 * _GAP, row[0].height), "white")
        at = 0
        for tile in row:
            band.paste(tile, (at, 0))
            at += tile.width + _GAP
        bands.append(
            band.resize((width, round(band.height * width / band.width)), Image.Resampling.LANCZOS)
        )
    sheet = Image.new("RGB", (width, sum(b.height for b in bands) + _GAP), "white")
    at = 0
    for band in bands:
        sheet.paste(band, (0, at))
        at += band.height + _GAP
    return sheet
