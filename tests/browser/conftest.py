"""A real page of a real ComfyUI for the tests of this folder; skipped, with the reason, without."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.graphs import put_inputs

# One server, made like that of the tests over HTTP.
from tests.comfyui.conftest import (  # noqa: F401
    comfyui_environment,
    comfyui_path,
    comfyui_python,
    launcher,
    published,
    run_in_comfyui,
    server,
    tiny_models,
)

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="no browser tests: `pip install playwright` is missing"
)

ARTEFACTS = Path(__file__).resolve().parents[1] / "artefacts"
_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# What ComfyUI's own page asks for on a fresh server and does not find: the user's settings.
_NOT_OURS = re.compile(r"/user\.css|/api/(userdata|users)|favicon")
# ComfyUI's default graph, shown before any workflow is opened, names a model on Hugging Face whose
# size the page looks up; the page's own content policy blocks that. While it starts, a computed value
# of the page asks for the graph before there is one.
_PAGES_OWN = re.compile(r"missingModelMetadata|ComfyApp graph accessed before initialization")


def find_chromium() -> str | None:
    """$CHROMIUM_PATH, or a Chromium or Chrome on the PATH."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named
    return next((p for p in map(shutil.which, _CHROMIUM_NAMES) if p), None)


# Out of a subgraph if one is open; what is in subgraphs is kept by a mere clear().
_EMPTY = """
() => {
  const { canvas, rootGraph } = app;
  if (canvas.graph !== rootGraph) canvas.setGraph(rootGraph);
  for (const subgraph of rootGraph.subgraphs.values())
    for (const node of [...subgraph.nodes]) subgraph.remove(node);
  rootGraph.clear();
}
"""


class Comfy:
    """ComfyUI's page with helpers to do in it what a user does."""

    def __init__(self, page: Any, server: Any, settings: dict[str, Any]) -> None:  # noqa: F811
        self.page, self.server, self.settings = page, server, settings
        self.errors: list[str] = []
        self.external: list[str] = []
        self.missing: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda e: self.errors.append(f"exception: {e}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    def _on_console(self, message: Any) -> None:
        # A failed request is listed by `missing`, with its address, which the console leaves out.
        where = message.location.get("url", "")
        said = f"{message.text} @ {where}"
        known = said.startswith("Failed to load resource") or _PAGES_OWN.search(said)
        if message.type == "error" and not known:
            self.errors.append(said)

    def _on_request(self, request: Any) -> None:
        own = (self.server.url, self.server.url.replace("http", "ws", 1))
        if not request.url.startswith((*own, "data:", "blob:", "about:")):
            self.external.append(request.url)

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.missing.append(f"{response.status} {response.url.removeprefix(self.server.url)}")

    @property
    def our_failures(self) -> list[str]:
        """Failed requests that ComfyUI's page does not make by itself."""
        return [m for m in self.missing if not _NOT_OURS.search(m)]

    def open(self) -> None:
        """Load the page with its settings and wait until a graph can be drawn."""
        self.server.post("/settings", self.settings)
        put_inputs(self.server.base)  # Load Image lists what is there when the page is opened
        self.page.goto(self.server.url)
        self.page.wait_for_function(
            "() => document.querySelector('[data-testid=queue-button]') && "
            "window.app?.extensionManager?.workflow?.activeWorkflow && "
            "window.app.graph?.nodes.length",  # the default graph, which comes last
            timeout=90_000,
        )

    def reset(self) -> None:
        """An empty graph in front, and nothing that went wrong so far."""
        self.page.bring_to_front()
        self.page.evaluate(_EMPTY)
        for seen in (self.errors, self.external, self.missing):
            seen.clear()

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as if its file was dropped on the page."""
        self.page.evaluate("w => window.app.loadGraphData(w)", workflow)
        self.settle()

    def settle(self, milliseconds: int = 400) -> None:
        self.page.wait_for_timeout(milliseconds)

    def run(self, seconds: float = 120) -> dict[str, Any]:
        """Press Run; the history entry of the finished prompt."""
        before = set(self.server.get("/history"))
        self.page.locator('[data-testid="queue-button"]').click()
        for _ in range(int(seconds * 5)):
            history = self.server.get("/history")
            new = [h for k, h in history.items() if k not in before]
            if new:
                self.settle(600)
                return new[0]
            self.page.wait_for_timeout(200)
        raise AssertionError(f"nothing ran in {seconds} s; the page said {self.errors}")

    def assert_clean(self) -> None:
        """No error in the console, no request to other machines, none that failed."""
        assert (self.errors, self.external, self.our_failures) == ([], [], [])

    def shot(self, name: str) -> Path:
        """A screenshot in tests/artefacts."""
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS / f"{name}.png"
        self.page.screenshot(path=str(path))
        return path


def page_settings(vue: bool = False, theme: str = "dark", locale: str = "en") -> dict[str, Any]:
    """ComfyUI's settings for a page that keeps nothing from one test to the next."""
    return {
        "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue,
        "Comfy.ColorPalette": theme, "Comfy.Locale": locale,
        "Comfy.Workflow.Persist": False, "Comfy.Minimap.Visible": False,
    }  # fmt: skip


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`chromium(width, height) -> page` in a browser with an empty profile."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no browser tests: no Chromium on the PATH, and CHROMIUM_PATH is not set")
    with playwright_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=executable, headless=True, args=_FLAGS,
            viewport={"width": 1400, "height": 900},
        )  # fmt: skip

        def page(width: int = 1400, height: int = 900) -> Any:
            made = context.new_page()
            made.set_viewport_size({"width": width, "height": height})
            return made

        yield page
        context.close()


@pytest.fixture(scope="session")
def pages() -> dict[tuple[Any, ...], Comfy]:
    """Pages that are open, by their settings: opening one takes most of a test's time."""
    return {}


@pytest.fixture
def open_comfy(
    chromium: Callable[..., Any],
    server: Any,  # noqa: F811
    pages: dict[tuple[Any, ...], Comfy],
) -> Callable[..., Comfy]:
    """`open_comfy(vue=False, theme="dark", locale="en") -> Comfy`, a page with an empty graph."""

    def make(vue: bool = False, theme: str = "dark", locale: str = "en", **size: int) -> Comfy:
        key = (vue, theme, locale, *sorted(size.items()))
        if key not in pages:
            pages[key] = Comfy(chromium(**size), server, page_settings(vue, theme, locale))
            pages[key].open()
        pages[key].reset()
        return pages[key]

    return make
