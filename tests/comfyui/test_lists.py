"""Lists and batches in a running ComfyUI: every image and every mask counts, none in silence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .graphs import CASES, node, pixels, repair


def mask_graph(**changes: Any) -> dict[str, Any]:
    """A repair of one draft with a batch of three masks, as a detector makes one for each object."""
    graph = repair("logo", **changes)
    places = {"left": 80, "middle": 300, "right": 500}
    for name, x in places.items():
        graph[f"{name}_whole"] = node("SolidMask", value=0.0, width=640, height=427)
        graph[f"{name}_part"] = node("SolidMask", value=1.0, width=60, height=60)
        graph[name] = node(
            "MaskComposite", destination=[f"{name}_whole", 0], source=[f"{name}_part", 0], x=x, y=100,
            operation="add",
        )  # fmt: skip
        graph[f"{name}_image"] = node("MaskToImage", mask=[name, 0])
    graph["two"] = node("ImageBatch", image1=["left_image", 0], image2=["middle_image", 0])
    graph["three"] = node("ImageBatch", image1=["two", 0], image2=["right_image", 0])
    graph["masks"] = node("ImageToMask", image=["three", 0], channel="red")
    # These places show nothing of the reference: without "on" the draft would be left alone.
    graph["refine"]["inputs"] |= {"mask": ["masks", 0], "align_reference": "on"}
    del graph["refine"]["inputs"]["reference_mask"]
    return graph


@pytest.mark.parametrize(("meaning", "images"), [({}, 1), ({"mask_batch": "separate"}, 3)])
def test_several_masks_of_one_draft(server: Any, meaning: dict[str, str], images: int) -> None:
    entry = server.run(mask_graph(**meaning))
    report = json.loads(entry["outputs"]["report"]["text"][0])
    assert [r["region"][0] for r in report["regions"]] == [80, 300, 500]
    saved = server.saved(entry, "save")
    assert len(saved) == images
    draft = pixels(CASES / "logo/draft.png")
    for i, file in enumerate(saved):
        changed = (pixels(file) != draft).any(-1)
        where = [bool(changed[100:160, x : x + 60].any()) for x in (80, 300, 500)]
        assert where == ([True] * 3 if images == 1 else [j == i for j in range(3)])


def test_what_is_pasted_is_chosen_apart_from_the_region(server: Any) -> None:
    draft = pixels(CASES / "logo/draft.png")
    whole = repair("logo", paste="crop", align_reference="off")
    entry = server.run(whole)
    (region,) = json.loads(entry["outputs"]["report"]["text"][0])["regions"]
    changed = (pixels(server.saved(entry, "save")[0]) != draft).any(-1)
    x0, y0, x1, y1 = region["crop"]
    assert region["pasted"] == region["crop"] != region["region"]
    assert changed[y0:y1, x0:x1].mean() > 0.5 and changed.sum() == changed[y0:y1, x0:x1].sum()

    graph = repair("logo", paste_mask=["half", 0])
    graph["whole"] = node("SolidMask", value=0.0, width=640, height=427)
    graph["left"] = node("SolidMask", value=1.0, width=(x0 + x1) // 2, height=427)
    graph["half"] = node(
        "MaskComposite", destination=["whole", 0], source=["left", 0], x=0, y=0, operation="add"
    )
    entry = server.run(graph)
    changed = (pixels(server.saved(entry, "save")[0]) != draft).any(-1)
    assert changed[:, : (x0 + x1) // 2].any() and not changed[:, (x0 + x1) // 2 :].any()


def test_a_draft_in_which_nothing_is_marked_is_passed_on_with_a_note(server: Any) -> None:
    graph = repair("logo")
    graph["large"] = node(
        "ImageScale", image=["case", 0], upscale_method="bilinear", width=1280, height=854, crop="disabled",
    )  # fmt: skip
    graph["before"] = node("SaveImage", images=["large", 0], filename_prefix="before")
    inputs = graph["refine"]["inputs"]
    inputs["draft"] = ["large", 0]
    del inputs["reference_mask"]
    graph["nothing"] = node("SolidMask", value=0.0, width=64, height=64)  # as Load Image makes it
    inputs["mask"] = ["nothing", 0]
    entry = server.run(graph)
    before, after = (pixels(server.saved(entry, name)[0]) for name in ("before", "save"))
    assert (before == after).all()
    report = json.loads(entry["outputs"]["report"]["text"][0])
    assert "note" in report and any("64x64" in note for note in report["notes"])
    (shown,) = entry["outputs"]["refine"]["omnirefiner"]
    assert shown["unmarked"] and shown["inputs"]["draft"]["width"] == 1280


def test_pick_best_chooses_from_a_whole_folder(server: Any) -> None:
    folder = server.base / "input" / "candidates"
    folder.mkdir(exist_ok=True)
    draft, target = (
        Image.open(CASES / f"logo/{n}.png").convert("RGB") for n in ("draft", "target")
    )
    draft.save(folder / "1.png")
    draft.resize((320, 214)).save(folder / "2.png")
    target.save(folder / "3.png")
    target.save(server.base / "input" / "target.png")
    graph = {
        "folder": node("OmniRefiner_LoadFolder", folder="candidates", most=0),
        "target": node("LoadImage", image="target.png"),
        "pick": node(
            "OmniRefiner_PickBest", images=["folder", 0], reference=["target", 0], keep=2, align=False,
        ),
        "index": node("PreviewAny", source=["pick", 1]),
        "report": node("PreviewAny", source=["pick", 2]),
        "picked": node("SaveImage", images=["pick", 0], filename_prefix="picked"),
    }  # fmt: skip
    entry = server.run(graph)
    report = json.loads(entry["outputs"]["report"]["text"][0])
    assert entry["outputs"]["index"]["text"] == ["2"] and len(report["distances"]) == 3
    saved = server.saved(entry, "picked")
    assert len(saved) == 2
    assert (pixels(saved[0]) == np.asarray(target).astype(int)).all()
