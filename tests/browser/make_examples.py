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

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"


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
    note = {
        "type": "MarkdownNote", "pos": [20, -210], "size": [980, 200],
        "values": {"text": example.note},
    }  # fmt: skip
    nodes = [*example.nodes, note]
    for n in nodes:
        values = n.get("values", {})
        n["values"] = {k: json.dumps(v) if k == "boxes" else v for k, v in values.items()}
    return nodes


def picture_of(comfy: Any, entry: dict[str, Any]) -> Image.Image:
    """The thumbnail of a run: what its node shows; a heatmap, if there is one, is the after."""
    shown = next(o["omnirefiner"][0] for o in entry["outputs"].values()
                 if "pairs" in o.get("omnirefiner", [{}])[0])  # fmt: skip
    pair = shown["pairs"][0]
    after, name = ("overlay", "difference") if "overlay" in pair else ("after", "after")
    files = (comfy.server.base / "temp" / pair[k]["filename"] for k in ("before", after))
    boxes = [tuple(r["region"]) for r in pair.get("regions", [])]
    return thumbnails.of_a_run(*map(Image.open, files), boxes, name)


def case_of(example: Example) -> str:
    return next(n["values"]["case"] for n in example.nodes if "case" in n["values"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_make(open_comfy: Callable[..., Any], example: Example) -> None:
    comfy = open_comfy()
    build(comfy, with_note(example), example.links)
    workflow = comfy.page.evaluate("() => app.graph.serialize()")
    workflow["extra"] = {"ds": {"scale": 0.7, "offset": [60, 240]}}
    if example.runs:
        entry = comfy.run()
        assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
        picture = picture_of(comfy, entry)
        comfy.settle(1500)
        comfy.page.evaluate(
            "() => { app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [60, 240]; }"
        )
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
        "Puts the true detail of the reference into the draft, inside the mask. Paint the masks on Load "
        "Image (Open in MaskEditor), or enter the subgraph and draw boxes in Reference Refine."
    )
    assert [i["name"] for i in subgraph["inputs"]][:2] == ["draft", "reference"]
    comfy.shot("blueprint")
    (FOLDER.parent / "subgraphs").mkdir(exist_ok=True)
    write(FOLDER.parent / "subgraphs" / f"{name}.json", blueprint)
