"""Beside other packs with front-end code: ours works, and theirs goes on working.

$COMFYUI_NEIGHBOURS names folders of packs, e.g. checkouts of rgthree-comfy, ComfyUI-Custom-Scripts and
ComfyUI-KJNodes, separated as on the PATH.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Comfy, page_settings
from tests.browser.examples import LOGO
from tests.browser.graphs import build, drag, refine_graph, value_of

TEMPLATES = Path(__file__).resolve().parents[2] / "example_workflows"
# A node of theirs that shows what it is given, its input, and the output of Reference Refine for it.
THEIRS = {
    "Image Comparer (rgthree)": ("image_a", 0),
    "ShowText|pysssss": ("text", 3),
    "PreviewImage": ("images", 1),  # ComfyUI's own, whose menu and drawing such packs change
}


@pytest.fixture(scope="module")
def neighbours() -> list[Path]:
    named = os.environ.get("COMFYUI_NEIGHBOURS")
    if not named:
        pytest.skip("no neighbours: COMFYUI_NEIGHBOURS, folders of other packs, is not set")
    folders = [Path(p).resolve() for p in named.split(os.pathsep)]
    for folder in folders:
        if not (folder / "__init__.py").is_file():
            pytest.fail(f"COMFYUI_NEIGHBOURS: {folder} is not a pack, it has no __init__.py.")
    return folders


@pytest.fixture(scope="module")
def crowded(
    neighbours: list[Path], launcher: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server with ours and all of theirs."""
    base = tmp_path_factory.mktemp("crowded")
    launcher.furnish(base)
    for folder in neighbours:
        (base / "custom_nodes" / folder.name).symlink_to(folder)
    with launcher.running(base) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def comfy(
    request: pytest.FixtureRequest, crowded: Any, chromium: Callable[..., Any]
) -> Iterator[Comfy]:
    """Its page; what the neighbours themselves report on opening it is put aside."""
    made = Comfy(chromium(), crowded, page_settings(vue=request.param))
    made.open()
    made.settle(1000)
    said = " ".join([*made.errors, *made.missing]).lower()
    assert "omnirefiner" not in said, said
    made.reset()
    yield made
    made.page.close()


def name_of(comfy: Comfy) -> str:
    return "vue" if comfy.settings["Comfy.VueNodes.Enabled"] else "canvas"


def test_ours_works_and_theirs_too(comfy: Comfy, neighbours: list[Path]) -> None:
    known = comfy.server.get("/object_info")
    modules = {info["python_module"] for info in known.values()}
    for folder in neighbours:
        assert any(m.startswith(f"custom_nodes.{folder.name}") for m in modules), folder.name

    refine = refine_graph(comfy, width=620, steps=60)[3]
    drag(comfy, 0, (0.637, 0.371), (0.796, 0.62))
    drag(comfy, 1, (0.25, 0.243), (0.747, 0.735))
    (pair,) = json.loads(value_of(comfy, refine))
    assert pair["draft"] == pytest.approx([0.637, 0.371, 0.796, 0.62], abs=0.01)
    assert pair["reference"] is not None
    theirs = {kind: slot for kind, slot in THEIRS.items() if kind in known}
    ids = comfy.page.evaluate(ADD_THEIRS, [refine, theirs])
    comfy.settle(800)

    comfy.page.locator('[data-testid="queue-button"]').click()
    comfy.page.locator(".omnirefiner-live").wait_for(state="visible", timeout=60_000)
    comfy.page.wait_for_function(
        "() => document.querySelector('.omnirefiner-view')?.checkVisibility()", timeout=120_000
    )
    comfy.settle(1500)
    comfy.shot(f"neighbours-{name_of(comfy)}")
    (entry,) = list(comfy.server.get("/history").values())[-1:]
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    assert set(ids) <= set(entry["outputs"])
    assert "after" in entry["outputs"][str(refine)]["omnirefiner"][0]["pairs"][0]
    comfy.page.get_by_role("tab", name="Report").click()
    assert "nano" in comfy.page.locator(".omnirefiner-table").inner_text()
    assert comfy.errors == []
    assert not [m for m in comfy.our_failures if "omnirefiner" in m]


ADD_THEIRS = """
([id, theirs]) => Object.entries(theirs).map(([type, [input, output]], i) => {
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  node.pos = [1080, 80 + i * 280];
  const refine = app.graph.getNodeById(id);
  refine.connect(output, node, node.inputs.findIndex((s) => s.name === input));
  return String(node.id);
})
"""


def test_templates_and_comparisons_run(comfy: Comfy) -> None:
    name = "Score repairs with a heatmap (no weights)"
    comfy.load(json.loads((TEMPLATES / f"{name}.json").read_text()))
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(1000)
    assert comfy.page.locator(".omnirefiner-count").last.inner_text() == "1 / 2"
    assert comfy.page.get_by_label("Opacity of the overlay, from 0 to 1").last.is_visible()
    comfy.shot(f"neighbours-template-{name_of(comfy)}")
    assert comfy.errors == []


def test_the_veil_of_a_mask_is_drawn(comfy: Comfy) -> None:
    nodes = [
        {"type": "OmniRefiner_ExampleCase", "pos": [20, 80]},
        {"type": "OmniRefiner_MaskBuilder", "pos": [420, 80], "size": [520, 560],
         "values": {"boxes": json.dumps([LOGO])}},
        {"type": "MaskPreview", "pos": [1000, 80]},
    ]  # fmt: skip
    build(comfy, nodes, [(0, 0, 1, "image"), (0, 1, 1, "reference"), (1, 0, 2, "mask")])
    comfy.run()
    comfy.settle(800)
    comfy.shot(f"neighbours-mask-{name_of(comfy)}")
    assert "Boxes: 1" in comfy.page.locator(".omnirefiner-picker [role=status]").inner_text()
    assert comfy.errors == []
