"""Prompts with odd values, as API users and old workflows send them: a result, or a clear error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bad_inputs import INTERNAL
from tests.comfyui.graphs import LOAD, REFINE, node
from tests.fuzzing import tiny_picture

Graph = dict[str, Any]
BOX = '[{"draft": [0.2, 0.2, 0.6, 0.6], "reference": null}]'
# What a node raises for an input that it cannot use.
MEANT = ("ValueError", "FileNotFoundError", "OSError", "PermissionError", "ModuleNotFoundError")


def image(width: int, height: int, batch: int = 1) -> Graph:
    return node("EmptyImage", width=width, height=height, batch_size=batch, color=0x804020)


def mask(width: int, height: int, value: float = 1.0) -> Graph:
    return node("SolidMask", value=value, width=width, height=height)


def refine(**changes: Any) -> Graph:
    """The repair of a draft of one colour; inputs that are nodes are added to the graph."""
    graph: Graph = {"draft": image(96, 64), "reference": image(80, 80)}
    inputs = REFINE | {
        "draft": ["draft", 0],
        "reference": ["reference", 0],
        "steps": 1,
        "boxes": BOX,
    }
    for name, value in changes.items():
        if isinstance(value, dict):
            graph[name], inputs[name] = value, [name, 0]
        else:
            inputs[name] = value
    graph["refine"] = node("OmniRefiner_ReferenceRefine", **inputs)
    return graph


def alone(kind: str, **inputs: Any) -> Graph:
    """One node and what it shows."""
    return {
        "image": image(64, 64),
        "other": image(48, 32, 3),
        "mask": mask(20, 20),
        "node": node(kind, **inputs),
        "shown": node("PreviewAny", source=["node", 0]),
    }


def crop_and_stitch(stitched: Graph) -> Graph:
    graph: Graph = {"draft": image(96, 64), "reference": image(80, 80), "mask": mask(96, 64)}
    graph["crop"] = node(
        "OmniRefiner_CropForRefine",
        draft=["draft", 0],
        reference=["reference", 0],
        mask=["mask", 0],
        recipe="nano",
        context=1.5,
        megapixels=0.0,
        grow=0,
    )
    graph["image"] = stitched
    graph["stitch"] = node(
        "OmniRefiner_Stitch",
        refine_crop=["crop", 3],
        image=["image", 0],
        feather=6,
        blend="feather",
        fix_drift=False,
        color_match=0.0,
    )
    graph["shown"] = node("PreviewImage", images=["stitch", 0])
    return graph


def trained(**changes: Any) -> Graph:
    inputs = {
        "folder": "nothing here",
        "lora_name": "my-refiner",
        "steps": 1,
        "batch": 1,
        "rank": 1,
        "learning_rate": 1e-4,
        "preview_every": 0,
        "seed": 0,
    }
    return {
        "load": node("OmniRefiner_LoadRefiner", **LOAD),
        "train": node("OmniRefiner_TrainRefiner", refiner=["load", 0], **(inputs | changes)),
    }


def loaded(**changes: Any) -> Graph:
    return {
        "load": node("OmniRefiner_LoadRefiner", **(LOAD | changes)),
        "parts": node("OmniRefiner_RefinerParts", refiner=["load", 0], prompt=""),
        "shown": node("VAEEncode", pixels=["image", 0], vae=["parts", 1]),
        "image": image(64, 64),
        "end": node("SaveLatent", samples=["shown", 0], filename_prefix="x"),
    }


def folder(name: str) -> Graph:
    graph = alone("OmniRefiner_LoadFolder", folder=name, most=2)
    graph["shown"] = node("PreviewImage", images=["node", 0])
    return graph


def boxes(text: str) -> Graph:
    return refine(boxes=text)


PROMPTS: dict[str, Graph] = {
    "one pixel": refine(draft=image(1, 1)),
    "one row": refine(draft=image(512, 1)),
    "a reference of one pixel": refine(reference=image(1, 1)),
    "three references for one draft": refine(reference=image(64, 64, 3)),
    "a mask of another size": refine(mask=mask(32, 32)),
    "a mask of other proportions": refine(mask=mask(10, 300)),
    "an empty mask": refine(mask=mask(96, 64, 0.0), boxes=""),
    "a mask of everything": refine(mask=mask(96, 64), boxes=""),
    "a faint mask": refine(mask=mask(96, 64, 0.05), boxes=""),
    "nothing marked": refine(boxes=""),
    "a reference mask of another size": refine(reference_mask=mask(7, 9)),
    "an empty reference mask": refine(reference_mask=mask(80, 80, 0.0)),
    "boxes that are no JSON": boxes("{"),
    "boxes that are a number": boxes("3"),
    "boxes nested deeply": boxes("[" * 50_000),
    "boxes outside": boxes('[{"draft": [0.5, 0.5, 2, 2]}]'),
    "boxes of NaN": boxes('[{"draft": [NaN, 0, 1, 1]}]'),
    "boxes of text": boxes('[{"draft": ["a", 0, 1, 1]}]'),
    "boxes with HTML": boxes('[{"draft": "<img src=x onerror=alert(1)>"}]'),
    "too many boxes": boxes(json.dumps([{"draft": [0, 0, 1, 1]}] * 65)),
    "a crossed outline": boxes('[{"draft": [[0, 0], [1, 1], [1, 0], [0, 1]]}]'),
    "shrunk to nothing": refine(grow=-1000),
    "grown beyond everything": refine(grow=1000),
    "a feather wider than the picture": refine(feather=1024),
    "a context of the whole picture": refine(context=10.0),
    "guidance out of range": refine(guidance=1e9),
    "steps that are text": refine(steps="many"),
    "an unknown sampler": refine(sampler="../../x"),
    "an unknown widget value": refine(mask_batch="all"),
    "more kept than candidates": refine(candidates=1, keep=9),
    "dropped after the last step": refine(candidates=2, prune_at=1000),
    "a prompt of placeholders": refine(prompt="{subject} {0} {x.__class__} %s \0"),
    "a long prompt": refine(prompt="x" * 100_000),
    "a stitched picture of another size": crop_and_stitch(image(17, 33)),
    "several stitched pictures": crop_and_stitch(image(64, 64, 2)),
    "a LoRA outside": loaded(refiner_lora="../../etc/passwd"),
    "a recipe outside": loaded(recipe="../../x.json"),
    "a recipe without its files": loaded(recipe="omnirefiner"),
    "a folder that does not exist": folder("no such folder"),
    "no folder": folder(" "),
    "a folder of NUL": folder("\0"),
    "a folder without pictures": folder("/proc/self"),
    "a file as a folder": folder("/etc/passwd"),
    "an unknown user's folder": folder("~nobody-here/x"),
    "a long folder": folder("x" * 5000),
    "an example that does not exist": alone("OmniRefiner_ExampleCase", case="../logo"),
    "a mask from nothing": alone(
        "OmniRefiner_MaskBuilder",
        image=["image", 0],
        threshold=0.1,
        align=False,
        grow=0,
        fill_holes=True,
        smallest=16,
        invert=False,
    ),
    "compared with another size": alone(
        "OmniRefiner_MaskBuilder",
        image=["image", 0],
        compare_with=["other", 0],
        threshold=0.1,
        align=True,
        grow=0,
        fill_holes=True,
        smallest=16,
        invert=False,
    ),
    "a comparison of unequal batches": alone(
        "OmniRefiner_Compare", a=["other", 0], b=["image", 0], mask=["mask", 0]
    ),
    "trained on nothing": trained(),
    "a LoRA in another folder": trained(lora_name="../../x"),
    "a LoRA named like a device": trained(lora_name="NUL"),
    "a LoRA without a name": trained(lora_name=" "),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_runs_or_is_refused_in_words(server: Any, name: str) -> None:
    before = {p for p in server.base.rglob("*") if p.is_file()}
    status, answer = server.post("/prompt", {"prompt": PROMPTS[name], "client_id": "tests"})
    if status == 400:  # ComfyUI itself refuses it
        errors = [e for node in answer["node_errors"].values() for e in node["errors"]]
        assert all("exception" not in e["type"] for e in errors), errors
        return
    assert status == 200, answer
    entry = server.wait(answer["prompt_id"])
    errors = [m for kind, m in entry["status"]["messages"] if kind == "execution_error"]
    for error in errors:
        kind, said = error["exception_type"].rpartition(".")[2], error["exception_message"]
        assert kind in MEANT and not INTERNAL.search(said) and len(said) > 20, (kind, said)
    left = {p for p in server.base.rglob("*") if p.is_file()} - before
    hidden = [p for p in left if p.name.startswith(".")]
    assert not hidden
    assert not errors or not [p for p in left if p.is_relative_to(server.base / "output")]


@pytest.mark.parametrize("name", ["draft", "reference", "mask"])
def test_a_batch_without_images_is_named(server: Any, name: str) -> None:
    """Nodes that filter or detect may keep nothing; a connected number goes past the least value."""
    graph = refine()
    graph["count"] = node("PrimitiveInt", value=0)
    graph["none"] = node("EmptyImage", width=96, height=64, batch_size=["count", 0], color=0)
    graph["no mask"] = node("ImageToMask", image=["none", 0], channel="red")
    graph["refine"]["inputs"][name] = ["no mask" if name == "mask" else "none", 0]
    message = server.error(server.wait(server.queue(graph)))
    assert "(0, " in message and ("MASK" if name == "mask" else "IMAGE") in message


@pytest.mark.parametrize(
    ("name", "how", "named"),
    [
        ("draft", "list", "list"),
        ("reference", "list", "list"),
        ("mask", "array", "ndarray"),
        ("draft", "bytes", "128"),
        ("reference", "bytes", "128"),
    ],
)
def test_what_is_no_image_is_named(server: Any, name: str, how: str, named: str) -> None:
    graph = refine()  # its brightest value is 128 of 255
    source = "reference" if name == "reference" else "draft"
    graph["odd"] = node("Odd", image=[source, 0], how=how)
    graph["refine"]["inputs"][name] = ["odd", int(name == "mask")]
    assert named in server.error(server.wait(server.queue(graph)))


def test_a_draft_in_bfloat16_can_be_saved(server: Any) -> None:
    graph = refine()
    graph["odd"] = node("Odd", image=["draft", 0], how="bfloat16")
    graph["refine"]["inputs"]["draft"] = ["odd", 0]
    graph["save"] = node("SaveImage", images=["refine", 0], filename_prefix="bfloat16")
    server.run(graph)


def test_the_folder_may_come_from_another_node(server: Any) -> None:
    """ComfyUI checks a prompt before it knows what connected nodes will give."""
    path = server.base / "input" / "named"
    path.mkdir(exist_ok=True)
    (path / "a.png").write_bytes(tiny_picture("PNG"))
    graph = folder("")
    graph["name"] = node("PrimitiveString", value="named")
    graph["node"]["inputs"]["folder"] = ["name", 0]
    graph["names"] = node("PreviewAny", source=["node", 1])
    assert server.run(graph)["outputs"]["names"]["text"] == ["a.png"]
    (path / "b.png").write_bytes(tiny_picture("PNG"))
    assert server.run(graph)["outputs"]["names"]["text"] == ["a.png", "b.png"], "it is read again"
    graph["name"]["inputs"]["value"] = "nowhere"
    assert "nowhere" in server.error(server.wait(server.queue(graph)))


@pytest.mark.parametrize(("name", "named"), [("", "(.)"), ("made later", "made later")])
def test_a_wrong_folder_is_named_and_the_fix_too(server: Any, name: str, named: str) -> None:
    assert named in server.error(server.wait(server.queue(folder(name))))
    if name:
        path = server.base / "input" / name
        path.mkdir()
        (path / "a.png").write_bytes(tiny_picture("PNG"))
        server.run(folder(name))  # it is looked for again


def test_a_folder_of_pictures_with_odd_names(server: Any) -> None:
    names = [
        "\u00b21.png",
        "9" * 200 + ".png",
        "<b>.png",
        "a\nb.png",
        "\u0663.png",
        "CON.png",
        "%00.png",
    ]
    path = server.base / "input" / "odd"
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_bytes(tiny_picture("PNG"))
    graph = folder("odd")
    graph["names"] = node("PreviewAny", source=["node", 1])
    graph["node"]["inputs"]["most"] = 0
    entry = server.run(graph)
    assert sorted(entry["outputs"]["names"]["text"]) == sorted(names)
