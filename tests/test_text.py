"""Text as a metric and as a scorer, on lettering that is really drawn and really read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.evaluation.metric import EvaluationCase, MetricUnavailable
from refiner_core.evaluation.text_metric import TextMetric
from refiner_core.repair.pick_best import pick_best
from refiner_core.scoring.text import TextReader, TextScorer, characters_read, normalise

INK, PAPER = (90, 30, 20), (240, 235, 220)


def sign(*lines: str, width: int = 220) -> Tensor:
    """Lettering on paper, uint8 1 3 H W, one line per 50 px."""
    image = Image.new("RGB", (width, 10 + 50 * max(1, len(lines))), PAPER)
    for i, line in enumerate(lines):
        place = (12, 8 + 50 * i)
        ImageDraw.Draw(image).text(place, line, fill=INK, font=ImageFont.load_default(36))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def reader() -> TextReader:
    pytest.importorskip("rapidocr", reason="RapidOCR is not installed (extra ocr)")
    return TextReader()


@pytest.mark.parametrize(
    ("wanted", "read", "share"),
    [
        ("temple", "temple", 1.0),
        ("temple", "", 0.0),
        ("temple", "tepmle", 5 / 6),
        ("temple", "the temple of doom", 1.0),
        ("abc", "cba", 1 / 3),
        ("cafe", "caf", 0.75),
    ],
)
def test_characters_read(wanted: str, read: str, share: float) -> None:
    assert characters_read(wanted, read) == pytest.approx(share)


def test_nothing_wanted_is_an_error() -> None:
    with pytest.raises(ValueError):
        characters_read("", "x")


@pytest.mark.parametrize(
    ("text", "normal"), [(" Café  No 1\n", "caféno1"), ("\uff21\uff22", "ab"), ("\ufb01t", "fit")]
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.slow
def test_lines_are_read_from_top_to_bottom(reader: TextReader) -> None:
    lines = reader.lines(sign("TEMPLE", "BRANDY"))
    assert [line.text for line in lines] == ["temple", "brandy"]
    for i, line in enumerate(lines):
        x0, y0, x1, y1 = line.box
        assert -8 < x0 < x1 < 220 and 50 * i - 8 < y0 < y1 < 50 * i + 70
    assert reader.read(sign()) == ""


@pytest.mark.slow
def test_a_wrong_letter_costs_its_share(reader: TextReader) -> None:
    right, wrong, blank = (s.float() / 255 for s in (sign("TEMPLE"), sign("TEMXLE"), sign()))
    scorer = TextScorer(reader)
    a = torch.cat([right, wrong, blank])
    assert scorer.distance(a, right).tolist() == pytest.approx([0, 1 / 6, 1])
    heat = scorer.heatmap(a, right).flatten(1).amax(1)
    assert heat.tolist() == pytest.approx([0, 1 / 6, 1])


@pytest.mark.slow
def test_only_the_masked_lettering_counts(reader: TextReader) -> None:
    a, b = (s.float() / 255 for s in (sign("TEMPLE", "WRONG"), sign("TEMPLE", "RIGHT")))
    mask = torch.zeros(1, 1, *a.shape[-2:])
    mask[..., :56, :] = 1
    scorer = TextScorer(reader)
    assert float(scorer.distance(a, b, mask)) == 0
    assert float(scorer.distance(a, b)) > 0.2


@pytest.mark.slow
def test_a_reference_without_text_is_refused(reader: TextReader) -> None:
    with pytest.raises(ValueError, match="reference"):
        TextScorer(reader).distance(sign("TEMPLE").float() / 255, sign().float() / 255)


@pytest.mark.slow
def test_the_best_of_several_is_the_one_that_can_be_read(reader: TextReader) -> None:
    images = torch.cat([sign(word) for word in ("TEMXLE", "TEMPLE", "WRONG")])
    ranking = pick_best(images.split(1), sign("TEMPLE"), scorer=TextScorer(reader), align=False)
    assert ranking.scorer == TextScorer.name
    assert ranking.order[0] == 1 and ranking.order[-1] == 2


@pytest.mark.slow
def test_the_metric_reads_the_region(reader: TextReader) -> None:
    right, wrong = sign("TEMPLE"), sign("TEMXLE")
    mask = torch.ones(1, 1, *right.shape[-2:])
    case = EvaluationCase("a", wrong, right, None, mask, None)
    scores = TextMetric().measure(case, {"draft": wrong, "refined": right})
    assert scores["refined"]["text"] == pytest.approx(100)
    assert scores["draft"]["text"] == pytest.approx(500 / 6)
    silent = EvaluationCase("b", wrong, sign(), None, mask, None)
    assert TextMetric().measure(silent, {"refined": right}) == {"refined": {"text": None}}


@pytest.mark.slow
def test_the_command(
    reader: TextReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, text in (("a", "TEMXLE"), ("b", "TEMPLE")):
        paths.append(str(tmp_path / f"{name}.png"))
        Image.fromarray(sign(text)[0].permute(1, 2, 0).numpy()).save(paths[-1])
    assert main(["score", "--metric", "text", *paths]) == 0
    assert "distance 0.1667" in capsys.readouterr().out


def test_without_the_recogniser_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MetricUnavailable, match="pip install rapidocr"):
        TextMetric()
    path = str(tmp_path / "a.png")
    Image.new("RGB", (40, 40)).save(path)
    assert main(["score", "--metric", "text", path, path]) == 2
    assert "pip install rapidocr" in capsys.readouterr().err
