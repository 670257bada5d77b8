"""Undo, redo, tabs, reloading and subgraphs: what is seen in a node is what is saved and run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import drag, picker_graph, refine_graph

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
A, B, C = ((0.25, 0.3), (0.5, 0.6)), ((0.6, 0.1), (0.9, 0.3)), ((0.1, 0.7), (0.2, 0.9))

# The boxes of the node in the graph that is open, and whether its panel is what the page shows.
_STATE = """
() => {
  const find = (n) => n.widgets?.find((w) => w.type === 'OMNIREFINER_REGIONS' && w.name === 'boxes');
  const widget = app.canvas.graph.nodes.map(find).find(Boolean);
  if (!widget) return null;
  const shown = [...document.querySelectorAll('.omnirefiner-pane[data-shows]')];
  return {
    boxes: widget.value ? JSON.parse(widget.value).length : 0,
    shown: widget.element.isConnected && shown.length === 2 && shown.every((p) => p.dataset.shows)
      && widget.element.contains(shown[0]),
  };
}
"""


def wait_for_boxes(comfy: Any, count: int) -> None:
    """Wait until the open graph's node has so many boxes and the page shows its panel."""
    comfy.page.wait_for_function(
        f"(n) => {{ const s = ({_STATE})(); return s && s.boxes === n && s.shown; }}",
        arg=count,
        timeout=20_000,
    )


def press(comfy: Any, keys: str, count: int) -> None:
    comfy.page.keyboard.press(keys)
    wait_for_boxes(comfy, count)


def open_as_saved(comfy: Any) -> None:
    """Open the graph again as a saved workflow, which has an id of its own that an undo keeps."""
    workflow = comfy.page.evaluate("() => app.graph.serialize()")
    comfy.load({**workflow, "id": str(uuid.uuid4())})
    wait_for_boxes(comfy, 0)
    comfy.page.evaluate("() => Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] })")
    comfy.settle()


def boxes_to_run(comfy: Any) -> list[dict[str, Any]]:
    """What a run would be sent by the only node with boxes."""
    prompt = comfy.page.evaluate("async () => (await app.graphToPrompt()).output")
    (text,) = [n["inputs"]["boxes"] for n in prompt.values() if "boxes" in n["inputs"]]
    return json.loads(text) if text else []


@RENDERERS
def test_after_undo_and_redo_the_panel_is_that_of_the_node(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    picker_graph(comfy)
    open_as_saved(comfy)
    for box in (A, B, C):
        drag(comfy, 0, *box)
    wait_for_boxes(comfy, 3)
    for keys, count in (("Control+z", 2), ("Control+z", 1), ("Control+y", 2), ("Control+z", 1)):
        press(comfy, keys, count)
    drag(comfy, 0, *C)
    wait_for_boxes(comfy, 2)
    comfy.shot(f"undo-{'vue' if vue else 'canvas'}")
    drawn = [pair["draft"] for pair in boxes_to_run(comfy)]
    assert drawn[0] == pytest.approx([0.25, 0.3, 0.5, 0.6], abs=0.01)
    assert drawn[1] == pytest.approx([0.1, 0.7, 0.2, 0.9], abs=0.01)
    comfy.assert_clean()


@RENDERERS
def test_an_undo_keeps_zoom_and_result_and_the_next_run_is_shown(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    refine_graph(comfy, control_after_generate="fixed")  # a new seed would be a step to undo
    open_as_saved(comfy)
    drag(comfy, 0, *A)
    drag(comfy, 0, *B)
    wait_for_boxes(comfy, 2)
    comfy.run()
    view = comfy.page.locator(".omnirefiner-view")
    view.wait_for(state="visible", timeout=20_000)
    view.click()
    comfy.page.keyboard.press("1")
    zoom = comfy.page.locator(".omnirefiner-viewer .omnirefiner-status").first.inner_text()
    comfy.page.keyboard.press("Control+z")
    comfy.page.wait_for_function(
        f"() => {{ const s = ({_STATE})(); return s.boxes === 1 }}", timeout=20_000
    )
    view.wait_for(state="visible", timeout=20_000)
    assert comfy.page.locator(".omnirefiner-viewer .omnirefiner-status").first.inner_text() == zoom
    comfy.page.get_by_role("tab", name="Regions").click()
    drag(comfy, 0, *C)
    wait_for_boxes(comfy, 2)
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    view.wait_for(state="visible", timeout=20_000)
    (shown,) = [o["omnirefiner"][0] for o in entry["outputs"].values() if "omnirefiner" in o]
    assert len(shown["report"]["regions"]) == 2
    comfy.assert_clean()


@RENDERERS
def test_tabs_are_changed_and_the_boxes_of_each_stay_its_own(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    picker_graph(comfy)
    open_as_saved(comfy)
    drag(comfy, 0, *A)
    wait_for_boxes(comfy, 1)
    saved = comfy.page.evaluate("() => app.graph.serialize()")
    comfy.load({**saved, "id": str(uuid.uuid4())})  # a second tab with the same ids
    comfy.page.evaluate("() => Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] })")
    wait_for_boxes(comfy, 1)
    drag(comfy, 0, *B)
    drag(comfy, 0, *C)
    wait_for_boxes(comfy, 3)
    comfy.page.locator(".workflow-tabs [role=tab], .workflow-tabs .p-togglebutton").nth(-2).click()
    wait_for_boxes(comfy, 1)
    drag(comfy, 0, *C)
    wait_for_boxes(comfy, 2)
    comfy.page.locator(".workflow-tabs [role=tab], .workflow-tabs .p-togglebutton").nth(-1).click()
    wait_for_boxes(comfy, 3)
    comfy.assert_clean()


_OUT_OF_SUBGRAPH = """
() => {
  app.canvas.setGraph(app.rootGraph);
  app.rootGraph.unpackSubgraph(app.rootGraph.nodes.find((n) => n.isSubgraphNode?.()));
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
}
"""
_INTO_SUBGRAPH = """
() => {
  const inner = app.graph.nodes.find((n) => n.widgets?.some((w) => w.name === 'boxes'));
  const { node, subgraph } = app.graph.convertToSubgraph(new Set([inner]));
  app.canvas.openSubgraph(subgraph, node);
}
"""
_AT_ONCE = "() => Object.assign(app.canvas.ds, { scale: 1, offset: [0, 40] })"


@RENDERERS
def test_into_a_subgraph_undo_in_it_and_out_again(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    picker_graph(comfy)
    open_as_saved(comfy)
    drag(comfy, 0, *A)
    wait_for_boxes(comfy, 1)
    comfy.page.evaluate(_INTO_SUBGRAPH)
    wait_for_boxes(comfy, 1)
    comfy.settle()  # the page fits the view of a subgraph once, a moment after it is opened
    comfy.page.evaluate(_AT_ONCE)
    comfy.settle()
    drag(comfy, 0, *B)
    wait_for_boxes(comfy, 2)
    press(comfy, "Control+z", 1)
    drag(comfy, 0, *C)
    wait_for_boxes(comfy, 2)
    press(comfy, "Control+z", 1)
    press(comfy, "Control+y", 2)
    comfy.shot(f"undo-subgraph-{'vue' if vue else 'canvas'}")
    assert len(boxes_to_run(comfy)) == 2
    comfy.page.evaluate(_OUT_OF_SUBGRAPH)
    wait_for_boxes(comfy, 2)
    comfy.settle()
    drag(comfy, 0, *B)
    wait_for_boxes(comfy, 3)
    assert len(boxes_to_run(comfy)) == 3
    comfy.assert_clean()


# Shows a node's panel inside another node, as Vue does when two graphs have nodes of one id.
_SWAP = """
() => {
  const [a, b] = app.graph.nodes.flatMap((n) => n.widgets?.filter((w) => w.name === 'boxes') ?? []);
  const [home, away] = [a.element.parentElement, b.element.parentElement];
  home.replaceChildren(b.element);
  away.replaceChildren(a.element);
}
"""


def test_a_panel_in_another_node_takes_no_input(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy(vue=True)
    ids = picker_graph(comfy)
    comfy.page.evaluate(
        "([d, r, m]) => { const copy = app.graph.getNodeById(m).clone(); app.graph.add(copy);"
        "copy.pos = [1000, 80]; app.graph.getNodeById(d).connect(0, copy, 0); }",
        ids,
    )
    comfy.settle(1000)
    comfy.page.evaluate(_SWAP)
    drag(comfy, 0, *A)
    values = (
        "() => app.graph.nodes.flatMap((n) => n.widgets?.filter((w) => w.name === 'boxes')"
        ".map((w) => w.value) ?? [])"
    )
    assert comfy.page.evaluate(values) == ["", ""]
    comfy.assert_clean()


# What happens between two frames while a graph is loaded, and whether each picture is drawn again.
_BETWEEN_FRAMES = """
(height) => {
  const find = (n) => n.widgets?.find((w) => w.type === 'OMNIREFINER_REGIONS' && w.name === 'boxes');
  const widget = app.canvas.graph.nodes.map(find).find(Boolean);
  const panes = [...widget.element.querySelectorAll('.omnirefiner-pane')];
  window.omnirefinerBefore = panes.map((p) => p.toDataURL());
  const home = widget.element.parentElement;
  const boxes = JSON.stringify([{ draft: [0.2, 0.2, 0.7, 0.7], reference: [0.2, 0.2, 0.7, 0.7] }]);
  if (height) panes.forEach((p) => Object.assign(p.style, { height, flex: 'none' }));
  else widget.element.remove();
  widget.value = boxes;
  if (height) panes.forEach((p) => Object.assign(p.style, { height: '', flex: '' }));
  else home.append(widget.element);
}
"""
_DRAWN_AGAIN = """
() => [...document.querySelectorAll('.omnirefiner-pane')].every((p, i) =>
  p.toDataURL() !== window.omnirefinerBefore[i]
  && Math.abs(p.width / p.height - p.clientWidth / p.clientHeight) < 0.02)
"""


@RENDERERS
@pytest.mark.parametrize("height", ["", "700px"], ids=["taken out", "another size"])
def test_pictures_are_drawn_again_after_what_happens_between_two_frames(
    open_comfy: Callable[..., Any], vue: bool, height: str
) -> None:
    """A ResizeObserver sees neither; the picture would stay stretched, or without its boxes."""
    comfy = open_comfy(vue=vue)
    picker_graph(comfy)
    wait_for_boxes(comfy, 0)
    comfy.page.evaluate(_BETWEEN_FRAMES, height)
    comfy.page.wait_for_function(_DRAWN_AGAIN, timeout=20_000)
    comfy.assert_clean()
