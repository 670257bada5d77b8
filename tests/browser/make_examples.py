"""Writes example_workflows/: run `pytest tests/browser/make_examples.py` after changing examples.py.

Not collected by a plain `pytest`. Each graph is built in the page, so that the file is what the page
itself saves; the thumbnail is made of the pictures that the workflow's own run gave.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw

from refiner_core.commands.demo import CASES
from tests.browser.examples import EXAMPLES, MASKED, Example, case, load, refine, save
from tests.browser.graphs import build

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
SIZE = (480, 320)


def with_note(example: Example) -> list[dict[str, Any]]:
    note = {
        "type": "MarkdownNote", "pos": [20, -210], "size": [980, 200],
        "values": {"text": example.note},
    }  # fmt: skip
    nodes = [*example.nodes, note]
    for n in nodes:
        values = n.get("values", {})
        n["values"] = {k: json.dumps(v) if k == "boxes" else v for k, v in values.items()}
    return nodes


def thumbnail(before: Image.Image, after: Image.Image) -> Image.Image:
    """Before on the left, after on the right of a line through the middle of what changed."""
    scale = max(SIZE[0] / before.width, SIZE[1] / before.height)
    size = (round(before.width * scale), round(before.height * scale))
    left, right = (p.convert("RGB").resize(size, Image.Resampling.LANCZOS) for p in (before, after))
    box = Image.new("RGB", size)
    box.paste(left)
    changed = (
        ImageChops.difference(left, right).convert("L").point(lambda v: 255 * (v > 8)).getbbox()
    )
    x0, y0, x1, y1 = changed or (0, 0, *size)
    middle = (x0 + x1) // 2
    box.paste(right.crop((middle, 0, *size)), (middle, 0))
    ImageDraw.Draw(box).line([(middle, 0), (middle, size[1])], fill="white", width=2)
    at_x = min(max(middle - SIZE[0] // 2, 0), size[0] - SIZE[0])
    at_y = min(max((y0 + y1) // 2 - SIZE[1] // 2, 0), size[1] - SIZE[1])
    return box.crop((at_x, at_y, at_x + SIZE[0], at_y + SIZE[1]))


def pictures_of(comfy: Any, entry: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    """Before and after of the node that shows them; a heatmap, if there is one, is the after."""
    shown = next(o["omnirefiner"][0] for o in entry["outputs"].values()
                 if "pairs" in o.get("omnirefiner", [{}])[0])  # fmt: skip
    pair = shown["pairs"][0]
    after = "overlay" if "overlay" in pair else "after"
    first, second = (comfy.server.base / "temp" / pair[k]["filename"] for k in ("before", after))
    return Image.open(first), Image.open(second)


def drawn_thumbnail(example: Example) -> Image.Image:
    """For a workflow that cannot run here: the draft's detail and the reference side by side."""
    name = next(n["values"]["case"] for n in example.nodes if "case" in n["values"])
    draft, mask, reference = (
        Image.open(CASES / name / f"{n}.png") for n in ("draft", "mask", "reference")
    )
    x0, y0, x1, y1 = mask.convert("L").getbbox() or (0, 0, *mask.size)
    side = min(*draft.size, round(1.4 * max(x1 - x0, y1 - y0)))
    left = min(max((x0 + x1 - side) // 2, 0), draft.width - side)
    top = min(max((y0 + y1 - side) // 2, 0), draft.height - side)
    sheet = Image.new("RGB", SIZE, (24, 24, 24))
    sheet.paste(
        draft.convert("RGB").crop((left, top, left + side, top + side)).resize((238, 238)), (0, 41)
    )
    other = reference.convert("RGB")
    other.thumbnail((238, 238))
    sheet.paste(other, (242 + (238 - other.width) // 2, 41 + (238 - other.height) // 2))
    return sheet


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_make(open_comfy: Callable[..., Any], example: Example) -> None:
    comfy = open_comfy()
    build(comfy, with_note(example), example.links)
    workflow = comfy.page.evaluate("() => app.graph.serialize()")
    workflow["extra"] = {"ds": {"scale": 0.7, "offset": [60, 240]}}
    if example.runs:
        entry = comfy.run()
        assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
        picture = thumbnail(*pictures_of(comfy, entry))
        comfy.settle(1500)
        comfy.page.evaluate(
            "() => { app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [60, 240]; }"
        )
        comfy.settle(800)
        comfy.shot(f"example-{example.name}")
    else:
        picture = drawn_thumbnail(example)
    (FOLDER / f"{example.name}.json").write_text(json.dumps(workflow, indent=1) + "\n")
    picture.save(FOLDER / f"{example.name}.jpg", quality=88)


_BLUEPRINT = """
(name) => {
  const parts = app.graph.nodes.filter((n) => /LoadRefiner|ReferenceRefine/.test(n.type));
  const { node, subgraph } = app.graph.convertToSubgraph(new Set(parts));
  node.title = subgraph.name = name;
  for (const other of app.graph.nodes.filter((n) => n !== node)) app.graph.remove(other);
  return app.graph.serialize();
}
"""


def test_make_blueprint(open_comfy: Callable[..., Any]) -> None:
    """The whole refiner as one node: subgraphs/, which ComfyUI offers among its blueprints."""
    comfy = open_comfy()
    name = "Repair details from a reference"
    build(comfy, [load(), case("logo"), refine(), save()], MASKED)
    blueprint = comfy.page.evaluate(_BLUEPRINT, name)
    subgraph = blueprint["definitions"]["subgraphs"][0]
    subgraph["category"] = "OmniRefiner"
    subgraph["description"] = (
        "Puts the true detail of the reference into the draft, inside the mask."
    )
    assert [i["name"] for i in subgraph["inputs"]][:2] == ["draft", "reference"]
    comfy.shot("blueprint")
    (FOLDER.parent / "subgraphs").mkdir(exist_ok=True)
    (FOLDER.parent / "subgraphs" / f"{name}.json").write_text(
        json.dumps(blueprint, indent=1) + "\n"
    )
