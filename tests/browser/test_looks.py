"""Both renderers, both themes, a narrow node, a 4k screen, other languages: nothing breaks or hides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import drag, picker_graph, refine_graph, value_of


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_light_theme(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue, theme="light")
    refine_graph(comfy)
    drag(comfy, 0, (0.6, 0.3), (0.84, 0.68))
    comfy.shot(f"light-{'vue' if vue else 'canvas'}")
    colour = comfy.page.evaluate(
        "() => getComputedStyle(document.querySelector('.omnirefiner-panel')).color"
    )
    assert sum(int(v) for v in colour.removeprefix("rgb(").rstrip(")").split(",")[:3]) < 300, colour
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_narrow_node(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    node = picker_graph(comfy, width=260, height=640)[2]
    comfy.shot(f"narrow-{'vue' if vue else 'canvas'}")
    drag(comfy, 0, (0.25, 0.3), (0.6, 0.7))
    assert '"draft":[0.2' in value_of(comfy, node)
    comfy.assert_clean()


def test_4k_screen(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy(width=3840, height=2160)
    node = picker_graph(comfy, width=1400, height=1500)[2]
    drag(comfy, 0, (0.25, 0.3), (0.6, 0.7))
    assert value_of(comfy, node)
    comfy.shot("4k")
    comfy.assert_clean()


@pytest.mark.parametrize(("locale", "word"), [("zh", "删除"), ("ja", "削除"), ("ko", "삭제")])
def test_other_languages(open_comfy: Callable[..., Any], locale: str, word: str) -> None:
    comfy = open_comfy(locale=locale)
    picker_graph(comfy)
    comfy.shot(f"language-{locale}")
    assert comfy.page.get_by_role("button", name=word).first.is_visible()
    comfy.assert_clean()
