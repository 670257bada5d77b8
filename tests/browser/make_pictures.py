"""Writes web/docs/images/: run `pytest tests/browser/make_pictures.py` after a node's looks or the
demo's repairs changed. Not collected by a plain `pytest`.

node-* are the help pages' pictures; the demo's pictures and before-after.webp are README's.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from refiner_core.__main__ import main
from tests.browser import thumbnails
from tests.browser.examples import LOGO, TWO
from tests.browser.graphs import build

FOLDER = Path(__file__).resolve().parents[2] / "web" / "docs" / "images"
PLAIN = [
    "LoadRefiner", "RefinerFromModel", "RefinerParts", "CropForRefine", "RefineConditioning",
    "Stitch", "ExampleCase", "LoadFolder", "LoadScorer", "DreamSimScore", "PickBest", "TrainRefiner",
]  # fmt: skip


CASES = ("logo", "word", "pattern")
_SHOWN, _MOVING = (420, 280), (480, 320)  # px of README's pictures


def test_demo(tmp_path: Path) -> None:
    """What the demo gives: draft and repair cut to the detail and what is around it."""
    assert main(["demo", "--out", str(tmp_path)]) == 0
    pairs: list[str] = []
    for case in CASES:
        box = thumbnails.mask_box(case, "mask")
        for name in ("draft", "refined"):
            file = tmp_path / case / f"{name}.png"
            picture = Image.open(file)
            save_photo(thumbnails.part(picture, box, _SHOWN), f"{case}-{name}.webp")
            thumbnails.part(picture, box, _MOVING).save(file)
        reference = Image.open(tmp_path / case / "reference.png")
        width = round(reference.width * _SHOWN[1] / reference.height)
        save_photo(reference.resize((width, _SHOWN[1])), f"{case}-reference.webp")
        pairs += ["--pair", *(str(tmp_path / case / f"{n}.png") for n in ("draft", "refined"))]
    out = str(FOLDER / "before-after.webp")
    assert main(["animate", *pairs, "--out", out, "--overwrite"]) == 0


def save_photo(picture: Image.Image, name: str) -> None:
    picture.save(FOLDER / name, quality=88, method=6)


def file_name(node: str) -> str:
    """`CropForRefine` -> `node-crop-for-refine.png`."""
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in node)
    return f"node{words}.png".replace("dream-sim", "dreamsim")


def save_node(comfy: Any, node: int, name: str) -> None:
    """A picture of one node as the page draws it, with a small margin."""
    x, y, width, height = comfy.page.evaluate(
        "id => { const n = app.graph.getNodeById(id); const { scale, offset } = app.canvas.ds;"
        "const box = app.canvas.canvas.getBoundingClientRect();"
        "return [box.left + (n.pos[0] + offset[0]) * scale, box.top + (n.pos[1] - 30 + offset[1]) *"
        " scale, n.size[0] * scale, (n.size[1] + 30) * scale]; }",
        node,
    )
    clip = {"x": x - 6, "y": y - 6, "width": width + 12, "height": height + 12}
    shot = Image.open(io.BytesIO(comfy.page.screenshot(clip=clip))).convert("RGB")
    if name.endswith(".webp"):  # photographs
        shot.save(FOLDER / name, quality=82, method=6)
    else:
        shot.quantize(128).save(FOLDER / name, optimize=True)


def open_plain(open_comfy: Callable[..., Any]) -> Any:
    """A page without the badges that lie over a node's upper edge."""
    comfy = open_comfy(height=1300)
    comfy.page.evaluate(
        "() => app.extensionManager.setting.set('Comfy.NodeBadge.NodeSourceBadgeMode', 'None')"
    )
    return comfy


def test_plain_nodes(open_comfy: Callable[..., Any]) -> None:
    comfy = open_plain(open_comfy)
    for name in PLAIN:
        comfy.reset()
        (node,) = build(comfy, [{"type": f"OmniRefiner_{name}", "pos": [420, 140]}], [])
        comfy.page.evaluate("() => app.canvas.deselectAll()")
        comfy.settle(500)
        save_node(comfy, node, file_name(name))


def test_nodes_that_ran(open_comfy: Callable[..., Any]) -> None:
    comfy = open_plain(open_comfy)
    nodes = [
        {"type": "OmniRefiner_LoadRefiner", "pos": [20, 90]},
        {"type": "OmniRefiner_ExampleCase", "pos": [20, 480]},
        {"type": "OmniRefiner_ReferenceRefine", "pos": [420, 90], "size": [560, 760],
         "values": {"boxes": json.dumps([LOGO]), "control_after_generate": "fixed"}},
    ]  # fmt: skip
    links = [(0, 0, 2, "refiner"), (1, 0, 2, "draft"), (1, 1, 2, "reference"), (1, 2, 2, "mask")]
    refine = build(comfy, nodes, [*links, (1, 3, 2, "reference_mask")])[2]
    comfy.settle(1000)
    save_node(comfy, refine, "node-regions.webp")
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(600)
    save_node(comfy, refine, "node-result.webp")

    comfy.reset()
    nodes = [
        {"type": "OmniRefiner_ExampleCase", "pos": [20, 90], "values": {"case": "logo and pattern"}},
        {"type": "OmniRefiner_CropForRefine", "pos": [1100, 90], "values": {"recipe": "nano"}},
        {"type": "OmniRefiner_MaskBuilder", "pos": [420, 90], "size": [560, 640],
         "values": {"boxes": json.dumps(TWO)}},
    ]  # fmt: skip
    links = [(0, 0, 2, "image"), (0, 1, 2, "reference"), (2, 0, 1, "mask"), (0, 0, 1, "draft")]
    mask_builder = build(comfy, nodes, links)[2]
    comfy.settle(1000)
    save_node(comfy, mask_builder, "node-mask-builder.webp")

    comfy.reset()
    nodes = [
        {"type": "OmniRefiner_ExampleCase", "pos": [20, 90]},
        {"type": "OmniRefiner_Compare", "pos": [420, 90], "size": [560, 520]},
    ]  # fmt: skip
    compare = build(comfy, nodes, [(0, 0, 1, "a"), (0, 4, 1, "b"), (0, 2, 1, "mask")])[1]
    comfy.run()
    comfy.settle(800)
    save_node(comfy, compare, "node-compare.webp")
