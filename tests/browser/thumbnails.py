"""The example workflows' pictures in the Templates dialog: each detail enlarged, twice."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw, ImageFont

from refiner_core.images.demo_cases import CASES

SIZE = (480, 320)
_GAP = 4
_SURROUNDINGS = 1.5  # of what is shown, over the detail
_WIDE = 1.3  # width over height
Box = tuple[int, int, int, int]
Detail = tuple[Image.Image, Box]


def changed_box(before: Image.Image, after: Image.Image) -> Box:
    """Where two pictures of one size differ; all of them if they do not."""
    apart = ImageChops.difference(before.convert("RGB"), after.convert("RGB")).convert("L")
    return apart.point(lambda v: 255 * (v > 8)).getbbox() or (0, 0, *before.size)


def part(picture: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The surroundings of a box at exactly `size`, never stretched, inside the picture."""
    scale = _SURROUNDINGS * max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    scale = min(scale, picture.width / size[0], picture.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left = min(max((box[0] + box[2] - width) / 2, 0), picture.width - width)
    top = min(max((box[1] + box[3] - height) / 2, 0), picture.height - height)
    return picture.convert("RGB").resize(
        size, Image.Resampling.LANCZOS, (left, top, left + width, top + height)
    )


def _label(sheet: Image.Image, at: tuple[int, int], text: str) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    x, y = at[0] + 6, at[1] + 6
    left, top, right, bottom = draw.textbbox((x + 6, y + 3), text, font=font)
    draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=(24, 24, 24))
    draw.text((x + 6, y + 3), text, font=font, fill="white")


def of_details(details: Sequence[tuple[Detail, Detail]], names: tuple[str, str]) -> Image.Image:
    """Each detail's two pictures, as `names` calls them: beside each other, a single wide one above
    each other.
    """
    _, box = details[0][0]
    stacked = len(details) == 1 and (box[2] - box[0]) > _WIDE * (box[3] - box[1])
    columns, rows = (1, 2) if stacked else (2, len(details))
    sheet = Image.new("RGB", SIZE, "white")
    width, height = ((SIZE[i] - _GAP * (n - 1)) // n for i, n in enumerate((columns, rows)))
    for k, (picture, box) in enumerate(one for detail in details for one in detail):
        at = (k % columns * (width + _GAP), k // columns * (height + _GAP))
        sheet.paste(part(picture, box, (width, height)), at)
        if k < len(names):
            _label(sheet, at, names[k])
    return sheet


def of_a_run(
    before: Image.Image, after: Image.Image, boxes: Sequence[Box], names: tuple[str, str]
) -> Image.Image:
    """Both pictures of each region of a run."""
    shown = boxes or [changed_box(before, after)]
    return of_details([((before, b), (after, b)) for b in shown], names)


def mask_box(case: str, mask: str) -> Box:
    """The box of a demo case's mask."""
    box = Image.open(CASES / case / f"{mask}.png").convert("L").getbbox()
    assert box is not None
    return box


def of_a_case(name: str) -> Image.Image:
    """For a workflow whose weights are not here: the fault and the true detail, called so."""

    def detail(picture: str, mask: str) -> Detail:
        return Image.open(CASES / name / f"{picture}.png"), mask_box(name, mask)

    both = (detail("draft", "mask"), detail("reference", "reference_mask"))
    return of_details([both], ("draft", "reference"))
