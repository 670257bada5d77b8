"""The example workflows in the page: they open, run and change the picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.person import add_blueprint

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(p.stem for p in FOLDER.glob("*.json"))


def repaired(comfy: Any, entry: dict[str, Any]) -> float:
    """The share of pixels by which the saved picture differs from the draft that came in."""
    saved = [
        i for o in entry["outputs"].values() for i in o.get("images", []) if i["type"] == "output"
    ]
    file = comfy.server.base / "output" / saved[0]["subfolder"] / saved[0]["filename"]
    refined = np.asarray(Image.open(file).convert("RGB"))
    shown = [o["omnirefiner"][0] for o in entry["outputs"].values() if "omnirefiner" in o]
    drafts = [s["inputs"]["draft"] for s in shown if "inputs" in s]
    if not drafts:  # taken apart: no node shows both
        return 1.0
    draft = Image.open(comfy.server.base / "temp" / drafts[0]["filename"]).convert("RGB")
    if draft.size != (refined.shape[1], refined.shape[0]):
        draft = draft.resize((refined.shape[1], refined.shape[0]))
        return float((np.abs(np.asarray(draft).astype(int) - refined) > 40).mean())
    return float((np.asarray(draft) != refined).any(-1).mean())


# Files in miniature stand in for what these workflows name, at two steps and a small size.
SHORTEN = """
() => {
  const refine = app.graph.nodes.find((n) => n.type === 'OmniRefiner_ReferenceRefine');
  for (const [name, value] of [['steps', 2], ['megapixels', 0.03]])
    refine.widgets.find((w) => w.name === name).value = value;
  return app.graph.nodes.find((n) => n.type === 'MarkdownNote').widgets[0].value;
}
"""
NAME_FOLDER = """
(name) => {
  const loader = app.graph.nodes.find((n) => n.type === 'OmniRefiner_LoadFolder');
  loader.widgets.find((w) => w.name === 'folder').value = name;
}
"""
DOWNLOADS = ("Kontext", "ImageCritic", "RefineAnything", "FLUX.2")


@pytest.mark.parametrize("name", NAMES)
def test_template_opens_and_runs(published: Any, open_comfy: Callable[..., Any], name: str) -> None:
    comfy = open_comfy()
    comfy.load(json.loads((FOLDER / f"{name}.json").read_text()))
    missing = comfy.page.evaluate(
        "() => app.graph.nodes.map((n) => n.type).filter((t) => t !== 'MarkdownNote' && t !== 'Note'"
        " && !LiteGraph.registered_node_types[t])"
    )
    assert missing == []
    if "SAM3" in name:
        return  # its weights exist in full size only
    if any(word in name for word in DOWNLOADS):
        note = comfy.page.evaluate(SHORTEN)
        assert "`models` folder" in note
        values = json.loads((FOLDER / f"{name}.json").read_text())["nodes"][0]["widgets_values"]
        files = [v for v in values if str(v).endswith(".safetensors")]
        assert files and all(f in note for f in files), "the note names every file"
    if "folder" in name:
        comfy.page.evaluate(NAME_FOLDER, "repairs")
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(1000)
    comfy.shot(f"template-{name}")
    if "folder" in name:
        said = str([o["text"] for o in entry["outputs"].values() if "text" in o])
        scores = dict(re.findall(r"([\w ]+\.png) · [^:]*: distance (0\.\d+)", said))
        assert list(scores) == ["a draft.png", "b nearer.png"], said
        assert float(scores["b nearer.png"]) < float(scores["a draft.png"])
        assert comfy.page.locator(".omnirefiner-count").inner_text() == "1 / 2"
    else:
        assert 0.005 < repaired(comfy, entry) <= 1
    comfy.assert_clean()


def test_the_blueprint_is_offered_and_runs(open_comfy: Callable[..., Any]) -> None:
    comfy = open_comfy()
    add_blueprint(comfy, BLUEPRINT, 900, 300)
    comfy.page.evaluate(CONNECT)
    comfy.settle(800)
    comfy.shot("blueprint-connected")
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    assert 0.005 < repaired(comfy, entry) < 0.27  # the box covers a quarter of the draft
    comfy.assert_clean()


BLUEPRINT = "Repair details from a reference"
CONNECT = """
() => {
  const refiner = app.graph.nodes[0];
  refiner.pos = [420, 100];
  const [example, save] = ["OmniRefiner_ExampleCase", "SaveImage"].map((type, i) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [40 + i * 700, 100];
    return node;
  });
  for (const name of ["draft", "reference", "mask", "reference_mask"]) {
    const [from, to] = [example.outputs, refiner.inputs].map((l) => l.findIndex((s) => s.name === name));
    example.connect(from, refiner, to);
  }
  refiner.connect(0, save, 0);
}
"""
