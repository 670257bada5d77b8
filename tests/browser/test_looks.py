"""Both renderers, both themes, a narrow node, a 4k screen, other languages: nothing breaks or hides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import build, drag, picker_graph, refine_graph, value_of


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


def shown_settings(comfy: Any, node: int) -> list[str]:
    """The names of the widgets that a node shows, as the page's own rule tells."""
    return comfy.page.evaluate(
        "id => { const n = app.graph.getNodeById(id);"
        "return n.widgets.filter((w) => n.isWidgetVisible(w)).map((w) => w.name); }",
        node,
    )


def test_advanced_inputs_are_folded_away(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    node = refine_graph(comfy)[3]
    few, height = shown_settings(comfy, node), comfy.page.evaluate(HEIGHT, node)
    assert "seed" in few and "boxes" in few and "sampler" not in few
    assert comfy.page.locator(".omnirefiner-panel button", has_text="⚙").is_visible()
    comfy.page.get_by_role("button", name="Show or hide the advanced inputs").click()
    assert {"sampler", "context", "prune_at"} <= set(shown_settings(comfy, node))
    assert comfy.page.evaluate(HEIGHT, node) > height + 150
    comfy.shot("refine-advanced")
    comfy.page.get_by_role("button", name="Show or hide the advanced inputs").dispatch_event(
        "click"
    )
    assert shown_settings(comfy, node) == few
    assert comfy.page.evaluate(HEIGHT, node) == height
    saved = comfy.page.evaluate("() => app.graph.serialize()")
    comfy.load(saved)
    assert shown_settings(comfy, node) == few
    comfy.assert_clean()


HEIGHT = "id => app.graph.getNodeById(id).size[1]"


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_load_refiner_shows_the_files_its_recipe_needs(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    (node,) = build(comfy, [{"type": "OmniRefiner_LoadRefiner", "pos": [420, 80]}], [])
    assert shown_settings(comfy, node) == ["recipe", "refiner_lora"]
    for recipe, has, lacks in [
        ("omnirefiner", "t5xxl", "text_encoder"),
        ("refineanything", "text_encoder", "t5xxl"),
        ("imagecritic", "detail_encoder", "text_encoder"),
    ]:
        comfy.page.evaluate(
            "([id, recipe]) => { const w = app.graph.getNodeById(id).widgets[0];"
            "w.value = recipe; w.callback(recipe); }",
            [node, recipe],
        )
        comfy.settle()
        shown = shown_settings(comfy, node)
        assert "lora_strength" not in shown, "no LoRA is chosen yet"
        assert {"diffusion_model", "weight_dtype"} <= set(shown)
        assert has in shown and lacks not in shown
        if vue:
            drawn = comfy.page.locator('[data-testid="node-widgets"]').inner_text()
            assert has in drawn and lacks not in drawn
        comfy.shot(f"loader-{recipe}-{'vue' if vue else 'canvas'}")
    comfy.page.evaluate(
        "id => { const w = app.graph.getNodeById(id).widgets.find((w) => w.name === 'refiner_lora');"
        "w.value = 'my.safetensors'; w.callback(w.value); }",
        node,
    )
    assert "lora_strength" in shown_settings(comfy, node)
    comfy.assert_clean()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_taller_node_gives_its_height_to_the_pictures(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue, width=1600, height=1300)
    node = refine_graph(comfy)[3]
    panel, prompt = comfy.page.locator(".omnirefiner-panel"), comfy.page.locator("textarea").first
    before = panel.bounding_box()["height"], prompt.bounding_box()["height"]
    comfy.page.evaluate(
        "id => { const n = app.graph.getNodeById(id); n.setSize([n.size[0], n.size[1] + 200]);"
        "app.canvas.setDirty(true, true); }",
        node,
    )
    comfy.settle(600)
    after = panel.bounding_box()["height"], prompt.bounding_box()["height"]
    assert after[0] - before[0] == pytest.approx(200, abs=8)
    assert after[1] == pytest.approx(before[1], abs=2)
    comfy.assert_clean()
