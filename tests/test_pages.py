"""The pages that people read name files and places that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    p.relative_to(ROOT)
    for folder in ("", "docs", "refiner_core", "web/docs", ".github")
    for p in (ROOT / folder).glob("*.md" if folder in ("", "web/docs") else "**/*.md")
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:refiner_core|nodes|web|tests|locales|example_workflows)/[\w./-]*)`")
_ROOM = re.compile(
    r"`((?:repair|images|matching|models|scoring|data|training|storage)/[\w./-]*\.py)"
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """Links inside the repository, relative to the page."""
    targets = [t.partition("#")[0] for t in _LINK.findall((ROOT / page).read_text("utf-8"))]
    local = [t for t in targets if t and "://" not in t and not t.startswith("mailto:")]
    missing = [t for t in local if not (ROOT / page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_named_places_exist(page: str) -> None:
    """Files and folders in backticks, from the root or from the core's folder."""
    text = (ROOT / page).read_text("utf-8")
    paths = [ROOT / p for p in _PATH.findall(text)]
    paths += [ROOT / "refiner_core" / p for p in _ROOM.findall(text)]
    assert len(paths) > 5
    assert not [str(p) for p in paths if not p.exists()]


def test_the_readme_is_short() -> None:
    """Everything that does not fit is on a page of its own."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def test_nothing_advises_to_install_a_package_that_is_not_published() -> None:
    """The pack is installed from a checkout: no package index has `omnirefiner`."""
    advice = re.compile(r"pip install [^\n&]*?['\" ]omnirefiner\b")
    files = [p for kind in ("py", "md", "js", "json") for p in ROOT.glob(f"*/**/*.{kind}")]
    files = [p for p in (*files, *ROOT.glob("*.md")) if not p.is_relative_to(ROOT / "tests")]
    assert len(files) > 200
    assert not [str(p) for p in files if advice.search(p.read_text("utf-8"))]
