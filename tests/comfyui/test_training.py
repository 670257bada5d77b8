"""Trained LoRAs in a real ComfyUI: its stock loader means by them what training did; the node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from refiner_core.data.shards import MANIFEST, write_lines, write_shard
from refiner_core.data.triplets import Triplet
from refiner_core.evaluation.held_out_scenes import make_scene
from refiner_core.models.kontext import Conditioning, velocity
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.trainable import add_lora
from refiner_core.weights.lora import apply_lora, read_lora, save_lora
from tests.comfyui.graphs import node
from tests.comfyui.test_server import Events

SCRIPT = Path(__file__).with_name("native_lora.py")
TEXT_EVENT = (3).to_bytes(4, "big")  # how ComfyUI marks a text among its binary messages


def tiny_kontext() -> FluxTransformer2DModel:
    model = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=20, guidance_embeds=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.05, generator=generator)
    return model.eval()


def test_an_exported_lora_means_the_same_to_training_the_core_diffusers_and_comfyui(
    run_in_comfyui: Any, tmp_path: Path
) -> None:
    trained = tiny_kontext()
    base = {k: v.clone() for k, v in trained.state_dict().items()}
    trainable = add_lora(trained, 4, 10.0)
    generator = torch.Generator().manual_seed(1)
    for p in trainable.parameters.values():
        p.data.normal_(0, 0.1, generator=generator)
    lora = tmp_path / "lora.safetensors"
    save_lora(lora, trainable.lora_pairs(), trainable.alpha, {"recipe": "omnirefiner"})

    x, a, b = (torch.randn(1, 16, 8, 8, generator=generator) for _ in range(3))
    text = torch.randn(1, 7, 24, generator=generator)
    pooled, t = torch.randn(1, 20, generator=generator), torch.tensor([0.7])
    c = Conditioning((a, b), (1, 2), text, pooled, 2.5)
    plain, theirs = tiny_kontext(), tiny_kontext()
    with torch.no_grad():
        bare = velocity(plain, x, t, c)
        wanted = velocity(trained, x, t, c)
        assert apply_lora(plain, read_lora(lora)) == 17
        ours = velocity(plain, x, t, c)
        theirs.load_lora_adapter(load_file(lora), prefix="transformer")
        diffusers = velocity(theirs, x, t, c)
    save_file(
        {"x": x, "t": t, "text": text, "pooled": pooled, "references.0": a, "references.1": b,
         "guidance": torch.tensor([2.5]), **{f"model.{k}": v for k, v in base.items()}},
        tmp_path / "in.safetensors",
    )  # fmt: skip
    run_in_comfyui(SCRIPT, tmp_path / "in.safetensors", lora, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert float((wanted - bare).abs().max()) > 0.1, "the LoRA does something"
    for name, v in (("core", ours), ("diffusers", diffusers), ("comfyui", found["velocity"])):
        assert float((v - wanted).abs().max()) < 1e-3, name


def write_triplets(folder: Path) -> None:
    folder.mkdir()
    scenes = [make_scene(500 + i, (160, 120), (0.4, 0.6)) for i in range(4)]
    entries = write_shard(
        folder / "train-00000.tar",
        [
            Triplet(f"s{i}", s.draft, s.reference, s.target, s.mask, s.reference_mask)
            for i, s in enumerate(scenes)
        ],
    )
    write_lines(folder / MANIFEST, entries)


def load_node() -> dict[str, Any]:
    return node(
        "OmniRefiner_LoadRefiner", recipe="nano (embedded)", diffusion_model="none",
        weight_dtype="default", clip_l="none", t5xxl="none", vae="none", refiner_lora="none",
        lora_strength=1.0,
    )  # fmt: skip


def train_graph(name: str, **inputs: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "steps": 3, "batch": 2, "rank": 4, "learning_rate": 1e-2, "preview_every": 0,
    }  # fmt: skip
    settings |= {"folder": "triplets", "lora_name": name, "seed": 0}
    train = node("OmniRefiner_TrainRefiner", refiner=["load", 0], **settings | inputs)
    save = node("SaveImage", images=["train", 1], filename_prefix="held-out")
    return {"load": load_node(), "train": train, "save": save}


def repaired(server: Any, seed: int, prefix: str) -> bytes:
    """The pixels of one repair by the embedded nano, made anew."""
    graph = {
        "load": load_node(), "case": node("OmniRefiner_ExampleCase", case="word"),
        "refine": node("OmniRefiner_ReferenceRefine", refiner=["load", 0], draft=["case", 0],
            reference=["case", 1], mask=["case", 2], reference_mask=["case", 3], prompt=prefix,
            seed=seed, steps=1, guidance=0.0, sampler="omnirefiner (Euler)", scheduler="recipe",
            context=0.0, megapixels=0.0, grow=0, feather=6, model_mask=0.0, blend="feather",
            color_match=-1.0, fix_drift="recipe", align_reference="recipe"),
        "save": node("SaveImage", images=["refine", 0], filename_prefix=prefix),
    }  # fmt: skip
    entry = server.run(graph)
    remembered = [m["nodes"] for k, m in entry["status"]["messages"] if k == "execution_cached"]
    assert "refine" not in sum(remembered, [])
    return Image.open(server.saved(entry, "save")[0]).tobytes()


def said_until_the_end(events: Events, prompt: str) -> str:
    """The texts that the nodes of a prompt showed, once it has ended well."""
    said = b""
    while True:
        opcode, payload = events.next()
        if opcode == 2:
            said += payload if payload[:4] == TEXT_EVENT else b""
            continue
        message = json.loads(payload) if opcode == 1 else {"type": "", "data": {}}
        if message["data"].get("prompt_id") == prompt:
            assert message["type"] != "execution_error", message
            if message["type"] == "execution_success":
                return said.decode(errors="replace")


def test_an_interrupted_training_goes_on_and_leaves_comfyui_as_it_was(server: Any) -> None:
    if not (server.base / "input" / "triplets").exists():
        write_triplets(server.base / "input" / "triplets")
    before = repaired(server, 31, "before")
    settings = {"steps": 12, "batch": 1}
    events = Events(server.url, "trainer")
    prompt = server.queue(train_graph("cut", **settings), client="trainer")
    while True:
        opcode, payload = events.next()
        message = json.loads(payload) if opcode == 1 else {"type": ""}
        assert message["type"] != "execution_error", message
        data = message.get("data", {})
        if message["type"] == "progress" and data["node"] == "train" and data["value"] >= 2:
            break
    server.post("/interrupt", {})
    entry = server.wait(prompt, 120)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    loras = server.base / "models" / "loras"
    assert not (loras / "cut.safetensors").exists()
    place = server.base / "output" / "omnirefiner-training" / "cut" / "checkpoint.safetensors"
    done = read_facts(place)["step"]
    assert 2 <= done < 12
    # The node's LoRA and gradients are gone from the model that the graph goes on using.
    assert repaired(server, 31, "after") == before

    if not (server.base / "input" / "others").exists():
        write_triplets(server.base / "input" / "others")
    other = train_graph("cut", folder="others", **settings)
    message = server.error(server.wait(server.queue(other)))
    assert str(place) in message and "others" in message
    assert read_facts(place)["step"] == done

    queued = server.queue(train_graph("cut", **settings), client="trainer")
    assert f"step {done} of 12" in said_until_the_end(events, queued)
    server.run(train_graph("whole", **settings))
    assert not place.exists()
    resumed, straight = (load_file(loras / f"{n}.safetensors") for n in ("cut", "whole"))
    assert all(torch.equal(resumed[k], straight[k]) for k in straight)
    assert repaired(server, 31, "last") == before


def test_the_node_trains_a_lora_that_load_refiner_loads(server: Any) -> None:
    if not (server.base / "input" / "triplets").exists():
        write_triplets(server.base / "input" / "triplets")
    graph = train_graph("mine")
    load, train = graph["load"], graph["train"]
    entry = server.run(graph)
    assert server.saved(entry, "save")[0].is_file()
    path = server.base / "models" / "loras" / "mine.safetensors"
    lora = read_lora(path)
    assert len(lora.factors) == 12 + 3 * 5
    assert all(bool(f.b.any()) for fs in lora.factors.values() for f in fs)
    assert lora.metadata["recipe"] == "nano"
    assert len(lora.metadata["data_manifest"]) == 16
    assert json.loads(lora.metadata["figures"])["loss"] > 0
    assert json.loads(lora.metadata["settings"])["model"]["rank"] == 4

    case = node("OmniRefiner_ExampleCase", case="word")
    refine = node(
        "OmniRefiner_ReferenceRefine", refiner=["load", 0], draft=["case", 0], reference=["case", 1],
        mask=["case", 2], reference_mask=["case", 3], prompt="", seed=0, steps=1, guidance=0.0,
        sampler="omnirefiner (Euler)", scheduler="recipe", context=0.0, megapixels=0.0, grow=0,
        feather=6, model_mask=0.0, blend="feather", color_match=-1.0, fix_drift="recipe",
        align_reference="recipe",
    )  # fmt: skip
    save = node("SaveImage", images=["refine", 0], filename_prefix="with-lora")
    load["inputs"]["refiner_lora"] = "mine.safetensors"
    server.run({"load": load, "case": case, "refine": refine, "save": save})

    load["inputs"]["refiner_lora"] = "none"
    train["inputs"] |= {"folder": "nowhere"}
    message = server.error(server.wait(server.queue(graph)))
    assert "nowhere" in message
    train["inputs"] |= {"folder": "triplets", "lora_name": "../x"}
    assert "../x" in server.error(server.wait(server.queue(graph)))
    assert not list(path.parent.glob("mine-2*"))


def test_a_finished_training_goes_on_with_more_steps_and_only_then(server: Any) -> None:
    if not (server.base / "input" / "triplets").exists():
        write_triplets(server.base / "input" / "triplets")
    events = Events(server.url, "longer")

    def said(**settings: Any) -> str:
        graph = train_graph("longer", batch=1, **settings)
        return said_until_the_end(events, server.queue(graph, client="longer"))

    assert "longer.safetensors" in said(steps=2)
    assert "step 2 of 3" in said(steps=3)
    assert "step 0 of 4" in said(steps=4, seed=1)  # another seed begins anew
    assert "step 0 of 3" in said(steps=3, seed=1)  # there is nothing to go on with
    names = {p.stem for p in (server.base / "models" / "loras").glob("longer*")}
    assert names == {"longer", "longer-2", "longer-3", "longer-4"}
