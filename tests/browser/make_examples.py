"""Writes example_workflows/: run `pytest tests/browser/make_examples.py` after changing examples.py.

Not collected by a plain `pytest`. Each graph is built in the page, so that the file is what the page
itself saves; the thumbnail is made of the pictures that the workflow's own run gave.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import thumbnails
from tests.browser.examples import EXAMPLES, MASKED, Example, case, load, refine, save
from tests.browser.graphs import build
from tests.browser.model_files import add_models

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"


_MENUS = (80, 130)  # px that lie over the canvas at its left and its top
_ROOM = (1280, 740)  # px for a graph in a window of 1400 x 900
_UUID = re.compile(r"(?!00000000)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def write(path: Path, workflow: dict[str, Any]) -> None:
    """Write a workflow with its nodes numbered from 1, however many the page has made before, and
    with the same names for its subgraphs and their slots: what has not changed gives the same file.
    """
    text = json.dumps(renumbered(workflow), indent=1)
    for i, made in enumerate(dict.fromkeys(_UUID.findall(text))):
        text = text.replace(made, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path.stem}/{i}")))
    path.write_text(text + "\n")


def renumbered(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph, and the subgraphs in it, with other numbers for the nodes."""
    numbers = {node["id"]: i for i, node in enumerate(graph["nodes"], 1)}
    nodes = [n | {"id": numbers[n["id"]]} for n in graph["nodes"]]
    out = graph | {"nodes": nodes, "links": [_link(link, numbers) for link in graph["links"]]}
    if "last_node_id" in graph:
        out["last_node_id"] = len(nodes)
    if "state" in graph:
        out["state"] = graph["state"] | {"lastNodeId": len(nodes)}
    inner = (graph.get("definitions") or {}).get("subgraphs")
    if inner:
        out["definitions"] = graph["definitions"] | {"subgraphs": [renumbered(g) for g in inner]}
    return out


def _link(link: Any, numbers: dict[Any, int]) -> Any:
    """A link is a list (number, from, output, to, input, type), in a subgraph a mapping; the ends of
    a subgraph have fixed numbers below 0.
    """
    if isinstance(link, list):
        return [link[0], numbers[link[1]], link[2], numbers[link[3]], *link[4:]]
    ends = {k: numbers.get(link[k], link[k]) for k in ("origin_id", "target_id")}
    return link | ends


def with_note(example: Example) -> list[dict[str, Any]]:
    height = 150 if example.runs else 320
    note = {
        "type": "MarkdownNote", "pos": [20, -10 - height], "size": [980, height],
        "values": {"text": example.note},
    }  # fmt: skip
    nodes = [*example.nodes, note]
    for n in nodes:
        values = n.get("values", {})
        n["values"] = {k: json.dumps(v) if k == "boxes" else v for k, v in values.items()}
    return nodes


def whole_view(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Zoom and offset by which a window of common size shows the whole graph, clear of the menus."""
    left, top = (min(n["pos"][i] for n in nodes) for i in (0, 1))
    width = max(n["pos"][0] + n["size"][0] for n in nodes) - left
    height = max(n["pos"][1] + n["size"][1] for n in nodes) - top
    scale = round(min(0.8, _ROOM[0] / width, _ROOM[1] / height), 2)
    return {
        "scale": scale,
        "offset": [round(_MENUS[i] / scale - at) for i, at in enumerate((left, top))],
    }


def picture_of(comfy: Any, entry: dict[str, Any]) -> Image.Image:
    """The thumbnail of a run: the heatmap of what it compares, or else its repair."""
    shown = [p for o in entry["outputs"].values() for s in o.get("omnirefiner", []) for p in
             s.get("pairs", [])[:1]]  # fmt: skip
    pair = max(shown, key=lambda p: "overlay" in p)
    second, names = ("after", ("before", "after"))
    if "overlay" in pair:
        second, names = "overlay", ("picture", "difference")
    files = (comfy.server.base / "temp" / pair[k]["filename"] for k in ("before", second))
    boxes = [tuple(r["region"]) for r in pair.get("regions", [])]
    return thumbnails.of_a_run(*map(Image.open, files), boxes, names)


def case_of(example: Example) -> str:
    return next(n["values"]["case"] for n in example.nodes if "case" in n["values"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_make(open_comfy: Callable[..., Any], example: Example) -> None:
    comfy = open_comfy()
    build(comfy, with_note(example), example.links)
    workflow = comfy.page.evaluate("() => app.graph.serialize()")
    workflow["extra"] = {"ds": whole_view(workflow["nodes"])}
    add_models(workflow)
    if example.runs:
        entry = comfy.run()
        assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
        picture = picture_of(comfy, entry)
        comfy.settle(1500)
        comfy.page.evaluate("ds => Object.assign(app.canvas.ds, ds)", workflow["extra"]["ds"])
        comfy.settle(800)
        comfy.shot(f"example-{example.name}")
    else:
        picture = thumbnails.of_a_case(case_of(example))
    write(FOLDER / f"{example.name}.json", workflow)
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
        "Repairs a detail of the draft with the correct detail from the reference, inside the mask. Paint "
        "the masks in Load Image (Open in Mask Editor), or open the subgraph and draw boxes in Reference "
        "Refine."
    )
    assert [i["name"] for i in subgraph["inputs"]][:2] == ["draft", "reference"]
    comfy.shot("blueprint")
    (FOLDER.parent / "subgraphs").mkdir(exist_ok=True)
    write(FOLDER.parent / "subgraphs" / f"{name}.json", blueprint)
