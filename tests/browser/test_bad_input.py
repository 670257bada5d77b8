"""What goes wrong for users: the page stays whole, says why, and loses nothing of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.conftest import Comfy, page_settings
from tests.browser.graphs import build, drag, picker_graph, refine_graph, value_of


def status(comfy: Any) -> str:
    return comfy.page.locator(".omnirefiner-picker .omnirefiner-status").first.inner_text()


def test_nothing_connected(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    (node,) = build(
        comfy, [{"type": "OmniRefiner_MaskBuilder", "pos": [420, 80], "size": [520, 560]}], []
    )
    comfy.page.locator(".omnirefiner-pane").first.click()
    comfy.page.keyboard.press("Enter")
    assert value_of(comfy, node) == ""
    comfy.shot("picker-empty")
    comfy.assert_clean()


def test_saved_boxes_that_cannot_be_read_are_kept(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    broken = '[{"draft": [0.1, 0.1, 0.1, 0.5]}]'
    node = picker_graph(comfy, boxes=broken)[2]
    assert value_of(comfy, node) == broken and "cannot be read" in status(comfy)
    drag(comfy, 0, (0.2, 0.2), (0.4, 0.4))
    assert len(json.loads(value_of(comfy, node))) == 1
    comfy.assert_clean()


def test_a_hundred_boxes_and_a_click_without_area(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    many = [{"draft": [i / 200, 0.1, i / 200 + 0.2, 0.3], "reference": None} for i in range(64)]
    node = picker_graph(comfy, boxes=json.dumps(many))[2]
    drag(comfy, 0, (0.6, 0.7), (0.8, 0.9))
    assert len(json.loads(value_of(comfy, node))) == 64 and "up to 64" in status(comfy)
    comfy.page.get_by_role("button", name="Delete all boxes").click()
    assert value_of(comfy, node) == ""
    drag(comfy, 0, (0.5, 0.5), (0.5, 0.5))
    assert value_of(comfy, node) == ""
    comfy.assert_clean()


def test_a_workflow_with_a_hundred_boxes(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    at = [(x / 10, y / 10) for y in range(10) for x in range(10)]
    boxes = [{"draft": [x, y, x + 0.08, y + 0.08], "reference": None} for x, y in at]
    text = json.dumps(boxes)
    node = picker_graph(comfy, boxes=text)[2]
    assert value_of(comfy, node) == text and "up to 64" in status(comfy)
    comfy.shot("picker-hundred")
    comfy.page.locator(".omnirefiner-pane").first.focus()
    comfy.page.keyboard.press("n")
    comfy.page.keyboard.press("Delete")
    assert len(json.loads(value_of(comfy, node))) == 99
    comfy.assert_clean()


def test_a_box_stays_right_when_the_picture_changes_size(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    draft, _, node = picker_graph(comfy)
    drag(comfy, 0, (0.25, 0.3), (0.5, 0.6))
    text = value_of(comfy, node)
    comfy.page.evaluate(
        "id => { const w = app.graph.getNodeById(id).widgets.find((w) => w.name === 'image');"
        "w.value = 'huge.png'; w.callback?.('huge.png'); }",
        draft,
    )
    comfy.settle(4000)
    comfy.shot("picker-16k")
    assert value_of(comfy, node) == text
    sizes = [r for r in comfy.missing if "picture" in r]
    assert sizes == []
    comfy.assert_clean()


def test_a_picture_deleted_from_the_server(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    gone = comfy.server.base / "input" / "gone.png"
    kept = gone.read_bytes()
    draft, _, node = picker_graph(comfy, boxes='[{"draft": [0.1, 0.1, 0.5, 0.5]}]')
    gone.unlink()
    try:
        comfy.page.evaluate(
            "id => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'image').value ="
            "'gone.png'; }",
            draft,
        )
        comfy.settle(1500)
        comfy.shot("picker-gone")
        assert value_of(comfy, node) == '[{"draft": [0.1, 0.1, 0.5, 0.5]}]'
        assert all("404" in m and "gone.png" in m for m in comfy.our_failures)
        assert comfy.errors == []
    finally:
        gone.write_bytes(kept)


def test_a_workflow_of_an_older_version(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    node = picker_graph(comfy)[2]
    saved = comfy.page.evaluate("() => app.graph.serialize()")
    old = next(n for n in saved["nodes"] if str(n["id"]) == str(node))
    old["widgets_values"] = [0.25, 0.5, 0.5, 0.25, 0.2, False, 3, True, 20, False]
    comfy.load(saved)
    assert json.loads(value_of(comfy, node)) == [
        {"draft": [0.25, 0.5, 0.75, 0.75], "reference": None}
    ]
    assert [value_of(comfy, node, n) for n in ("threshold", "align", "grow")] == [0.2, False, 3]
    comfy.assert_clean()


def test_an_error_is_shown_and_the_boxes_stay(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    text = '[{"draft": [0.4, 0.4, 0.6, 0.6], "reference": null}]'
    node = refine_graph(comfy, boxes=text, grow=-1000)[3]
    entry = comfy.run()
    assert "Nothing is left of the mask" in comfy.server.error(entry)
    comfy.settle(800)
    said = comfy.page.locator(".omnirefiner-live").inner_text()
    assert "The run failed: Nothing is left of the mask" in said
    assert value_of(comfy, node) == text
    comfy.shot("refine-error")


def test_texts_never_become_elements(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    hostile = '<img src=x onerror="window.hostile = 1">'
    refine_graph(comfy, boxes=json.dumps([{"draft": hostile}]), prompt=hostile)
    assert hostile in comfy.server.error(comfy.run())
    comfy.settle(800)
    assert hostile in comfy.page.locator(".omnirefiner-live").inner_text()
    assert comfy.page.evaluate("() => window.hostile") is None
    assert comfy.page.locator("[onerror]").count() == 0


LOGO = '[{"draft": [0.25, 0.21, 0.68, 0.85], "reference": null}]'
"""The demo's logo: a place where the reference shows nothing is left alone, without a step."""


def test_a_run_is_stopped_from_the_node(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    refine_graph(comfy, boxes=LOGO, steps=900)
    before = set(comfy.server.get("/history"))
    comfy.page.locator('[data-testid="queue-button"]').click()
    comfy.page.wait_for_function(
        "() => /sample \\d+\\/900/.test(document.querySelector('.omnirefiner-live')?.innerText)",
        timeout=90_000,
    )
    comfy.settle(500)
    comfy.shot("refine-live")
    assert comfy.page.locator(".omnirefiner-livepicture").is_visible()
    # The panel is at the node's foot, which may lie below the window's edge.
    comfy.page.get_by_role("button", name="Stop this run").dispatch_event("click")
    for _ in range(150):
        new = set(comfy.server.get("/history")) - before
        if new:
            break
        comfy.page.wait_for_timeout(200)
    messages = comfy.server.get(f"/history/{new.pop()}").popitem()[1]["status"]["messages"]
    assert any(kind == "execution_interrupted" for kind, _ in messages)
    comfy.settle(600)
    assert comfy.page.locator(".omnirefiner-live").inner_text().startswith("Stopped")
    assert comfy.page.locator(".omnirefiner-pane").first.is_visible()
    comfy.assert_clean()


def run_until(comfy: Any, text: str) -> None:
    """Press Run and wait until the node's line of progress has the text."""
    comfy.page.locator('[data-testid="queue-button"]').click()
    comfy.page.wait_for_function(
        "text => document.querySelector('.omnirefiner-live')?.innerText.includes(text)",
        arg=text, timeout=90_000,
    )  # fmt: skip


def test_a_server_that_is_restarted_in_the_middle(
    chromium: Callable[..., Any], launcher: Any, tmp_path: Path
) -> None:
    launcher.furnish(tmp_path)
    with launcher.running(tmp_path) as server:
        comfy = Comfy(chromium(), server, page_settings())
        comfy.open()
        node = refine_graph(comfy, boxes=LOGO, steps=901)[3]
        run_until(comfy, "/901")
        port = int(server.url.rsplit(":", 1)[1])
    comfy.page.wait_for_function(
        "() => document.querySelector('.omnirefiner-live').innerText.includes('connection to the server')"
    )
    assert value_of(comfy, node) == LOGO and comfy.page.locator(".omnirefiner-pane").count() == 2
    comfy.shot("refine-server-gone")
    with launcher.running(tmp_path, port):
        comfy.page.wait_for_function("() => app.api.socket?.readyState === 1", timeout=60_000)
        comfy.page.evaluate(
            "id => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'steps').value = 2; }",
            node,
        )
        entry = comfy.run()
        assert entry["status"]["status_str"] == "success", server.error(entry)
        comfy.settle(800)
        assert comfy.page.locator(".omnirefiner-view").first.is_visible()
        assert not comfy.page.locator(".omnirefiner-live").first.is_visible()
        assert value_of(comfy, node) == LOGO
        assert [e for e in comfy.errors if "omnirefiner" in e] == [] and comfy.external == []
    comfy.page.close()
