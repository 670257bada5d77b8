"""Contact sheets and the page of statistics."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.data.contact_sheet import contact_sheet, spread
from refiner_core.data.shards import TripletSet, read_manifest
from refiner_core.data.statistics import statistics_page


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("show") / "set"
    assert main(["data", "build", "--out", str(out), "--count", "10", "--size", "64"]) == 0
    return out


@pytest.mark.parametrize(
    ("total", "count", "numbers"),
    [(3, 5, [0, 1, 2]), (10, 2, [2, 7]), (9, 3, [1, 4, 7]), (1, 1, [0])],
)
def test_samples_are_spread(total: int, count: int, numbers: list[int]) -> None:
    assert spread(total, count) == numbers


class Page(HTMLParser):
    """Texts, links to outside and unclosed tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_show_writes_sheets_and_a_page_of_its_own(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in data.iterdir() if p.is_file()}
    assert main(["data", "show", str(data), "--count", "4"]) == 0
    assert "1 contact sheet" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in data.iterdir() if p.is_file()} == before
    with Image.open(data / "show" / "contact-sheet-1.png") as image:
        assert image.width > 1000 and np.asarray(image.convert("L")).std() > 20
    page = Page((data / "show" / "statistics.html").read_text())
    assert not page.open and not page.links
    entries = read_manifest(data)
    text = " ".join(page.words)
    assert f"{len(entries)} triplets" in text and "No identity is in two splits." in text
    for entry in entries:
        assert entry["degradation"]["name"] in text


def test_the_page_names_identities_in_two_splits_and_escapes(data: Path) -> None:
    numbered = TripletSet(data)
    entries = [
        {"id": str(i), "shard": "x", "split": s, "identity": "<b>mug", "kind": "<script>"}
        for i, s in enumerate(("train", "validation"))
    ]
    sheet = contact_sheet(numbered, [0])
    html = statistics_page(data, entries, [{"stage": "select", "reason": "a 5.2 <i>"}], sheet)
    assert "1 identities are in several splits" in html
    assert "<script>" not in html and "<b>" not in html and "&lt;i&gt;" in html
    assert re.search(r"select: a # &lt;i", html)


def test_show_refuses(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ([str(tmp_path)], "holds no triplets"),
        ([str(data), "--split", "test"], "no split 'test'"),
        ([str(data), "--count", "0"], "--count must be at least 1"),
    ):
        assert main(["data", "show", *options]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
