"""Supervised training: what learns, what a step depends on, and what survives."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from torch import Tensor, nn

from refiner_core.models.kontext import Conditioning
from refiner_core.recipes.recipe import KONTEXT, OMNIREFINER, Recipe
from refiner_core.training.config import SFT_PRESETS, GrpoConfig, SftConfig
from refiner_core.training.dataset import Item, collate, epoch_batches
from refiner_core.training.policy import Policy, VelocityNet
from refiner_core.training.settings import (
    build,
    merged,
    parse_assignments,
    read_settings_file,
    write_toml,
)
from refiner_core.training.sft import SftObjective
from refiner_core.training.timestep_sampling import sample_timesteps
from refiner_core.training.trainable import LORA_TARGETS, Trainable, add_lora, continue_lora
from refiner_core.training.trainer import Trainer
from refiner_core.training.validation import repair
from refiner_core.weights import safetensors_io
from refiner_core.weights.lora import apply_lora, read_lora
from tests.jobs import job_of
from tests.tiny_training import (
    SETTINGS,
    TinyDataset,
    largest_difference,
    tiny_engine,
    tiny_flux,
    tiny_session,
    tiny_train,
    tiny_trainer,
)


def settings(**over: Any) -> SftConfig:
    return build(SftConfig, merged(SETTINGS, over))


def trainer(out: Path, **over: Any) -> tuple[Trainer, SftObjective]:
    config = settings(**over)
    run = tiny_trainer(config, tiny_session(config, out))
    assert isinstance(run.objective, SftObjective)
    return run, run.objective


def loss_of_first_batch(objective: SftObjective) -> Tensor:
    items = [objective.learner.dataset[i] for i in objective.indices()]
    return objective.term(items, [0, 1, 2, 3], 1.0).value


def weights(t: Trainable) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in t.parameters.items()}


# --- what learns ----------------------------------------------------------------------------------


def test_the_lora_is_on_attention_and_feed_forward_of_all_blocks() -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    trainable = add_lora(model, 1, 1.0)
    modules = {name.rpartition(".")[0] for name in trainable.parameters}
    assert len(modules) == 418
    assert len(trainable) == pytest.approx(4.086e6, rel=1e-3)
    assert "proj_out" not in modules
    assert not any("norm" in m for m in modules)
    assert LORA_TARGETS.count("proj_out") == 1


def test_gradients_reach_every_lora_matrix_and_nothing_else(tmp_path: Path) -> None:
    run, objective = trainer(tmp_path)
    net = objective.learner.policy.net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for name, p in run.trainable.parameters.items():
        if name.endswith("lora_B"):
            p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    loss_of_first_batch(objective).backward()
    learning = {id(p) for p in run.trainable.parameters.values()}
    assert len(learning) == 2 * 17
    for name, p in net.named_parameters():
        if id(p) in learning:
            assert p.grad is not None, name
            assert float(p.grad.abs().max()) > 0, name
        else:
            assert p.grad is None, name
            assert not p.requires_grad, name
    run.optimizer.step()
    after = net.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert all(".lora_" in k for k in changed)
    assert len(changed) == 2 * 17


@pytest.mark.parametrize("recipe", [OMNIREFINER, KONTEXT], ids=lambda r: r.name)
def test_training_lays_tokens_out_as_inference_does(tmp_path: Path, recipe: Recipe) -> None:
    engine, item = replace(tiny_engine(), recipe=recipe), TinyDataset()[0]
    for p in engine.model.parameters():
        p.data.mul_(4)  # attention that minds positions
    text, pooled = engine.text("a word", 5)
    batch = collate([item], [(text, pooled)], recipe, 2.5, engine.device)
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    policy = Policy(VelocityNet(engine.model), engine.device)
    trained = repair(policy, batch.conditioning, batch.target.shape, sigmas, 3)
    job = job_of(item.references, sigmas, recipe.order, prompt="a word", guidance=2.5, seed=3)
    assert torch.allclose(trained, engine.sample(job, lambda *_: None), atol=1e-5)
    other = {"index": "offset", "offset": "index"}[recipe.layout]
    elsewhere = replace(batch.conditioning, layout=other)
    assert not torch.allclose(
        trained, repair(policy, elsewhere, batch.target.shape, sigmas, 3), atol=1e-3
    )


class Oracle(nn.Module):
    """Knows the answer: the truth stands in the draft's place."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return (x - conditioning.references[0]) / t.reshape(-1, 1, 1, 1) + 0 * self.unused


class Known(TinyDataset):
    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return replace(item, references=(item.target, item.references[1]))


def test_a_perfect_model_has_no_loss(tmp_path: Path) -> None:
    config = settings(loss={"reference_dropout": 0.0})
    session = tiny_session(config, tmp_path)
    net = Oracle()
    session.policy = Policy(net, torch.device("cpu"))
    session.trainable = Trainable(dict(net.named_parameters()))
    session.dataset = Known()
    assert loss_of_first_batch(SftObjective(config, session)).item() < 1e-8


# --- what a step depends on -----------------------------------------------------------------------


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    whole, _ = trainer(tmp_path / "a", run={"batch": 8, "micro_batch": 8})
    parts, _ = trainer(tmp_path / "b", run={"batch": 8, "micro_batch": 1})
    for _ in range(3):
        a, b = whole.train_step(), parts.train_step()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert largest_difference(weights(whole.trainable), weights(parts.trainable)) < 2e-4


def test_batches_are_of_one_shape_and_leave_nothing_out() -> None:
    shapes = TinyDataset().shapes
    for epoch in range(3):
        batches = epoch_batches(shapes, 4, 0, epoch)
        assert all(len({shapes[i] for i in b}) == 1 and len(b) == 4 for b in batches)
        assert {i for b in batches for i in b} == set(range(10))
        assert batches == epoch_batches(shapes, 4, 0, epoch)
    assert epoch_batches(shapes, 4, 0, 0) != epoch_batches(shapes, 4, 0, 1)
    assert epoch_batches(shapes[:1], 4, 0, 0) == [[0, 0, 0, 0]]


def test_a_batch_must_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.batch = 4 is not a multiple of run.micro_batch = 3"):
        trainer(tmp_path, run={"micro_batch": 3})


@pytest.mark.parametrize("kind", ["uniform", "logit_normal", "mode", "cosmap"])
def test_times(kind: Any) -> None:
    g = torch.Generator().manual_seed(0)
    t = sample_timesteps(20000, g, kind)
    assert float(t.min()) >= 0.0199
    assert float(t.max()) <= 1
    assert float(t.median()) == pytest.approx(0.5, abs=0.02), "symmetric about the middle"
    shifted = sample_timesteps(20000, g, kind, mu=1.0)
    assert float(shifted.median()) == pytest.approx(math.e / (math.e + 1), abs=0.02)
    flat = sample_timesteps(20000, g, kind, uniform=1.0, mu=3.0)
    assert float(flat.mean()) == pytest.approx(0.51, abs=0.01)


def test_logit_normal_times() -> None:
    g = torch.Generator().manual_seed(0)
    t = sample_timesteps(20000, g, mean=2.0, std=1.2)
    assert float(t.median()) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.01)


# --- what survives --------------------------------------------------------------------------------


class Poisoned(TinyDataset):
    """Every case of one shape is broken."""

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return replace(item, target=item.target * math.nan) if index % 2 else item


def test_a_batch_of_nan_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, objective = trainer(tmp_path)
    objective.learner.dataset = Poisoned()
    skipped = 0
    for _ in range(6):
        before = weights(run.trainable)
        row = run.train_step()
        poisoned = any(c % 2 for c in objective.indices())
        moved = largest_difference(before, weights(run.trainable)) > 0
        assert math.isfinite(row["loss"]) == (not poisoned) == moved
        skipped += poisoned
    assert 0 < skipped < 6
    assert capsys.readouterr().out.count("skipped: ") == skipped
    values = [*run.trainable.parameters.values(), *run.trainable.copies["ema"].values()]
    assert all(bool(torch.isfinite(v).all()) for v in values)


def test_a_run_of_nothing_but_nan_stops(tmp_path: Path) -> None:
    run, objective = trainer(tmp_path, run={"batch": 1, "micro_batch": 1})

    class Broken(TinyDataset):
        def __getitem__(self, index: int) -> Item:
            item = super().__getitem__(index)
            return replace(item, target=item.target * math.nan)

    objective.learner.dataset = Broken()
    with pytest.raises(ValueError, match="^20 .*optimizer.rate"):
        for _ in range(30):
            run.train_step()


def test_a_full_disk_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(run={"max_steps": 1})
    tiny_train(config, tiny_session(config, tmp_path))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_io, "save_file", full)
    more = settings(run={"max_steps": 3})
    with pytest.raises(OSError, match="No space left"):
        tiny_train(more, tiny_session(more, tmp_path))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = settings(run={"max_steps": 1})
    tiny_train(config, tiny_session(config, tmp_path))
    other = settings(model={"rank": 5})
    with pytest.raises(ValueError, match="another model or rank.*another --out"):
        tiny_train(other, tiny_session(other, tmp_path))


# --- what comes out -------------------------------------------------------------------------------


def test_the_exported_lora_is_what_was_trained(tmp_path: Path) -> None:
    config = settings(run={"max_steps": 2})
    session = tiny_session(config, tmp_path)
    path = tiny_train(config, session)
    lora = read_lora(path)
    assert lora.metadata["recipe"] == "omnirefiner"
    assert lora.metadata["data_manifest"] == "none"
    assert len(lora.metadata["base_fingerprint"]) == 16
    assert json.loads(lora.metadata["settings"])["model"]["alpha"] == 6.0
    assert "loss" in json.loads(lora.metadata["figures"])

    item = TinyDataset()[0]
    text, pooled = tiny_engine().text("x", 5)
    c = Conditioning(item.references, (1, 2), text, pooled, 1.0)
    x, t = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(5)), torch.tensor([0.6])
    with torch.no_grad(), session.trainable.swapped("ema"):
        trained = session.policy.velocity(x, t, c)
    merged_model = tiny_flux().requires_grad_(False)
    base = Policy(session.policy.net.__class__(merged_model), torch.device("cpu"))
    with torch.no_grad():
        bare = base.velocity(x, t, c)
        apply_lora(merged_model, lora)
        ours = base.velocity(x, t, c)
    assert float((ours - bare).abs().max()) > 1e-3
    torch.testing.assert_close(ours, trained, rtol=1e-4, atol=1e-5)


def test_a_lora_can_be_trained_further(tmp_path: Path) -> None:
    config = settings(run={"max_steps": 1})
    path = tiny_train(config, tiny_session(config, tmp_path / "a"))
    first = tiny_session(settings(model={"lora": str(path)}), tmp_path / "b")
    again = {k: a for k, (a, _) in first.trainable.lora_pairs().items()}
    lora = read_lora(path)
    assert all(torch.equal(again[k], lora.factors[k][0].a) for k in again)
    small = {k: f for k, f in lora.factors.items() if "ff" not in k}
    from refiner_core.weights.lora import save_lora

    save_lora(tmp_path / "part.safetensors", {k: (f[0].a, f[0].b) for k, f in small.items()})
    with pytest.raises(ValueError, match="missing:.*omnirefiner merge"):
        continue_lora(tiny_flux(), tmp_path / "part.safetensors")


def test_checkpoints_hold_no_base_weight(tmp_path: Path) -> None:
    config = settings(run={"max_steps": 1})
    tiny_train(config, tiny_session(config, tmp_path))
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as f:
        assert all(".lora_" in k for k in f.keys())  # noqa: SIM118


def test_curves_and_pictures_reach_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = settings(run={"max_steps": 2, "validate_every": 1, "board": "wandb"})
    tiny_train(config, tiny_session(config, tmp_path))
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = kept.glob("*.wandb")
    content = log.read_bytes()
    for name in (b"held_out/psnr", b"norm", b"caption_dropout"):
        assert name in content
    assert len(list(kept.glob("files/media/images/held-out_*.png"))) == 3


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SFT_PRESETS)
def test_presets_are_settings_and_toml_reads_back(tmp_path: Path, name: str) -> None:
    config = build(SftConfig, SFT_PRESETS[name])
    (tmp_path / "c.toml").write_text(write_toml(config))
    assert build(SftConfig, read_settings_file(tmp_path / "c.toml")) == config
    (tmp_path / "c.json").write_text(json.dumps(SFT_PRESETS[name]))
    assert build(SftConfig, read_settings_file(tmp_path / "c.json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"rnk": 4}}, r"no setting 'model.rnk'; the nearest is model.rank"),
        ({"optimiser": {}}, "nearest is optimizer"),
        ({"model": {"rank": "big"}}, "model.rank must be of type int, got 'big'"),
        ({"model": {"rank": 0}}, "model.rank must be from 1 to 1024, got 0"),
        ({"model": {"train": "full", "quantize": "nf4"}}, "model.quantize = .nf4."),
        ({"model": {"train": "full", "lora": "x.safetensors"}}, "model.lora"),
        ({"data": {"context": [3.0, 1.5]}}, r"data.context .*\[3.0, 1.5\]"),
        ({"data": {"context": [3.0]}}, "takes 2 values"),
        ({"loss": {"region": 0, "background": 0}}, "loss.region and loss.background"),
        ({"run": 3}, "run is a group of settings"),
    ],
)
def test_bad_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SftConfig, values)


@pytest.mark.parametrize("config", [SftConfig, GrpoConfig])
def test_every_number_out_of_its_range_is_named(config: type[Any]) -> None:
    tried = 0
    for group in dataclasses.fields(config):
        for f in dataclasses.fields(group.default_factory):  # type: ignore[arg-type]
            if f.metadata["range"]:
                low, high = f.metadata["range"]
                for value in (low - 1, high + 1):
                    message = rf"^{group.name}\.{f.name} must be from \S+ to \S+, got"
                    with pytest.raises(ValueError, match=message):
                        build(config, {group.name: {f.name: value}})
                    tried += 1
    assert tried > 40


def test_assignments_of_the_command_line() -> None:
    found = parse_assignments(
        ["run.batch=3", "model.base=my file.safetensors", "data.context=[1.5, 2]"]
    )
    assert found["run"] == {"batch": 3}
    assert found["model"] == {"base": "my file.safetensors"}
    assert build(SftConfig, found).data.context == (1.5, 2.0)
    with pytest.raises(ValueError, match="group.name=value"):
        parse_assignments(["run.batch"])


@pytest.mark.parametrize("name", ["none.toml", "broken.toml", "broken.json", "settings.yaml"])
def test_bad_settings_files(tmp_path: Path, name: str) -> None:
    if name != "none.toml":
        (tmp_path / name).write_text("{ = ")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_settings_file(tmp_path / name)
