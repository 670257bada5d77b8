"""Stages that run on a real ComfyUI: made, broken, refused, and servers that die on the way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from refiner_core.__main__ import main
from refiner_core.data.comfyui import ComfyUIError, Server, Servers
from refiner_core.data.shards import TripletSet, read_lines, read_manifest
from refiner_core.evaluation.held_out_scenes import make_scene


def node(kind: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


# The reference, enlarged, is the target; its left half the detail. Stock nodes only.
PAIR = {
    "load": node("LoadImage", image="{{reference}}"),
    "scale": node("ImageScale", image=["load", 0], upscale_method="bilinear", width=96, height=80,
                  crop="disabled"),
    "mask": node("SolidMask", value=0.0, width=96, height=80),
    "half": node("SolidMask", value=1.0, width=40, height=48),
    "both": node("MaskComposite", destination=["mask", 0], source=["half", 0], x=4, y=8,
                 operation="add"),
    "picture": node("MaskToImage", mask=["both", 0]),
    "target": node("SaveImage", "Target", images=["scale", 0], filename_prefix="data-{{seed}}"),
    "save": node("SaveImage", "mask", images=["picture", 0], filename_prefix="data-mask"),
}  # fmt: skip

# Inverts everything: what lies outside the mask must not arrive in the draft.
DEGRADE = {
    "load": node("LoadImage", image="{{target}}"),
    "mask": node("LoadImage", image="{{mask}}"),
    "invert": node("ImageInvert", image=["load", 0]),
    "draft": node("SaveImage", "draft", images=["invert", 0], filename_prefix="data-draft"),
    "seen": node("SaveImage", "mask", images=["mask", 0], filename_prefix="data-seen"),
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """`references/` and the two workflows."""
    (tmp_path / "references").mkdir()
    for i in range(3):
        picture = Image.fromarray(make_scene(60 + i, (96, 80)).target)
        picture.save(tmp_path / "references" / f"r{i}.png")
    (tmp_path / "pair.json").write_text(json.dumps(PAIR))
    (tmp_path / "degrade.json").write_text(json.dumps(DEGRADE))
    return tmp_path


def build(
    folder: Path, out: str, *servers: str, count: int = 3, workflow: str = "pair.json"
) -> int:
    urls = [a for s in servers for a in ("--comfyui", s)]
    return main([
        "data", "build", "--out", str(folder / out), "--count", str(count), "--shard", "2",
        "--pair-workflow", str(folder / workflow), "--references", str(folder / "references"),
        "--degrade-workflow", str(folder / "degrade.json"), "--identity", "0",
        "--min-distance", "0", "--min-sharpness", "0", *urls,
    ])  # fmt: skip


def test_pairs_and_drafts_come_from_workflows(server: Any, inputs: Path) -> None:
    assert build(inputs, "out", server.url) == 0
    triplets = list(TripletSet(inputs / "out"))
    assert len(triplets) == 3
    for t in triplets:
        assert t.target is not None and t.target.shape == (80, 96, 3)
        inside = t.mask > 0
        np.testing.assert_array_equal(t.draft[~inside], t.target[~inside])
        middle = (slice(24, 40), slice(16, 32))
        np.testing.assert_allclose(t.draft[middle], 255 - t.target[middle].astype(int), atol=1)
        assert (
            t.info["degradation"]["name"] == "workflow" and t.info["source"] == "workflow pair.json"
        )
    assert len({t.info["identity"] for t in triplets}) == 3
    # All of it again, from what was kept, without any server.
    assert build(inputs, "out", "http://127.0.0.1:9", count=3) == 0
    for part in (inputs / "out" / "stages" / "degrade").iterdir():
        part.unlink()
    assert build(inputs, "out", "http://127.0.0.1:9", count=3) == 0
    assert len(read_manifest(inputs / "out")) == 3


def test_a_workflow_that_comfyui_refuses(
    server: Any, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {**PAIR, "scale": node("ImageScale", image=["load", 0], upscale_method="magic")}
    (inputs / "wrong.json").write_text(json.dumps(wrong))
    assert build(inputs, "out", server.url, workflow="wrong.json") == 2
    said = capsys.readouterr().err
    assert "workflow" in said and "ImageScale" in said and "magic" in said
    (inputs / "wrong.json").write_text(
        json.dumps({**PAIR, "x": node("NoSuchNode", image=["load", 0])})
    )
    assert build(inputs, "out2", server.url, workflow="wrong.json") == 2
    assert "NoSuchNode" in capsys.readouterr().err


def test_a_node_that_fails_is_a_broken_sample(server: Any, inputs: Path) -> None:
    (inputs / "references" / "r1.png").write_bytes(b"no picture")
    assert build(inputs, "out", server.url) == 0
    (broken,) = read_lines(inputs / "out" / "rejected.jsonl")
    assert (broken["id"], broken["broken"]) == ("00000001", True) and "r1.png" in broken["reason"]
    assert len(read_manifest(inputs / "out")) == 2


def test_a_workflow_that_fails_is_told_with_its_node(
    server: Any, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = node("SaveImage", "Target", images=["scale", 0], filename_prefix="../../{{seed}}")
    (inputs / "bad.json").write_text(json.dumps({**PAIR, "target": outside}))
    assert build(inputs, "out", server.url, workflow="bad.json") == 2
    assert "no sample was kept" in capsys.readouterr().err
    reasons = {e["reason"] for e in read_lines(inputs / "out" / "rejected.jsonl")}
    assert all("node target (SaveImage)" in r and "outside the output" in r for r in reasons)


class Wire:
    """A TCP connection to a server that is cut after some requests, for good."""

    def __init__(self, url: str, requests: int) -> None:
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.left, self.seen = requests, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.seen += 1
            self.left -= 1
            if self.left < 0:
                client.close()
                continue
            there = socket.create_connection(self.address)
            for a, b in ((client, there), (there, client)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def wire(server: Any) -> Iterator[Callable[[int], Wire]]:
    made: list[Wire] = []

    def cut_after(requests: int) -> Wire:
        made.append(Wire(server.url, requests))
        return made[-1]

    yield cut_after
    for w in made:
        w.close()


@pytest.mark.parametrize("requests", [0, 2, 7, 15])
def test_a_server_that_dies_stops_the_build_with_its_work_kept(
    server: Any, inputs: Path, wire: Callable[[int], Wire], requests: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    dying = wire(requests)
    assert build(inputs, "out", dying.url) == 2
    said = capsys.readouterr().err
    assert dying.url in said and "kept" in said
    assert not (inputs / "out" / "manifest.jsonl").exists()
    assert not list((inputs / "out").glob(".*"))
    kept = (
        len(list((inputs / "out" / "work").glob("*"))) if (inputs / "out" / "work").exists() else 0
    )
    assert kept >= (1 if requests == 15 else 0)
    assert build(inputs, "out", server.url) == 0
    build(inputs, "straight", server.url)
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (inputs / "out" / name).read_bytes() == (inputs / "straight" / name).read_bytes()


def test_another_server_takes_over(server: Any, inputs: Path, wire: Callable[[int], Wire]) -> None:
    dying = wire(6)
    assert build(inputs, "out", "http://127.0.0.1:9", dying.url, server.url) == 0
    assert len(read_manifest(inputs / "out")) == 3


def test_several_servers_share_the_work(
    server: Any, inputs: Path, wire: Callable[[int], Wire]
) -> None:
    one, two = wire(10**6), wire(10**6)
    assert build(inputs, "out", one.url, two.url) == 0
    assert min(one.seen, two.seen) > 8


def test_something_else_than_a_comfyui(inputs: Path) -> None:
    dead = Servers((Server("http://127.0.0.1:9"),), retries=1)
    with pytest.raises(ComfyUIError, match="127.0.0.1:9"):
        dead.run(lambda names: {}, {})
