"""What a person does in the page, by mouse and keyboard alone: find nodes, upload, connect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_IDS = "() => app.graph.nodes.map((n) => String(n.id))"
# Where a slot is on the screen.
_SLOT = """
([id, name, output]) => {
  const node = app.graph.getNodeById(id);
  const slot = (output ? node.outputs : node.inputs).findIndex((s) => s.name === name);
  const [x, y] = output ? node.getOutputPos(slot) : node.getInputPos(slot);
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  return [(x + offset[0]) * scale + left, (y + offset[1]) * scale + top];
}
"""
_LINKED = """
([id, name]) => app.graph.getNodeById(id).inputs.find((s) => s.name === name).link !== null
"""
# Where the classic canvas draws a node's button.
_BUTTON = """
(id) => {
  const node = app.graph.getNodeById(id);
  const button = node.widgets.find((w) => w.type === 'button');
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10];
  return [(x + offset[0]) * scale + left, (y + offset[1]) * scale + top];
}
"""


def add_node(comfy: Any, word: str, x: int, y: int) -> str:
    """Double-click the empty canvas, type a word, take the first node found; its id.

    `x`, `y` is where on the screen the middle of the node's title goes.
    """
    before = set(comfy.page.evaluate(_IDS))
    search = comfy.page.locator("input:focus")
    for _ in range(10):  # a page that is still busy takes two clicks for single ones
        comfy.page.mouse.dblclick(x, y)
        comfy.settle(1000)
        if search.count():
            break
    search.wait_for(timeout=5000)
    comfy.page.keyboard.type(word, delay=20)
    for _ in range(8):  # the list is there a moment after the last letter
        comfy.settle(800)
        if set(comfy.page.evaluate(_IDS)) != before:
            break
        comfy.page.keyboard.press("Enter")
    comfy.page.mouse.move(x, y + 3)  # the node follows the pointer until it is put down
    comfy.settle(200)
    comfy.page.mouse.click(x, y)
    comfy.settle()
    (new,) = set(comfy.page.evaluate(_IDS)) - before
    return new


def add_blueprint(comfy: Any, name: str, x: int, y: int) -> str:
    """Take a node from the node library and click where it goes; its id."""
    before = set(comfy.page.evaluate(_IDS))
    library = comfy.page.get_by_label("Node Library (n)")
    library.click()
    comfy.page.locator("input[placeholder*='earch']").first.fill(name)
    comfy.page.get_by_text(name).first.click()
    comfy.page.mouse.move(x, y)
    comfy.page.mouse.click(x, y)
    for _ in range(50):
        new = set(comfy.page.evaluate(_IDS)) - before
        if new:
            break
        comfy.settle(200)
    library.click()
    comfy.settle()
    (node,) = new
    return node


def upload(comfy: Any, node: str, file: Path) -> None:
    """Choose a file of one's own in a Load Image node."""
    with comfy.page.expect_file_chooser() as chooser:
        if comfy.settings["Comfy.VueNodes.Enabled"]:
            comfy.page.locator(f"[data-node-id='{node}'] label:has(input[type=file])").click()
        else:
            comfy.page.mouse.click(*comfy.page.evaluate(_BUTTON, node))
    chooser.value.set_files(file)
    comfy.settle(1500)


def connect(comfy: Any, source: tuple[str, str], target: tuple[str, str]) -> None:
    """Drag a link from (node, output) to (node, input); again where a busy page missed it."""
    mouse = comfy.page.mouse
    for _ in range(3):
        start = comfy.page.evaluate(_SLOT, [*source, True])
        end = comfy.page.evaluate(_SLOT, [*target, False])
        mouse.move(*start)
        mouse.down()
        mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=5)
        mouse.move(*end, steps=5)
        comfy.settle(100)
        mouse.up()
        comfy.settle()
        if comfy.page.evaluate(_LINKED, list(target)):
            return
    raise AssertionError(f"{source} could not be connected with {target}")
