"""Graphs that the browser tests build in the page, and pictures for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from PIL import Image

CASES = Path(__file__).resolve().parents[2] / "refiner_core" / "demo_cases"

_BUILD = """
([nodes, links]) => {
  app.graph.clear();
  // The page keeps widgets' values by the node's id, also over a clear: no id is used twice.
  app.graph.state.lastNodeId = window.omnirefinerTestIds = (window.omnirefinerTestIds ?? 0) + 20;
  const made = nodes.map(({ type, pos, size, values }) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = pos;
    const least = node.computeSize();
    if (size) node.setSize([Math.max(size[0], least[0] * 0.7), Math.max(size[1], least[1])]);
    for (const [name, value] of Object.entries(values ?? {})) {
      const widget = node.widgets?.find((w) => w.name === name);
      if (!widget) throw new Error(`${type} has no widget ${name}: ${node.widgets?.map((w) => w.name)}`);
      widget.value = value;
      widget.callback?.(value);
    }
    return node;
  });
  for (const [from, output, to, input] of links) {
    const slot = made[to].inputs.findIndex((i) => i.name === input);
    made[from].connect(output, made[to], slot);
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
  return made.map((n) => n.id);
}
"""


def build(
    comfy: Any, nodes: list[dict[str, Any]], links: list[tuple[int, int, int, str]]
) -> list[int]:
    """Build a graph of `{type, pos, size, values}` and links (from, output, to, input); the ids."""
    ids = comfy.page.evaluate(_BUILD, [nodes, links])
    comfy.settle(1200)
    return ids


def put_inputs(base: Path, case: str = "logo") -> None:
    """Put a demo case's pictures into the input folder, as Load Image finds them."""
    for name in ("draft", "reference"):
        shutil.copy(CASES / case / f"{name}.png", base / "input" / f"{name}.png")
    put_repairs(base / "input" / "repairs", case)
    put_picture(base, "huge.png", (16384, 2048))
    put_picture(base, "gone.png", (300, 200))


def put_repairs(folder: Path, case: str) -> None:
    """A folder of pictures to score: a case's draft, and one that is nearer to its target."""
    folder.mkdir(exist_ok=True)
    draft, target = (
        Image.open(CASES / case / f"{n}.png").convert("RGB") for n in ("draft", "target")
    )
    draft.save(folder / "a draft.png")
    Image.blend(draft, target, 0.8).save(folder / "b nearer.png")


def put_picture(base: Path, name: str, size: tuple[int, int]) -> None:
    """A picture of any size with four colours in the input folder."""
    picture = Image.new("RGB", size, (40, 90, 160))
    w, h = size
    picture.paste((220, 180, 60), (0, 0, w // 2, h // 2))
    picture.paste((90, 160, 80), (w // 2, h // 2, w, h))
    picture.save(base / "input" / name, compress_level=1)


def picker_graph(comfy: Any, width: int = 520, height: int = 560, **values: Any) -> list[int]:
    """Two Load Image nodes and a Mask Builder; returns [draft, reference, mask builder]."""
    nodes = [
        {"type": "LoadImage", "pos": [20, 80], "values": {"image": "draft.png"}},
        {"type": "LoadImage", "pos": [20, 480], "values": {"image": "reference.png"}},
        {
            "type": "OmniRefiner_MaskBuilder", "pos": [420, 80], "size": [width, height],
            "values": values,
        },
    ]  # fmt: skip
    return build(comfy, nodes, [(0, 0, 2, "image"), (1, 0, 2, "reference")])


def refine_graph(comfy: Any, width: int = 520, **values: Any) -> list[int]:
    """Two Load Image nodes and nano into a Reference Refine; [draft, reference, loader, refine]."""
    nodes = [
        {"type": "LoadImage", "pos": [20, 80], "values": {"image": "draft.png"}},
        {"type": "LoadImage", "pos": [20, 420], "values": {"image": "reference.png"}},
        {"type": "OmniRefiner_LoadRefiner", "pos": [20, 760]},
        {
            "type": "OmniRefiner_ReferenceRefine",
            "pos": [420, 60],
            "size": [width, 820],
            "values": values,
        },
    ]
    return build(comfy, nodes, [(0, 0, 3, "draft"), (1, 0, 3, "reference"), (2, 0, 3, "refiner")])


def value_of(comfy: Any, node: int, widget: str = "boxes") -> Any:
    return comfy.page.evaluate(
        "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value",
        [node, widget],
    )


def drag(comfy: Any, pane: int, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with the mouse on a pane (0 draft, 1 reference); fractions of the pane's picture."""
    x, y, width, height = frame_of(comfy, pane)
    mouse = comfy.page.mouse
    mouse.move(x + start[0] * width, y + start[1] * height)
    mouse.down()
    mouse.move(x + (start[0] + end[0]) / 2 * width, y + (start[1] + end[1]) / 2 * height)
    mouse.move(x + end[0] * width, y + end[1] * height, steps=4)
    mouse.up()
    comfy.settle(250)


def frame_of(comfy: Any, pane: int) -> tuple[float, float, float, float]:
    """Where the picture of a pane lies on the screen: fitted, with a margin of 4 px."""
    box = comfy.page.locator(".omnirefiner-pane").nth(pane).bounding_box()
    sizes = [
        Image.open(comfy.server.base / "input" / f"{n}.png").size for n in ("draft", "reference")
    ]
    w, h = sizes[pane]
    scale = min((box["width"] - 10) / w, (box["height"] - 10) / h)
    width, height = w * scale, h * scale
    x = box["x"] + (box["width"] - width) / 2
    y = box["y"] + (box["height"] - height) / 2
    return x, y, width, height
