"""The first minutes of somebody who has read nothing: from an empty canvas to a repaired picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from refiner_core.images.image_io import load_picture
from refiner_core.images.mask_io import load_mask
from refiner_core.images.tensors import to_float
from refiner_core.scoring.structural import StructuralScorer
from tests.browser.graphs import CASES, drag
from tests.browser.person import add_blueprint, add_node, connect, upload

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
LOGO = CASES / "logo"


def own_pictures(folder: Path) -> tuple[Path, Path]:
    """The demo's draft and reference under names of the user's."""
    files = folder / "my poster.png", folder / "photo of the can.png"
    for file, name in zip(files, ("draft", "reference"), strict=True):
        file.write_bytes((LOGO / f"{name}.png").read_bytes())
    return files


def fault(picture: Path) -> float:
    """How far a picture's detail is from the true one, by structure and edges; 0 = the same."""
    shown, target = (to_float(load_picture(p).pixels) for p in (picture, LOGO / "target.png"))
    return float(StructuralScorer().distance(shown, target, load_mask(LOGO / "mask.png")))


@RENDERERS
def test_two_pictures_two_boxes_run(
    open_comfy: Callable[..., Any], tmp_path: Path, vue: bool
) -> None:
    comfy = open_comfy(vue=vue, width=1600, height=1000)
    name = "vue" if vue else "canvas"
    refine = add_node(comfy, "logo", 860, 130)
    draft, reference = (add_node(comfy, "load image", 330, y) for y in (200, 600))
    for node, file in zip((draft, reference), own_pictures(tmp_path), strict=True):
        upload(comfy, node, file)
    connect(comfy, (draft, "IMAGE"), (refine, "draft"))
    connect(comfy, (reference, "IMAGE"), (refine, "reference"))
    comfy.settle(1200)
    comfy.shot(f"stranger-connected-{name}")

    entry = comfy.run()  # without having marked anything
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    said = comfy.page.locator(".omnirefiner-live [role=status]")
    said.wait_for(state="visible")
    assert "Nothing is marked" in said.inner_text() and "box" in said.inner_text()
    comfy.shot(f"stranger-nothing-marked-{name}")
    drag(comfy, 0, (0.26, 0.23), (0.66, 0.83))
    assert not said.is_visible()
    assert "reference" in comfy.page.locator(".omnirefiner-picker [role=status]").inner_text()
    drag(comfy, 1, (0.15, 0.13), (0.84, 0.89))
    comfy.shot(f"stranger-boxes-{name}")

    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.settle(1000)
    comfy.shot(f"stranger-result-{name}")
    pair = entry["outputs"][refine]["omnirefiner"][0]["pairs"][0]
    before, after = (comfy.server.base / "temp" / pair[k]["filename"] for k in ("before", "after"))
    assert fault(after) < 0.6 * fault(before)
    assert comfy.page.locator(".omnirefiner-view").is_visible()
    comfy.page.get_by_role("button", name="Zoom to the repaired region").click()
    comfy.settle()
    comfy.shot(f"stranger-zoomed-{name}")
    comfy.assert_clean()


def painted(folder: Path, name: str, mask: str) -> Path:
    """A picture as MaskEditor saves it: transparent where it was painted."""
    picture = Image.open(LOGO / f"{name}.png").convert("RGB")
    picture.putalpha(ImageOps.invert(Image.open(LOGO / f"{mask}.png").convert("L")))
    picture.save(folder / f"painted {name}.png")
    return folder / f"painted {name}.png"


@RENDERERS
def test_the_blueprint_with_painted_masks(
    open_comfy: Callable[..., Any], tmp_path: Path, vue: bool
) -> None:
    comfy = open_comfy(vue=vue, width=1600, height=1000)
    whole = add_blueprint(comfy, "Repair details from a reference", 1000, 220)
    for name, mask, y in (("draft", "mask", 200), ("reference", "reference_mask", 600)):
        loader = add_node(comfy, "load image", 330, y)
        upload(comfy, loader, painted(tmp_path, name, mask))
        connect(comfy, (loader, "IMAGE"), (whole, name))
        connect(comfy, (loader, "MASK"), (whole, mask))
    save = add_node(comfy, "save image", 1000, 500)
    connect(comfy, (whole, "image"), (save, "images"))
    entry = comfy.run()
    assert entry["status"]["status_str"] == "success", comfy.server.error(entry)
    comfy.shot(f"stranger-blueprint-{'vue' if vue else 'canvas'}")
    (saved,) = comfy.server.saved(entry, save)
    assert fault(saved) < 0.7 * fault(LOGO / "draft.png")
    assert comfy.errors == [] and comfy.external == []
