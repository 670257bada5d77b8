"""The region picker in the page: mouse, keyboard, undo, copies, and what the server makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from refiner_core.images.boxes import parse_boxes
from refiner_core.images.geometry import Box, Extent
from tests.browser.graphs import build, drag, frame_of, picker_graph, refine_graph, value_of

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])


def pairs_of(comfy: Any, node: int) -> list[dict[str, Any]]:
    text = value_of(comfy, node)
    return json.loads(text) if text else []


@RENDERERS
def test_boxes_are_drawn_paired_edited_and_undone(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = picker_graph(comfy)[2]
    drag(comfy, 0, (0.25, 0.3), (0.5, 0.6))
    drag(comfy, 1, (0.2, 0.2), (0.8, 0.8))
    drag(comfy, 0, (0.6, 0.1), (0.9, 0.3))
    comfy.shot(f"picker-{'vue' if vue else 'canvas'}")
    first, second = pairs_of(comfy, node)
    assert first["draft"] == pytest.approx([0.25, 0.3, 0.5, 0.6], abs=0.01)
    assert first["reference"] == pytest.approx([0.2, 0.2, 0.8, 0.8], abs=0.02)
    assert second["reference"] is None

    drag(comfy, 0, (0.7, 0.2), (0.7, 0.4))  # moves
    assert pairs_of(comfy, node)[1]["draft"] == pytest.approx([0.6, 0.3, 0.9, 0.5], abs=0.01)
    drag(comfy, 0, (0.9, 0.5), (0.95, 0.7))  # a corner resizes
    assert pairs_of(comfy, node)[1]["draft"] == pytest.approx([0.6, 0.3, 0.95, 0.7], abs=0.01)
    comfy.page.keyboard.press("Shift+ArrowLeft")
    moved = pairs_of(comfy, node)[1]["draft"]
    assert moved[0] == pytest.approx(0.6 - 10 / 640, abs=0.01)
    comfy.page.keyboard.press("Delete")
    assert len(pairs_of(comfy, node)) == 1
    assert comfy.page.evaluate("id => !!app.graph.getNodeById(id)", node), "Del removed the node"

    comfy.page.keyboard.press("Control+z")
    comfy.settle(600)
    assert len(pairs_of(comfy, node)) == 2
    comfy.page.keyboard.press("Control+y")
    comfy.settle(600)
    assert len(pairs_of(comfy, node)) == 1
    comfy.assert_clean()


def drag_by(
    comfy: Any, pane: int, start: tuple[float, float], by: tuple[float, float], from_px: float = 0
) -> None:
    """Drag from a point of a pane's picture (fractions), `from_px` px right and below of it, by px."""
    x, y, width, height = frame_of(comfy, pane)
    at = x + start[0] * width + from_px, y + start[1] * height + from_px
    mouse = comfy.page.mouse
    mouse.move(*at)
    mouse.down()
    mouse.move(at[0] + by[0] / 2, at[1] + by[1] / 2)
    mouse.move(at[0] + by[0], at[1] + by[1], steps=3)
    mouse.up()
    comfy.settle(250)


@RENDERERS
def test_a_drag_beside_a_selected_box_draws(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    node = picker_graph(comfy)[2]
    drag(comfy, 0, (0.25, 0.3), (0.5, 0.6))
    drag_by(comfy, 0, (0.5, 0.6), (40, 40), from_px=6)  # beside the corner, outside
    first, second = (pair["draft"] for pair in pairs_of(comfy, node))
    assert first == pytest.approx([0.25, 0.3, 0.5, 0.6], abs=0.01)
    assert second[0] > 0.5 and second[1] > 0.6
    comfy.page.keyboard.press("n")  # the first is selected again
    comfy.page.keyboard.down("Shift")
    drag(comfy, 0, (0.3, 0.35), (0.45, 0.55))
    comfy.page.keyboard.up("Shift")
    boxes = [pair["draft"] for pair in pairs_of(comfy, node)]
    assert boxes[:2] == [first, second]
    assert boxes[2] == pytest.approx([0.3, 0.35, 0.45, 0.55], abs=0.01)
    comfy.assert_clean()


@RENDERERS
def test_corners_are_dragged_and_what_is_outlined_is_repaired(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = refine_graph(comfy)[3]
    drag(comfy, 0, (0.25, 0.21), (0.68, 0.84))
    drag(comfy, 1, (0.13, 0.11), (0.9, 0.9))
    x0, y0, x1, y1 = pairs_of(comfy, node)[0]["draft"]
    comfy.page.get_by_role("button", name="four corners").click()
    (pair,) = pairs_of(comfy, node)
    assert pair["draft"] == [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    drag_by(comfy, 0, (x1, y1), (-14, -10))
    (pair,) = pairs_of(comfy, node)
    moved = pair["draft"]
    assert moved[:2] == [[x0, y0], [x1, y0]] and moved[3] == [x0, y1]
    assert moved[2][0] < x1 - 0.01 and moved[2][1] < y1 - 0.01
    x, y, width, height = frame_of(comfy, 1)
    (ax, ay), (bx, by) = pair["reference"][:2]
    handle = x + (ax + bx) / 2 * width, y + (ay + by) / 2 * height - 20
    comfy.page.mouse.move(*handle)
    comfy.page.mouse.down()
    comfy.page.mouse.move(handle[0] + 8, handle[1] + 1, steps=4)
    comfy.page.mouse.up()
    comfy.settle(250)
    comfy.shot(f"picker-corners-{'vue' if vue else 'canvas'}")
    turned = pairs_of(comfy, node)[0]["reference"]
    assert turned[0][0] > ax and turned[0][1] < ay and turned[1][1] > by
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    shown = entry["outputs"][str(node)]["omnirefiner"][0]
    before, after = (
        np.asarray(
            Image.open(comfy.server.base / "temp" / shown["pairs"][0][k]["filename"])
        ).astype(int)
        for k in ("before", "after")
    )
    outline = [(px * 640, py * 427) for px, py in moved]
    drawn = Image.new("L", (640, 427))
    ImageDraw.Draw(drawn).polygon(outline, fill=255)
    allowed = np.asarray(drawn.filter(ImageFilter.MaxFilter(3))) > 0  # pixels it cuts count, too
    changed = (before != after).any(-1)
    assert changed.sum() > 100 and not (changed & ~allowed).any()
    assert not changed[round(y1 * 427) - 3 :, round(x1 * 640) - 3 :].any()  # the box's old corner
    comfy.assert_clean()


@RENDERERS
def test_a_draft_from_another_node_is_shown_by_a_first_run(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    scale = {"upscale_method": "bilinear", "width": 640, "height": 427, "crop": "disabled"}
    nodes = [
        {"type": "LoadImage", "pos": [20, 80], "values": {"image": "draft.png"}},
        {"type": "ImageScale", "pos": [20, 420], "values": scale},
        {"type": "LoadImage", "pos": [20, 620], "values": {"image": "reference.png"}},
        {"type": "OmniRefiner_ReferenceRefine", "pos": [420, 60], "size": [520, 820]},
    ]
    links = [(0, 0, 1, "image"), (1, 0, 3, "draft"), (2, 0, 3, "reference")]
    node = build(comfy, nodes, links)[3]
    pane = comfy.page.locator(".omnirefiner-pane").first
    assert not pane.get_attribute("data-shows")  # nothing is known of it before a run
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.page.wait_for_function(
        "() => document.querySelector('.omnirefiner-pane').dataset.shows === '640x427'"
    )
    note = comfy.page.locator(".omnirefiner-live [role=status]")
    note.wait_for(state="visible")
    comfy.shot(f"picker-first-run-{'vue' if vue else 'canvas'}")
    drag(comfy, 0, (0.25, 0.21), (0.68, 0.84))
    assert len(pairs_of(comfy, node)) == 1 and not note.is_visible()
    entry = comfy.run()
    assert entry["outputs"][str(node)]["omnirefiner"][0]["pairs"]
    comfy.page.locator(".omnirefiner-view").wait_for(state="visible", timeout=20_000)
    comfy.assert_clean()


def stroke(comfy: Any, pane: int, *points: tuple[float, float]) -> None:
    """Drag along points of a pane's picture, fractions."""
    x, y, width, height = frame_of(comfy, pane)
    path = [(x + px * width, y + py * height) for px, py in points]
    comfy.page.mouse.move(*path[0])
    comfy.page.mouse.down()
    for point in path[1:]:
        comfy.page.mouse.move(*point, steps=4)
    comfy.page.mouse.up()
    comfy.settle(250)


@RENDERERS
def test_details_are_painted_and_erased_and_what_is_painted_is_repaired(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = refine_graph(comfy, align_reference="off")[3]
    comfy.page.get_by_role("button", name="Paint the detail").click()
    stroke(comfy, 0, (0.64, 0.4), (0.8, 0.4), (0.8, 0.6))
    stroke(comfy, 0, (0.68, 0.6))  # a dot on the same shape
    stroke(comfy, 1, (0.3, 0.3), (0.7, 0.7))
    (pair,) = pairs_of(comfy, node)
    assert [len(pair[side]["strokes"]) for side in ("draft", "reference")] == [2, 1]
    assert pair["draft"]["strokes"][0]["points"][0] == pytest.approx([0.64, 0.4], abs=0.01)
    comfy.page.get_by_role("button", name="Erase parts").click()
    stroke(comfy, 0, (0.8, 0.6))
    comfy.shot(f"picker-brush-{'vue' if vue else 'canvas'}")
    (pair,) = pairs_of(comfy, node)
    assert [s.get("erase", False) for s in pair["draft"]["strokes"]] == [False, False, True]
    comfy.page.keyboard.press("Control+z")
    comfy.settle(600)
    assert len(pairs_of(comfy, node)[0]["draft"]["strokes"]) == 2
    comfy.page.keyboard.press("Control+y")
    comfy.settle(600)
    assert pairs_of(comfy, node) == [pair]
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    shown = entry["outputs"][str(node)]["omnirefiner"][0]
    before, after = (
        np.asarray(
            Image.open(comfy.server.base / "temp" / shown["pairs"][0][k]["filename"])
        ).astype(int)
        for k in ("before", "after")
    )
    changed = (before != after).any(-1)
    (drawn,) = parse_boxes(json.dumps([pair]))
    allowed = drawn.draft.cover(Extent(640, 427), Box(0, 0, 640, 427))[0, 0].numpy() > 0
    assert changed.sum() > 100 and not (changed & ~allowed).any()
    assert not allowed[round(0.6 * 427), round(0.8 * 640)], "what was erased is repaired"
    comfy.assert_clean()


@RENDERERS
def test_words_that_change_in_a_drag_do_not_move_the_pictures(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = refine_graph(comfy)[3]
    panes = comfy.page.locator(".omnirefiner-pane")
    words = comfy.page.locator(".omnirefiner-picker .omnirefiner-status")

    def state() -> tuple[str, list[Any]]:
        return words.inner_text(), [panes.nth(i).bounding_box() for i in (0, 1)]

    comfy.page.wait_for_function(
        "() => document.querySelectorAll('.omnirefiner-pane[data-shows]:not([data-shows=\"\"])')"
        ".length === 2"
    )
    comfy.settle(1500)  # the panes are arranged for the pictures
    states = [state()]
    drag(comfy, 0, (0.1, 0.1), (0.3, 0.3))
    states.append(state())
    drag(comfy, 1, (0.1, 0.1), (0.3, 0.3))
    states.append(state())
    comfy.page.get_by_role("button", name="Paint the detail").click()
    comfy.page.keyboard.press("Escape")
    before = state()
    stroke(comfy, 0, (0.5, 0.6), (0.7, 0.6), (0.7, 0.8))
    after = state()
    assert len({words for words, _ in (*states, before, after)}) >= 3
    assert all(places == states[0][1] for _, places in states) and before[1] == after[1]
    points = pairs_of(comfy, node)[1]["draft"]["strokes"][0]["points"]
    assert points[0] == pytest.approx([0.5, 0.6], abs=0.01)
    assert points[-1] == pytest.approx([0.7, 0.8], abs=0.01)
    comfy.load(comfy.page.evaluate("() => app.graph.serialize()"))
    comfy.page.wait_for_function(
        "(words) => document.querySelector('.omnirefiner-picker .omnirefiner-status')?.textContent"
        " === words",
        arg=after[0],
        timeout=20_000,
    )
    comfy.assert_clean()


@RENDERERS
def test_a_box_that_is_too_large_is_named_while_it_is_drawn(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    _, _, loader, node = refine_graph(comfy, megapixels=0.05)
    status = comfy.page.locator(".omnirefiner-picker .omnirefiner-status")
    x, y, width, height = frame_of(comfy, 0)
    mouse = comfy.page.mouse
    mouse.move(x + 0.05 * width, y + 0.05 * height)
    mouse.down()
    mouse.move(x + 0.9 * width, y + 0.9 * height, steps=3)
    assert "Box 1 is large" not in status.inner_text(), "nano works at the draft's own resolution"
    mouse.move(x + 0.99 * width, y + 0.99 * height, steps=3)
    assert "Box 1 is large" in status.inner_text(), "but not on all of it"
    comfy.page.evaluate(
        "(id) => { const [recipe] = app.graph.getNodeById(id).widgets; recipe.value = 'kontext';"
        " recipe.callback?.('kontext'); }",
        loader,
    )
    mouse.move(x + 0.2 * width, y + 0.2 * height, steps=3)
    assert "Box 1 is large" not in status.inner_text()
    mouse.move(x + 0.9 * width, y + 0.9 * height, steps=3)
    assert "Box 1 is large" in status.inner_text()
    mouse.move(x + 0.25 * width, y + 0.25 * height, steps=3)
    assert "Box 1 is large" not in status.inner_text()
    mouse.move(x + 0.92 * width, y + 0.92 * height, steps=3)
    mouse.up()
    comfy.settle(250)
    comfy.shot(f"picker-too-large-{'vue' if vue else 'canvas'}")
    assert "Box 1 is large" in status.inner_text() and pairs_of(comfy, node)
    comfy.assert_clean()


@RENDERERS
def test_the_mask_editor_opens_from_the_panel(open_comfy: Callable[..., Any], vue: bool) -> None:
    comfy = open_comfy(vue=vue)
    draft, _, _, node = refine_graph(comfy)
    linked = """
    ([id, name]) => {
      const link = app.graph.getNodeById(id).inputs.find((i) => i.name === name).link;
      return link === null ? null : app.graph.getLink(link).origin_id;
    }
    """
    assert comfy.page.evaluate(linked, [node, "mask"]) is None
    comfy.page.get_by_role("button", name="mask editor").first.click()
    dialog = comfy.page.locator(".mask-editor-dialog, .maskEditor-dialog-root, [class*=maskEditor]")
    dialog.first.wait_for(state="visible", timeout=20_000)
    comfy.shot(f"picker-mask-editor-{'vue' if vue else 'canvas'}")
    assert comfy.page.evaluate(linked, [node, "mask"]) == draft
    comfy.page.get_by_role("button", name="Cancel").first.click()
    comfy.settle(400)


@RENDERERS
def test_boxes_survive_copies_saving_and_reloading(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = picker_graph(comfy)[2]
    drag(comfy, 0, (0.25, 0.3), (0.5, 0.6))
    text = value_of(comfy, node)
    comfy.page.evaluate(
        "id => { app.canvas.selectNode(app.graph.getNodeById(id));"
        "app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }",
        node,
    )
    comfy.settle()
    copies = comfy.page.evaluate(
        "() => app.graph.nodes.filter((n) => n.type === 'OmniRefiner_MaskBuilder')"
        ".map((n) => n.widgets.find((w) => w.name === 'boxes').value)"
    )
    assert copies == [text, text]
    saved = comfy.page.evaluate("() => app.graph.serialize()")
    comfy.open()
    comfy.load(saved)
    assert value_of(comfy, node) == text
    prompt = comfy.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt[str(node)]["inputs"]["boxes"] == text
    comfy.assert_clean()


@RENDERERS
def test_what_is_boxed_is_repaired_and_nothing_else(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = refine_graph(comfy)[3]
    drag(comfy, 0, (0.25, 0.2155), (0.6734, 0.8407))
    drag(comfy, 1, (0.135, 0.1175), (0.8925, 0.9025))
    comfy.shot(f"refine-regions-{'vue' if vue else 'canvas'}")
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(1500)
    comfy.shot(f"refine-result-{'vue' if vue else 'canvas'}")
    shown = entry["outputs"][str(node)]["omnirefiner"][0]
    region = shown["report"]["regions"][0]["region"]
    x0, y0, x1, y1 = json.loads(value_of(comfy, node))[0]["draft"]
    assert region == [round(x0 * 640), round(y0 * 427), round(x1 * 640), round(y1 * 427)]
    files = [
        comfy.server.base / "temp" / shown["pairs"][0][k]["filename"] for k in ("before", "after")
    ]
    before, after = (np.asarray(Image.open(f)).astype(int) for f in files)
    changed = np.argwhere((before != after).any(-1))
    assert len(changed) > 100
    assert changed.min(0).tolist() >= [region[1], region[0]]
    assert (changed.max(0) < [region[3], region[2]]).all()
    comfy.page.get_by_role("tab", name="Report").click()
    comfy.settle()
    comfy.shot(f"refine-report-{'vue' if vue else 'canvas'}")
    assert "nano" in comfy.page.locator(".omnirefiner-table").inner_text()
    comfy.assert_clean()


@RENDERERS
def test_the_wheel_zooms_a_clicked_picture_to_point_exactly(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    node = picker_graph(comfy)[2]
    x, y, width, height = frame_of(comfy, 0)
    at = x + 0.7 * width, y + 0.5 * height
    graph = comfy.page.evaluate("() => app.canvas.ds.scale")
    comfy.page.mouse.click(*at)
    for _ in range(6):
        comfy.page.mouse.wheel(0, -100)
        comfy.settle(60)
    assert comfy.page.evaluate("() => app.canvas.ds.scale") == graph, "the graph was zoomed too"
    zoom = 1.2**6  # what is under the pointer stays there
    mouse = comfy.page.mouse
    mouse.move(at[0] - 30, at[1] - 30)
    mouse.down()
    mouse.move(at[0] + 30, at[1] + 30, steps=4)
    mouse.up()
    comfy.settle(250)
    comfy.shot(f"picker-zoomed-{'vue' if vue else 'canvas'}")
    half = 30 / zoom / width, 30 / zoom / height
    (pair,) = pairs_of(comfy, node)
    expected = [0.7 - half[0], 0.5 - half[1], 0.7 + half[0], 0.5 + half[1]]
    assert pair["draft"] == pytest.approx(expected, abs=0.004)

    comfy.page.keyboard.down(" ")  # moves the picture and draws nothing
    mouse.move(*at)
    mouse.down()
    mouse.move(at[0] + 20, at[1], steps=3)
    mouse.up()
    comfy.page.keyboard.up(" ")
    assert pairs_of(comfy, node) == [pair]
    comfy.page.keyboard.press("0")
    drag(comfy, 0, (0.1, 0.1), (0.3, 0.4))
    assert pairs_of(comfy, node)[1]["draft"] == pytest.approx([0.1, 0.1, 0.3, 0.4], abs=0.01)
    comfy.assert_clean()


def test_inside_a_subgraph_the_pictures_are_those_outside(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    node = picker_graph(comfy)[2]
    comfy.page.evaluate(ENTER_SUBGRAPH, node)
    comfy.settle(1500)
    drag(comfy, 0, (0.25, 0.3), (0.5, 0.6))
    comfy.shot("picker-subgraph")
    inner = "() => app.canvas.graph.nodes[0].widgets.find((w) => w.name === 'boxes').value"
    (pair,) = json.loads(comfy.page.evaluate(inner))
    assert pair["draft"] == pytest.approx([0.25, 0.3, 0.5, 0.6], abs=0.01)
    comfy.assert_clean()


ENTER_SUBGRAPH = """
(id) => {
  const { node, subgraph } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
  app.canvas.openSubgraph(subgraph, node);
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 40] });
}
"""


def veil_at(comfy: Any, x: float, y: float) -> float:
    """How much redder than blue the draft is on the screen at a point, fractions; 0..255."""
    left, top, width, height = frame_of(comfy, 0)
    clip = {"x": left + x * width - 2, "y": top + y * height - 2, "width": 4, "height": 4}
    shot = Image.open(io.BytesIO(comfy.page.screenshot(clip=clip))).convert("RGB")
    pixels = np.asarray(shot).astype(float)
    return float(pixels[..., 0].mean() - pixels[..., 2].mean())


@RENDERERS
def test_the_mask_that_the_server_made_lies_over_the_draft_in_red(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    box = {"draft": [0.05, 0.1, 0.3, 0.4], "reference": None}
    nodes = [
        {"type": "LoadImage", "pos": [20, 80], "values": {"image": "draft.png"}},
        {"type": "OmniRefiner_MaskBuilder", "pos": [420, 80], "size": [520, 560],
         "values": {"boxes": json.dumps([box]), "grow": 32}},
        {"type": "MaskPreview", "pos": [1000, 80]},
    ]  # fmt: skip
    node = build(comfy, nodes, [(0, 0, 1, "image"), (1, 0, 2, "mask")])[1]
    inside, grown, outside = (0.2, 0.2), (0.2, 0.4 + 16 / 427), (0.6, 0.1)
    before = [veil_at(comfy, *point) for point in (inside, grown, outside)]
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(800)
    comfy.shot(f"picker-veil-{'vue' if vue else 'canvas'}")
    after = [veil_at(comfy, *point) for point in (inside, grown, outside)]
    reddened = [b - a for a, b in zip(before, after, strict=True)]
    assert reddened[0] > 60 and reddened[1] > 60 and abs(reddened[2]) < 3, reddened
    # A changed box makes another mask: the old one is taken away.
    drag(comfy, 0, (0.1, 0.3), (0.1, 0.25))
    assert json.loads(value_of(comfy, node))[0]["draft"] != box["draft"]
    assert abs(veil_at(comfy, *grown) - before[1]) < 30
    comfy.assert_clean()


@RENDERERS
def test_connected_masks_are_named_instead_of_boxes(
    open_comfy: Callable[..., Any], vue: bool
) -> None:
    comfy = open_comfy(vue=vue)
    draft, reference, _, node = refine_graph(comfy)
    connect = """
    ([from, to, name]) => {
      const target = app.graph.getNodeById(to);
      const slot = target.inputs.findIndex((i) => i.name === name);
      app.graph.getNodeById(from).connect(1, target, slot);
    }
    """
    status = comfy.page.locator(".omnirefiner-picker [role=status]")
    assert "box" in status.inner_text()
    comfy.page.evaluate(connect, [draft, node, "mask"])
    status.get_by_text("reference_mask").wait_for()
    comfy.page.evaluate(connect, [reference, node, "reference_mask"])
    status.get_by_text("connected masks").wait_for()
    comfy.assert_clean()
