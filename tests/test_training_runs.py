"""What a run of training does at its edges: interrupted, broken, averaged, watched, refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from refiner_core.__main__ import main
from refiner_core.data.shards import TripletSet
from refiner_core.data.splits import manifest_hash, split_data
from refiner_core.nano.nano_engine import load_nano
from refiner_core.training import train_nano as nano
from refiner_core.training.checkpoint import read_facts
from refiner_core.training.config import GrpoConfig, ObjectiveSettings, OptimizerSettings, SftConfig
from refiner_core.training.dataset import Item, collate
from refiner_core.training.distributed import Processes
from refiner_core.training.optimizers import rate_at
from refiner_core.training.prepare import PreparedDataset, prepare, prepare_datasets
from refiner_core.training.reward import make_reward
from refiner_core.training.settings import build, merged
from refiner_core.training.sft import SftObjective
from refiner_core.training.supervised_loss import without_references
from refiner_core.training.text_cache import TextCache
from refiner_core.training.tracker import Tracker
from refiner_core.training.train import Interruption
from refiner_core.weights import safetensors_io
from refiner_core.weights.lora import read_lora
from tests.dreamsim_release import LAYOUTS, TINY, write_release
from tests.tiny_training import (
    GRPO_SETTINGS,
    PROGRAM,
    ROOT,
    SETTINGS,
    TinyDataset,
    environment,
    final,
    largest_difference,
    tiny_engine,
    tiny_run,
    tiny_session,
    tiny_train,
    tiny_trainer,
)


def sft(**over: Any) -> SftConfig:
    return build(SftConfig, merged(SETTINGS, over))


def grpo(**over: Any) -> GrpoConfig:
    return build(GrpoConfig, merged(GRPO_SETTINGS, over))


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_ctrl_c_in_the_middle_of_a_step_and_resumed_is_the_same_run(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = sft() if stage == "sft" else grpo()
    tiny_train(config, tiny_session(config, tmp_path / "whole"))
    out = tmp_path / "interrupted"
    session = tiny_session(config, out)
    step, calls = torch.optim.AdamW.step, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # of GRPO's two updates an epoch the first of the second epoch
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(config, session)
    done = read_facts(out / "checkpoint.safetensors")["step"]
    assert done == (3 if stage == "sft" else 2)
    tiny_train(config, tiny_session(config, out))
    a, b = final(tmp_path / "whole"), final(out)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_second_ctrl_c_ends_at_once_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interruption(Processes()) as interruption:
        assert not interruption.requested()
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_killed_and_resumed_is_the_same_run(tmp_path: Path, stage: str) -> None:
    tiny_run(stage, tmp_path / "whole", 8, {})
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, stage, str(out), "8"],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    while not (out / "checkpoint.safetensors").exists() and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_facts(out / "checkpoint.safetensors")["step"] >= 1
    tiny_run(stage, out, 8, {})
    a, b = final(tmp_path / "whole"), final(out)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert any(k.startswith("optimizer:exp_avg.") for k in a)
    copies = {"copy:ema", "copy:ref"} if stage == "dpo" else {"copy:ema"}
    assert {k.partition(".")[0] for k in a if k.startswith("copy:")} == copies


@pytest.mark.slow
def test_killed_between_checkpoints_steps_are_made_again(tmp_path: Path) -> None:
    config = sft(run={"max_steps": 12, "save_every": 5})
    tiny_train(config, tiny_session(config, tmp_path / "whole"))
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, "sft", str(out), "1000000", "run.save_every=5"],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    log = out / "log.jsonl"
    while not (log.exists() and '"step": 10,' in log.read_text()) and time.monotonic() < end:
        time.sleep(0.002)
    assert process.poll() is None, "it was still training"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = read_facts(out / "checkpoint.safetensors")["step"]
    assert done % 5 == 0
    steps = max(12, done + 2)
    longer = sft(run={"max_steps": steps, "save_every": 5})
    tiny_train(longer, tiny_session(longer, out))
    if steps != 12:
        tiny_train(longer, tiny_session(longer, tmp_path / "whole"))
    a, b = final(tmp_path / "whole"), final(out)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_row_after_one_that_was_cut_off_is_kept(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    Tracker(tmp_path).row(3, {"loss": 0.5})
    Tracker(tmp_path).row(4, {"loss": 0.25})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in (lines[0], *lines[2:])] == [1, 3, 4]


# --- broken ---------------------------------------------------------------------------------------


def test_a_full_disk_is_said_as_one_whatever_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sft(run={"max_steps": 1})
    tiny_train(config, tiny_session(config, tmp_path))
    write = safetensors_io.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if full.name in Path(path).name:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        write(tensors, path, metadata)

    monkeypatch.setattr(safetensors_io, "save_file", full)
    for full.name in ("checkpoint.safetensors", "refiner.safetensors"):
        before = (tmp_path / full.name).read_bytes()
        more = sft(run={"max_steps": 3})
        with pytest.raises(OSError, match=f"{full.name} could not be written.*No space left"):
            tiny_train(more, tiny_session(more, tmp_path))
        assert (tmp_path / full.name).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


class Poisoned(TinyDataset):
    """One case of ten is broken."""

    broken = (3,)

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        bad = tuple(r * math.nan for r in item.references)
        return replace(item, references=bad) if index in self.broken else item


@pytest.mark.slow
def test_a_group_of_nan_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = grpo(rollout={"groups": 10})
    session = tiny_session(config, tmp_path)
    session.dataset = Poisoned()
    tiny_train(config, session)
    assert capsys.readouterr().out.count("samples of tiny3") == 3
    values = load_file(tmp_path / "refiner.safetensors").values()
    assert all(bool(torch.isfinite(v).all()) for v in values)
    assert any(float(v.abs().max()) > 0 for v in values)


@pytest.mark.slow
def test_reinforcement_of_nothing_but_nan_stops(tmp_path: Path) -> None:
    config = grpo(run={"max_steps": 40})
    session = tiny_session(config, tmp_path)
    session.dataset = Poisoned()
    session.dataset.broken = tuple(range(10))  # type: ignore[misc]
    with pytest.raises(ValueError, match="in a row were not finite. Lower optimizer.rate"):
        tiny_train(config, session)


# --- averaged and watched -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_reinforcement_exports_is_what_it_learnt(tmp_path: Path, average: float) -> None:
    config = grpo(optimizer={"ema": average})
    session = tiny_session(config, tmp_path)
    lora = read_lora(tiny_train(config, session))
    role = "ema" if average else None
    assert ("ema" in session.trainable.copies) == bool(average)
    learnt = session.trainable.lora_pairs(role)
    assert any(float(b.detach().abs().max()) > 1e-4 for _, b in learnt.values())
    for name, (a, b) in learnt.items():
        (factor,) = lora.factors[name]
        torch.testing.assert_close(factor.b @ factor.a * factor.scale, 2 * b @ a)  # alpha / rank


def test_averages_are_taken_as_often_as_set(tmp_path: Path) -> None:
    config = sft(optimizer={"ema": 0.5, "ema_every": 3})
    s = tiny_session(config, tmp_path)
    run = tiny_trainer(config, s)
    moved = []
    for _ in range(6):
        before = {k: v.clone() for k, v in run.trainable.copies["ema"].items()}
        run.train_step()
        moved.append(largest_difference(before, run.trainable.copies["ema"]) > 0)
    assert moved == [False, False, True, False, False, True]


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    o = OptimizerSettings(rate=1.0, warmup=4, schedule="cosine")
    assert [rate_at(o, i, 100) for i in (0, 1)] == pytest.approx([0.25, 0.5], rel=1e-3)
    assert rate_at(o, 50, 100) == pytest.approx(0.5)
    assert rate_at(o, 99, 100) < 1e-3
    flat = OptimizerSettings(rate=1.0, warmup=0, schedule="constant")
    assert {rate_at(flat, i, 100) for i in (0, 50, 99)} == {1.0}


@pytest.mark.slow
def test_pictures_and_curves_of_the_held_out_cases(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = sft(run={"max_steps": 4, "validate_every": 2, "board": "tensorboard"})
    tiny_train(config, tiny_session(config, tmp_path))
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == [f"held-out-{i:06d}.png" for i in (0, 2, 4)]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "held_out/psnr" in r] == [0, 2, 4]
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert [e.step for e in board.Images("held-out")] == [0, 2, 4]
    assert [e.step for e in board.Scalars("held_out/psnr")] == [0, 2, 4]
    assert "loss" in board.Tags()["scalars"]


# --- what a step sees -----------------------------------------------------------------------------


def seen(tmp_path: Path, steps: int = 40, **loss: Any) -> tuple[set[str], list[int], set[float]]:
    """Prompts asked for, clean latents and guidance of every step."""
    config = sft(loss=loss)
    s = tiny_session(config, tmp_path)
    prompts: set[str] = set()
    latents: list[int] = []
    guidance: set[float] = set()
    velocity = s.policy.velocity

    def text(prompt: str) -> Any:
        prompts.add(prompt)
        return plain(prompt)

    def watched(x: Any, t: Any, conditioning: Any) -> Any:
        latents.append(len(conditioning.references))
        guidance.add(conditioning.guidance)
        return velocity(x, t, conditioning)

    s.policy.velocity = watched  # type: ignore[method-assign]
    plain, s.text = s.text, text
    run = tiny_trainer(config, s)
    for _ in range(steps):
        run.train_step()
    return prompts, latents, guidance


@pytest.mark.parametrize(("share", "prompts"), [(0.0, {"a word"}), (1.0, {""})])
def test_captions_are_dropped_as_often_as_set(
    tmp_path: Path, share: float, prompts: set[str]
) -> None:
    assert seen(tmp_path, 4, caption_dropout=share)[0] == prompts


def test_references_are_dropped_as_often_as_set(tmp_path: Path) -> None:
    assert set(seen(tmp_path / "never", 4, reference_dropout=0.0)[1]) == {2}
    assert set(seen(tmp_path / "always", 4, reference_dropout=1.0)[1]) == {1}
    latents = seen(tmp_path / "some", 40, reference_dropout=0.5, guidance=1.5)
    assert 0.25 < latents[1].count(1) / len(latents[1]) < 0.75
    assert latents[2] == {1.5}


def test_without_its_reference_the_draft_keeps_its_index() -> None:
    engine, item = tiny_engine(), TinyDataset()[0]
    batch = collate([item], [engine.text("", 5)], engine.recipe, 1.0, engine.device)
    alone = without_references(batch, engine.recipe).conditioning
    at = engine.recipe.order.index("draft")
    assert alone.indices == (engine.recipe.indices[at],)
    assert torch.equal(alone.references[0], item.references[at])


@pytest.mark.parametrize(
    ("model", "likeness"), [({"checkpointing": True}, 1 - 1e-6), ({"precision": "bf16"}, 0.95)]
)
def test_recomputing_and_bf16_change_what_is_learnt_by_rounding_only(
    tmp_path: Path, model: dict[str, Any], likeness: float
) -> None:
    def learnt(name: str, **over: Any) -> tuple[float, torch.Tensor]:
        config = sft(model=over)
        s = tiny_session(config, tmp_path / name)
        for key, p in s.trainable.parameters.items():
            if key.endswith("lora_B"):
                p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        objective = SftObjective(config, s)
        items = [s.dataset[i] for i in objective.indices()]
        loss = objective.term(items, [0, 1, 2, 3], 1.0).value
        loss.backward()
        found = [p.grad.flatten() for p in s.trainable.parameters.values() if p.grad is not None]
        return float(loss.detach()), torch.cat(found)

    (a, plain), (b, other) = learnt("plain"), learnt("other", **model)
    assert a == pytest.approx(b, rel=0.01)
    assert float(torch.cosine_similarity(plain, other, 0)) > likeness


def test_texts_are_kept_on_disk_and_few_of_them_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refiner_core.training.text_cache._IN_MEMORY", 2)
    asked: list[str] = []

    def encode(prompt: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(prompt)
        return torch.full((1, length, 4), float(len(prompt))), torch.zeros(1, 3)

    texts = TextCache(encode, 5, tmp_path)
    for prompt in ("a", "bb", "ccc", "a"):
        assert float(texts(prompt)[0].mean()) == len(prompt)
    assert asked == ["a", "bb", "ccc"]
    texts.encoder = None
    assert float(TextCache.__call__(texts, "bb")[0].mean()) == 2


def test_an_engine_moves_what_encodes_and_frees_its_text_encoders() -> None:
    engine = load_nano()
    engine.to(torch.device("meta"))
    assert isinstance(engine.codec, nn.Module)
    assert {b.device.type for b in engine.codec.buffers()} == {"meta"}
    assert {p.device.type for p in engine.model.parameters()} == {"cpu"}
    assert engine.device.type == "meta"
    engine.release()  # a nano has no text encoders
    released: list[int] = []
    replace(tiny_engine(), release_text=lambda: released.append(1)).release()
    assert released == [1]


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup = nano.Setup(tmp_path_factory.mktemp("triplets"), Path(), seed=2)
    nano.draw_triplets(setup, 6)
    return setup.triplets


def test_flat_surfaces_are_not_bent(triplets: Path, tmp_path: Path) -> None:
    assert {t.info["bend"] for t in TripletSet(triplets)} == {"flat"}
    bent = ["data", "build", "--out", str(tmp_path), "--count", "8", "--size", "64"]
    assert main(bent) == 0
    assert {t.info["bend"] for t in TripletSet(tmp_path)} - {"flat"}


def test_held_out_is_the_validation_split_or_the_last(triplets: Path) -> None:
    data = TripletSet(triplets)
    count = len(data)
    for i, entry in enumerate(data.entries):
        entry["split"] = "validation" if i in (1, 3) else "train"
    assert split_data(data, 8) == ([i for i in range(count) if i not in (1, 3)], [1, 3])
    assert split_data(data, 1)[1] == [1]
    for entry in data.entries:
        entry["split"] = "train"
    assert split_data(data, 2) == ([*range(count - 2)], [count - 2, count - 1])
    assert split_data(data, 64)[1] == [*range(count - count // 2, count)]
    for entry in data.entries:
        entry["split"] = "test"
    with pytest.raises(ValueError, match="no triplet to train on"):
        split_data(data, 2)


def test_other_data_has_another_hash(triplets: Path, tmp_path: Path) -> None:
    assert manifest_hash(triplets) == manifest_hash(triplets)
    for name, size in (("a", 3), ("b", 3), ("b", 4)):
        (tmp_path / f"{name}.tar").write_bytes(b"x" * size)
    before = manifest_hash(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"xx")
    assert manifest_hash(tmp_path) != before


@pytest.mark.slow
def test_as_many_held_out_as_learnt_from_are_still_held_out(triplets: Path, tmp_path: Path) -> None:
    from refiner_core.training.open_session import load_base

    count = len(TripletSet(triplets)) // 2 * 2
    assert count >= 4
    config = build(SftConfig, {"data": {"held_out": 64, "context": (1.2, 2.0)}})
    engine = load_base(config.model)
    dataset, held_out, _ = prepare_datasets(
        engine, engine.text, config.data, triplets, tmp_path, Processes(), True
    )
    ids = [{d[i].id for i in range(len(d))} for d in (dataset, held_out)]
    assert all(ids) and not ids[0] & ids[1]


def test_a_damaged_triplet_is_left_out_and_said(
    triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, engine = TripletSet(triplets), replace(tiny_engine())
    data.entries = [dict(e) for e in data.entries[:2]]
    data.entries[0]["shard"] = "gone.tar"
    settings = build(SftConfig, {"data": {"megapixels": 0.016}}).data
    names = prepare(data, [0, 1], engine, settings, tmp_path / "items", Processes(), pixels=False)
    items = PreparedDataset(tmp_path / "items", engine.recipe.order, names)
    assert len(names) == 2 and len(items) == 1
    assert "1 of 2 items" in capsys.readouterr().out
    data.entries[1]["shard"] = "gone.tar"
    with pytest.raises(ValueError, match=r"None of 2 items .*gone\.tar"):
        prepare(data, [0, 1], engine, settings, tmp_path / "none", Processes(), pixels=False)
    names = prepare(
        data, [0, 1], engine, settings, tmp_path / "few", Processes(), pixels=False, needed=False
    )
    assert len(PreparedDataset(tmp_path / "few", engine.recipe.order, names)) == 0


# --- refused --------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_stage_or_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sft(run={"max_steps": 1})
    tiny_train(config, tiny_session(config, tmp_path))
    other = grpo(model={"rank": 3})
    with pytest.raises(ValueError, match="kind sft, .* grpo"):
        tiny_train(other, tiny_session(other, tmp_path))
    session = tiny_session(config, tmp_path)
    session.identity["base_fingerprint"] = "another"
    with pytest.raises(ValueError, match="base_fingerprint .* another"):
        tiny_train(config, session)


def test_dreamsim_rewards_come_from_its_file(tmp_path: Path) -> None:
    from refiner_core.scoring.dreamsim_release import convert_release

    variant = "dino_vitb16"
    release = write_release(tmp_path / "release", variant, TINY)
    side = 2 * LAYOUTS[variant][0][0][1]
    convert_release(release, tmp_path / "dreamsim.safetensors", side=side)
    settings = dataclasses.replace(
        ObjectiveSettings(), dreamsim=str(tmp_path / "dreamsim.safetensors")
    )
    pixels = TinyDataset()[0].pixels
    assert pixels is not None
    images = torch.cat([pixels.target, pixels.draft])
    by_dreamsim = make_reward(settings, torch.device("cpu"))(images, pixels)
    plain = make_reward(ObjectiveSettings(), torch.device("cpu"))(images, pixels)
    assert by_dreamsim.keys() == plain.keys()
    assert not torch.allclose(by_dreamsim["whole"], plain["whole"], atol=1e-3)
    torch.testing.assert_close(by_dreamsim["pixels"], plain["pixels"])
    assert float(by_dreamsim["whole"][0]) > float(by_dreamsim["whole"][1])


# --- commands, on the embedded nano ---------------------------------------------------------------


SMALL = ["--set", "run.micro_batch=2", "--set", "data.held_out=1", "--set", "run.validate_every=0"]


@pytest.mark.slow
def test_both_stages_as_commands(
    triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--preset",
        "nano",
        "--set",
        "model.train=lora",
        "--data",
        str(triplets),
        "--cache",
        str(tmp_path / "prepared"),
        "--device",
        "cpu",
        "--max-steps",
        "1",
        *SMALL,
    ]
    assert (
        main(["train", "sft", *common, "--set", "run.batch=2", "--out", str(tmp_path / "a")]) == 0
    )
    lora = tmp_path / "a" / "refiner.safetensors"
    assert (
        main(
            [
                "train",
                "grpo",
                *common,
                "--set",
                f"model.lora={lora}",
                "--set",
                "rollout.groups=2",
                "--set",
                "rollout.group=2",
                "--set",
                "objective.updates=2",
                "--out",
                str(tmp_path / "b"),
            ]
        )
        == 0
    )
    a, b = (load_file(tmp_path / k / "refiner.safetensors") for k in "ab")
    assert a.keys() == b.keys() and largest_difference(a, b) > 0
    facts = read_lora(tmp_path / "b" / "refiner.safetensors").metadata
    assert facts["kind"] == "grpo" and facts["recipe"] == "nano"
    assert facts["data_manifest"] == manifest_hash(triplets)
    assert capsys.readouterr().out.count("wrote") == 2
    assert list((tmp_path / "prepared").glob("*/items.json"))
    assert not list(tmp_path.glob("[ab]/cache")), "both runs keep their crops in one folder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-steps", "0", "--grpo-steps", "0"], "--max-steps 0 and --grpo-steps 0"),
        (["--max-steps", "-1"], "--max-steps must be at least 0, got -1"),
        (["--data", "x", "--triplets", "4"], "--triplets"),
        (["--sft-set", "run.bacth=3"], "nearest is run.batch"),
        (["--grpo-set", "rollout.grops=3"], "nearest is rollout.group"),
        (["--device", "gpu7"], "gpu7"),
        (["--start", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--evaluate", "1"], "at least 2 scenes"),
    ],
)
def test_options_are_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", "nano", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_processes_are_for_the_single_stages(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "nano", "--out", str(tmp_path / "run")]) == 2
    assert "without accelerate or torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_comparing_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "train",
        "compare",
        "--b",
        "nano",
        "--count",
        "2",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    assert "| psnr |" in capsys.readouterr().out
    assert main([*command[:-5], "1"]) == 2
