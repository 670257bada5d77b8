"""Lettering as a metric: how much of a reference's text a recogniser reads in a picture.

The recogniser is RapidOCR, whose models (PP-OCR) are part of its package: nothing is downloaded.
"""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images.masks import bounds
from ..images.tensors import to_dtype, to_float
from .scorer import IncomparableError, check_pair

_MIN_SIDE = 640  # px: smaller pictures are enlarged, so that small lettering can be read
_REMEMBERED = 64  # pictures
_MARGIN = 0.1  # of the picture's longer side: text that touches the edge is not detected


@dataclass(frozen=True)
class TextLine:
    """A line of text in a picture."""

    text: str  # as compared: lower case, without spaces
    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels


def normalise(text: str) -> str:
    """Text as it is compared: compatibility forms unified, lower case, without spaces."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def characters_read(wanted: str, read: str) -> float:
    """The share of the characters of `wanted` that appear in `read`, in the same order.

    Raises:
        ValueError: `wanted` is empty.
    """
    if not wanted:
        raise ValueError("There are no characters to be read.")
    matcher = difflib.SequenceMatcher(None, wanted, read, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(wanted)


class TextReader:
    """Reads the text in pictures.

    Raises:
        ModuleNotFoundError: RapidOCR is not installed; says how to install it.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise ModuleNotFoundError(
                "Reading text needs RapidOCR: pip install rapidocr onnxruntime (the pack's extra ocr)."
            ) from e
        self._engine: Any = RapidOCR(params={"Global.log_level": "error"})
        self._read: dict[bytes, list[TextLine]] = {}  # the latest pictures: references come again

    def lines(self, picture: Tensor) -> list[TextLine]:
        """The lines of text in a picture 1 3 H W, from top to bottom and left to right."""
        pixels = to_dtype(to_float(picture), torch.uint8)[0].permute(1, 2, 0).cpu().numpy()
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        if key not in self._read:
            if len(self._read) >= _REMEMBERED:
                self._read.pop(next(iter(self._read)))
            self._read[key] = self._recognise(Image.fromarray(pixels))
        return self._read[key]

    def _recognise(self, picture: Image.Image) -> list[TextLine]:
        image, scale, margin = _enlarge(picture)
        found = self._engine(np.asarray(image)[..., ::-1].copy())  # the engine expects BGR
        if found.txts is None:
            return []
        lines: list[TextLine] = []
        for text, quad in zip(found.txts, found.boxes, strict=True):
            corners = (np.asarray(quad, np.float64) - margin) / scale
            x0, y0, x1, y1 = (float(v) for v in (*corners.min(0), *corners.max(0)))
            lines.append(TextLine(normalise(text), (x0, y0, x1, y1)))
        return _reading_order(lines)

    def read(self, picture: Tensor) -> str:
        """The whole text of a picture 1 3 H W, normalised."""
        return "".join(line.text for line in self.lines(picture))


def _enlarge(image: Image.Image) -> tuple[Image.Image, float, int]:
    """The picture in a margin of its edge colour; and its scale and the margin's width in pixels."""
    scale = max(1.0, _MIN_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    margin = round(_MARGIN * max(size))
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return Image.fromarray(padded), scale, margin


def _reading_order(lines: list[TextLine]) -> list[TextLine]:
    """Lines whose centre is within another one's height are in one row with it."""
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=lambda item: item.box[1] + item.box[3]):
        center = (line.box[1] + line.box[3]) / 2
        if rows and rows[-1][0].box[1] <= center <= rows[-1][0].box[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda item: item.box[0])]


class TextScorer:
    """`Scorer` by lettering: the share of the second picture's characters not read in the first.

    With a mask only its box is read, in both pictures. Not differentiable. As a scorer of candidates
    it needs lettering in the reference.
    """

    name = "text (RapidOCR)"

    def __init__(self, reader: TextReader | None = None) -> None:
        self.reader = reader or TextReader()

    def distance(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Scorer.distance`.

        Raises:
            ValueError: as there.
            IncomparableError: no text is read in an item of `b`.
        """
        a, b, mask = check_pair(a, b, mask)
        values = [
            self._one(*_cut(a[i : i + 1], b[i : i + 1], None if mask is None else mask[i : i + 1]))
            for i in range(len(a))
        ]
        return torch.tensor(values, device=a.device)

    def _one(self, a: Tensor, b: Tensor) -> float:
        wanted = self.reader.read(b)
        if not wanted:
            raise IncomparableError(
                "No text is read in the second picture (the reference), so the text scorer cannot "
                "compare. Choose another scorer, or mark a region with lettering."
            )
        return 1 - characters_read(wanted, self.reader.read(a))

    def heatmap(self, a: Tensor, b: Tensor) -> Tensor:
        """See `MapScorer.heatmap`: the lines of `b`, by the share of each that is not read in `a`."""
        a, b, _ = check_pair(a, b)
        heat = torch.zeros_like(a[:, :1])
        for i in range(len(a)):
            read = self.reader.read(a[i : i + 1])
            for line in self.reader.lines(b[i : i + 1]):
                x0, y0, x1, y1 = (max(0, round(v)) for v in line.box)
                if line.text:
                    heat[i, :, y0:y1, x0:x1] = 1 - characters_read(line.text, read)
        return heat


def _cut(a: Tensor, b: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return a, b
    box = bounds(mask)
    assert box is not None  # checked with the pair
    rows, columns = slice(box.y0, box.y1), slice(box.x0, box.x1)
    return a[..., rows, columns], b[..., rows, columns]
