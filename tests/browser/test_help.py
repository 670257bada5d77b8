"""The help pages: one for every node, with a picture, shown in the page's Info panel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.graphs import build

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
LARGEST = 60_000  # bytes of a node's picture


def pictures_of(page: Path) -> list[Path]:
    return [DOCS / name for name in re.findall(r"!\[[^]]+\]\((images/[^)]+)\)", page.read_text())]


def test_every_node_has_a_page_with_a_picture(server: Any) -> None:
    nodes = {name for name in server.get("/object_info") if name.startswith("OmniRefiner_")}
    assert nodes == {page.stem for page in DOCS.glob("*.md")}
    for page in DOCS.glob("*.md"):
        pictures = pictures_of(page)
        assert pictures, f"{page.name} has no picture"
        for picture in pictures:
            assert 1000 < picture.stat().st_size < LARGEST, picture.name


@pytest.mark.parametrize("name", ["ReferenceRefine", "LoadRefiner", "Stitch"])
def test_the_info_panel_shows_it(open_comfy: Callable[..., Any], name: str) -> None:
    comfy = open_comfy()
    (node,) = build(comfy, [{"type": f"OmniRefiner_{name}", "pos": [300, 180]}], [])
    comfy.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    comfy.page.locator('[data-testid="info-button"]').first.click()
    page = DOCS / f"OmniRefiner_{name}.md"
    shown = comfy.page.locator('img[src*="/docs/images/"]')
    shown.first.wait_for()
    comfy.settle(800)
    comfy.shot(f"help-{name}")
    widths = [shown.nth(i).evaluate("e => e.naturalWidth") for i in range(shown.count())]
    assert len(widths) == len(pictures_of(page)) and min(widths) > 200
    heading = page.read_text().splitlines()[0].removeprefix("# ")
    assert comfy.page.locator("h1", has_text=heading).is_visible()
    comfy.page.get_by_label("Toggle properties panel").first.click()
    # The page asks for the language's own version first, and then for the only one.
    assert all(m.endswith("/en.md") for m in comfy.our_failures), comfy.our_failures
    assert comfy.errors == [] and comfy.external == []
