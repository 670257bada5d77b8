"""Texts of people stay text in pages: prompts, names of files and systems, notes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from refiner_core.__main__ import main
from tests.bad_inputs import good_mask, good_picture

WEB = Path(__file__).parents[1] / "web" / "js"
HOSTILE = "<img src=x onerror=alert(1)>\"'></script><script>alert(2)</script>{{ 7 * 7 }}"
# What makes elements or programs of texts; the panel is built of elements and text nodes alone.
PARSERS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|srcdoc|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:"
)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_shows_texts_as_they_are(tmp_path: Path) -> None:
    data = tmp_path / "<img src=x onerror=alert(0)>"
    case = data / "a"
    case.mkdir(parents=True)
    for role in ("draft", "reference", "target"):
        (case / f"{role}.png").write_bytes(good_picture())
    (case / "mask.png").write_bytes(good_mask())
    (case / "prompt.txt").write_text(HOSTILE)
    named = HOSTILE.replace("=", "")  # which ends the name of a system
    results = tmp_path / "results"
    results.mkdir()
    (results / "a.png").write_bytes(good_picture())
    arguments = [
        "--results",
        str(results),
        "--other",
        f"{named}={results}",
        "--metrics",
        "pixels",
    ]
    assert main(["evaluate", "--data", str(data), "--out", str(tmp_path / "out"), *arguments]) == 0
    page = Elements((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1, "the page's own, which moves the sliders"
    assert not [(k, v) for k, v in page.attributes if k.startswith("on")]
    sources = [v for k, v in page.attributes if k in ("src", "href")]
    assert sources and all(v and v.startswith("data:image/") for v in sources)
    assert named in page.text and str(data) in page.text, "as they were written"


@pytest.mark.parametrize("path", sorted(WEB.glob("*.js")), ids=lambda p: p.name)
def test_the_panel_makes_no_elements_of_texts(path: Path) -> None:
    assert PARSERS.findall(path.read_text(encoding="utf-8")) == []
