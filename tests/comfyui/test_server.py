"""The nodes in a running ComfyUI, over HTTP as its page and API users run them."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.comfyui.graphs import CASES, LOAD, ROOT, node, pixels, repair


def test_every_node_is_there_with_tooltips(server: Any) -> None:
    found = {k: v for k, v in server.get("/object_info").items() if k.startswith("OmniRefiner_")}
    assert set(found) == {
        "OmniRefiner_LoadRefiner", "OmniRefiner_RefinerFromModel", "OmniRefiner_ReferenceRefine",
        "OmniRefiner_MaskBuilder", "OmniRefiner_CropForRefine", "OmniRefiner_RefineConditioning",
        "OmniRefiner_Stitch", "OmniRefiner_PickBest", "OmniRefiner_ExampleCase",
        "OmniRefiner_DreamSimScore", "OmniRefiner_LoadScorer", "OmniRefiner_RefinerParts",
        "OmniRefiner_Compare", "OmniRefiner_TrainRefiner", "OmniRefiner_LoadFolder",
    }  # fmt: skip
    for name, info in found.items():
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key} has no tooltip"
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), f"{name} has no help page"


@pytest.mark.parametrize("case", ["logo", "pattern", "word"])
def test_repair_keeps_every_pixel_outside(server: Any, case: str) -> None:
    entry = server.run(repair(case))
    refined = pixels(server.saved(entry, "save")[0])
    draft, target = (pixels(CASES / case / f"{n}.png") for n in ("draft", "target"))
    mask = np.asarray(Image.open(CASES / case / "mask.png")) > 0
    assert (refined[~mask] == draft[~mask]).all()
    assert np.square(refined - target)[mask].mean() < np.square(draft - target)[mask].mean()
    report = json.loads(entry["outputs"]["report"]["text"][0])
    assert report["recipe"] == "nano" and report["regions"][0]["references"][0]["alignment"]


def test_without_a_refiner_it_takes_nano(server: Any) -> None:
    graph = repair()
    (before,) = server.saved(server.run(graph), "save")
    del graph["load"], graph["refine"]["inputs"]["refiner"]
    (after,) = server.saved(server.run(graph), "save")
    assert (pixels(before) == pixels(after)).all()


def test_two_runs_reload_nothing(server: Any) -> None:
    server.run(repair(seed=11))
    before = server.log.read_text().count("Requested to load Flux")
    entry = server.run(repair(seed=12))
    assert server.log.read_text().count("Requested to load Flux") == before
    cached = next(m for k, m in entry["status"]["messages"] if k == "execution_cached")
    assert {"load", "case"} <= set(cached["nodes"])


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("euler", "recipe"), ("dpmpp_2m", "simple"), ("heun", "beta")]
)
def test_comfyui_samplers_drive_the_refiner(server: Any, sampler: str, scheduler: str) -> None:
    server.run(repair(sampler=sampler, scheduler=scheduler, steps=4, seed=3))


def test_own_sampler_equals_comfyui_euler(server: Any) -> None:
    own = server.run(repair(seed=5))
    theirs = server.run(repair(seed=5, sampler="euler"))
    a, b = (pixels(server.saved(e, "save")[0]) for e in (own, theirs))
    assert np.abs(a - b).max() <= 1


def test_step_by_step_with_ksampler(server: Any) -> None:
    graph = {
        "case": node("OmniRefiner_ExampleCase", case="word"),
        "load": node("OmniRefiner_LoadRefiner", **LOAD),
        "parts": node("OmniRefiner_RefinerParts", refiner=["load", 0], prompt=""),
        "crop": node(
            "OmniRefiner_CropForRefine", draft=["case", 0], reference=["case", 1], mask=["case", 2],
            reference_mask=["case", 3], recipe="nano", context=1.5, megapixels=0.0, grow=0,
        ),
        "cond": node(
            "OmniRefiner_RefineConditioning", positive=["parts", 2], vae=["parts", 1],
            draft_crop=["crop", 0], reference_crop=["crop", 1], guidance=2.5,
        ),
        "shift": node("ModelSamplingFlux", model=["parts", 0], max_shift=4.0, base_shift=4.0,
                      width=512, height=512),
        "sample": node(
            "KSampler", model=["shift", 0], positive=["cond", 0], negative=["cond", 0],
            latent_image=["cond", 1], seed=0, steps=4, cfg=1.0, sampler_name="euler",
            scheduler="simple", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["parts", 1]),
        "stitch": node(
            "OmniRefiner_Stitch", refine_crop=["crop", 3], image=["decode", 0], feather=6,
            blend="feather", fix_drift=False, color_match=0.0, vae=["parts", 1],
        ),
        "save": node("SaveImage", images=["stitch", 0], filename_prefix="steps"),
    }  # fmt: skip
    out = pixels(server.saved(server.run(graph), "save")[0])
    draft = pixels(CASES / "word" / "draft.png")
    mask = np.asarray(Image.open(CASES / "word" / "mask.png")) > 0
    assert (out[~mask] == draft[~mask]).all()
    # The same steps as Reference Refine takes, but for KSampler's table of noise levels.
    whole = pixels(server.saved(server.run(repair("word")), "save")[0])
    assert np.abs(out - whole)[mask].mean() < 2


def with_stock_loaders(deaf: bool = False) -> dict[str, Any]:
    """The repair on a FLUX and a VAE that ComfyUI's own loaders loaded; nano lends its conditioning."""
    graph = repair("word", steps=2, megapixels=0.03)
    graph |= {
        "unet": node("UNETLoader", unet_name="tiny_kontext.safetensors", weight_dtype="default"),
        "deaf": node("Deaf", model=["unet", 0]),
        "vae": node("VAELoader", vae_name="tiny_ae.safetensors"),
        "parts": node("OmniRefiner_RefinerParts", refiner=["load", 0], prompt=""),
        "made": node(
            "OmniRefiner_RefinerFromModel", model=["deaf" if deaf else "unet", 0], vae=["vae", 0],
            recipe="omnirefiner", conditioning=["parts", 2],
        ),
    }  # fmt: skip
    graph["refine"]["inputs"]["refiner"] = ["made", 0]
    return graph


def test_refiner_from_stock_loaders(server: Any) -> None:
    entry = server.run(with_stock_loaders())
    out = pixels(server.saved(entry, "save")[0])
    draft = pixels(CASES / "word" / "draft.png")
    mask = np.asarray(Image.open(CASES / "word" / "mask.png")) > 0
    assert (out[~mask] == draft[~mask]).all()
    assert (out[mask] != draft[mask]).any()
    report = json.loads(entry["outputs"]["report"]["text"][0])
    assert report["recipe"] == "omnirefiner" and report["regions"][0]["drift"]["measured"]


def test_a_model_deaf_to_the_reference_method_is_refused(server: Any) -> None:
    message = server.error(server.wait(server.queue(with_stock_loaders(deaf=True))))
    assert '"index"' in message and '"offset"' in message


def mask_builder(**changes: Any) -> dict[str, Any]:
    settings = {
        "threshold": 0.1, "align": False, "grow": 2, "fill_holes": True, "smallest": 16,
        "invert": False,
    }  # fmt: skip
    return {
        "case": node("OmniRefiner_ExampleCase", case="logo"),
        "mask": node("OmniRefiner_MaskBuilder", image=["case", 0], **(settings | changes)),
        "image": node("MaskToImage", mask=["mask", 0]),
        "save": node("SaveImage", images=["image", 0], filename_prefix="mask"),
    }


def test_mask_builder_from_difference_and_box(server: Any) -> None:
    entry = server.run(mask_builder(compare_with=["case", 4]))
    found = pixels(server.saved(entry, "save")[0])[..., 0] > 127
    true = np.asarray(Image.open(CASES / "logo" / "mask.png")) > 0
    assert 0.02 * true.sum() < found.sum() and (found & ~true).sum() < 0.05 * true.sum()
    drawn = '[{"draft": [0.25, 0.5, 0.75, 0.75]}]'
    entry = server.run(mask_builder(boxes=drawn, grow=0))
    box = pixels(server.saved(entry, "save")[0])[..., 0] > 127
    assert box.sum() == pytest.approx(box.size / 8, rel=0.02)
    entry = server.wait(server.queue(mask_builder()))
    assert "empty" in server.error(entry)
    entry = server.wait(server.queue(mask_builder(boxes='[{"draft": [0.2, 0.2, 0.2, 0.4]}]')))
    assert "Box 1 of the draft has no area" in server.error(entry)


def test_pairs_of_boxes_travel_from_mask_builder_to_refine(server: Any) -> None:
    pairs = [
        {"draft": [0.1, 0.2, 0.3, 0.5], "reference": [0, 0, 0.4, 0.4]},
        {"draft": [0.6, 0.5, 0.8, 0.9], "reference": [0.5, 0.5, 1, 1]},
    ]
    graph = repair() | {
        "mask": node(
            "OmniRefiner_MaskBuilder", image=["case", 0], reference=["case", 1], threshold=0.1,
            align=False, grow=4, fill_holes=True, smallest=1, invert=False, boxes=json.dumps(pairs),
        )
    }  # fmt: skip
    inputs = graph["refine"]["inputs"]
    inputs |= {"mask": ["mask", 0], "reference_mask": ["mask", 1], "boxes": ["mask", 2]}
    entry = server.run(graph)
    first, second = json.loads(entry["outputs"]["report"]["text"][0])["regions"]
    w = 640
    assert first["region"] == [64 - 4, 85 - 4, 192 + 4, 214 + 4]
    assert second["region"] == [round(0.6 * w) - 4, 214 - 4, round(0.8 * w) + 4, 384 + 4]
    assert first["references"][0]["crop"] != second["references"][0]["crop"]
    shown = entry["outputs"]["refine"]["omnirefiner"][0]
    assert len(shown["pairs"]) == 1 and len(shown["pairs"][0]["regions"]) == 2
    assert shown["inputs"]["draft"]["width"] == w


def test_errors_reach_the_user(server: Any) -> None:
    graph = repair()
    graph["load"]["inputs"] |= {"recipe": "omnirefiner"}
    message = server.error(server.wait(server.queue(graph)))
    assert "diffusion_model" in message and "nano" in message
    graph = repair()
    graph["batch"] = node("RepeatImageBatch", image=["case", 0], amount=2)
    graph["three"] = node("RepeatImageBatch", image=["case", 1], amount=3)
    graph["refine"]["inputs"] |= {"draft": ["batch", 0], "reference": ["three", 0]}
    message = server.error(server.wait(server.queue(graph)))
    assert "2" in message and "3" in message


def test_batches(server: Any) -> None:
    graph = repair()
    graph["batch"] = node("RepeatImageBatch", image=["case", 0], amount=2)
    graph["refine"]["inputs"]["draft"] = ["batch", 0]
    assert len(server.saved(server.run(graph), "save")) == 2


class Events:
    """The few lines of a WebSocket client that are needed to read ComfyUI's events."""

    def __init__(self, url: str, client: str) -> None:
        host, port = re.fullmatch(r"http://([^:]+):(\d+)", url).groups()  # type: ignore[union-attr]
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while self._read(1) != b"\n" or not self._blank:
            pass

    _last = b""

    @property
    def _blank(self) -> bool:
        return self._last.endswith(b"\r\n\r\n")

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, "the server closed the connection"
            data += part
        self._last = (self._last + data)[-4:]
        return data

    def next(self) -> tuple[int, bytes]:
        """Opcode (1 text, 2 binary) and payload of the next message."""
        opcode, length = self._read(1)[0] & 15, self._read(1)[0] & 127
        if length == 126:
            length = struct.unpack(">H", self._read(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", self._read(8))[0]
        return opcode, self._read(length)


def test_progress_previews_and_interrupt(server: Any) -> None:
    events = Events(server.url, "watcher")
    prompt = server.queue(repair(seed=21, steps=6), client="watcher")
    steps, previews = set(), 0
    while True:
        opcode, payload = events.next()
        if opcode == 2:
            previews += 1
            continue
        message = json.loads(payload)
        if message["type"] == "progress" and message["data"].get("node") == "refine":
            steps.add(message["data"]["value"])
        if message["type"] == "execution_success":
            break
    assert steps >= {6} and previews >= 1
    server.wait(prompt)
    prompt = server.queue(repair(seed=22, steps=900), client="watcher")
    while True:
        opcode, payload = events.next()
        if opcode == 1 and json.loads(payload)["type"] == "progress":
            break
    server.post("/interrupt", {})
    entry = server.wait(prompt, 60)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])


def test_example_workflows_name_only_nodes_that_exist(server: Any) -> None:
    known = server.get("/object_info")
    files = sorted((ROOT / "example_workflows").glob("*.json"))
    assert files
    for file in files:
        for n in json.loads(file.read_text())["nodes"]:
            assert n["type"] in known or n["type"] in ("MarkdownNote", "Note"), (
                f"{file.name}: {n['type']}"
            )
        assert file.with_suffix(".jpg").is_file(), f"{file.name} has no thumbnail"


def test_the_log_is_clean(server: Any) -> None:
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log
    assert "comfyui-omnirefiner" in log
