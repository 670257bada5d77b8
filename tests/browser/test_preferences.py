"""Keep and reject below a result: absent until the setting is on, and then a file per press."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.graphs import refine_graph

BOXES = '[{"draft": [0.25, 0.2155, 0.6734, 0.8407], "reference": [0.135, 0.1175, 0.8925, 0.9025]}]'
_SET = "(on) => app.ui.settings.setSettingValueAsync('OmniRefiner.Preferences', on)"

_SAYS = """
(text) => [...document.querySelectorAll('.omnirefiner-viewer .omnirefiner-status')].at(-1)
  .innerText === text
"""


def test_a_result_is_kept_once_the_setting_is_on(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    refine_graph(comfy, boxes=BOXES, steps=2)
    keep = comfy.page.get_by_role("button", name="Keep this result")
    assert not keep.count(), "off by default"
    comfy.page.evaluate(_SET, True)
    comfy.settle()
    try:
        comfy.run()
        comfy.settle()
        assert keep.is_visible()
        keep.press("Enter")
        comfy.settle(1500)
        status = comfy.page.locator(".omnirefiner-viewer .omnirefiner-status").last
        file = Path(status.inner_text())
        assert file.is_file() and file.name.startswith("kept-"), file
        assert (file.parent / "reference.png").is_file()
        comfy.run()
        folder = str(file.parent.parent)
        comfy.page.wait_for_function(_SAYS, arg=folder, timeout=20_000)  # not the verdict before
    finally:
        comfy.page.evaluate(_SET, False)
    comfy.settle()
    assert not keep.count()
    comfy.assert_clean()
