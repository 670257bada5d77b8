"""A LoRA on a base in fewer bits: the command as a user runs it, and what it leaves alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from refiner_core.__main__ import main
from refiner_core.load import load_engine
from refiner_core.training.config import Quantize, SftConfig
from refiner_core.training.memory_estimate import BITS
from refiner_core.training.quantize import quantize
from refiner_core.training.settings import build, merged
from refiner_core.training.sft import SftObjective
from refiner_core.training.trainer import Trainer
from refiner_core.weights.lora import apply_lora, read_lora
from tests.tiny_kontext import write_kontext
from tests.tiny_training import SETTINGS, final, tiny_session, tiny_trainer

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture(params=PACKAGES)
def kind(request: pytest.FixtureRequest) -> Quantize:
    if not has(PACKAGES[request.param]):
        pytest.skip(f"the package {PACKAGES[request.param]} is not installed")
    return request.param


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base, and triplets."""
    data = tmp_path_factory.mktemp("triplets")
    assert main(["data", "build", "--out", str(data), "--count", "6"]) == 0
    return write_kontext(tmp_path_factory.mktemp("kontext")), data


def size(p: Tensor) -> int:
    """Bytes of a weight with all its scales."""
    if hasattr(p, "__tensor_flatten__"):  # torchao
        return sum(size(getattr(p, name)) for name in p.__tensor_flatten__()[0])
    scales = [p.quant_state.absmax] if hasattr(p, "quant_state") else []  # bitsandbytes
    return sum(t.numel() * t.element_size() for t in (p, *scales))


def test_a_block_is_as_small_as_planned_and_means_the_same(kind: Quantize) -> None:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=4)
    model.to(torch.bfloat16)
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and "transformer_blocks" in n
    }
    numbers = sum(m.weight.numel() for m in layers.values())
    x = {n: torch.randn(3, m.in_features, dtype=torch.bfloat16) for n, m in layers.items()}
    with torch.no_grad():
        before = {n: m(x[n]).float() for n, m in layers.items()}
        quantize(model, kind, torch.device("cpu"))
        after = {n: model.get_submodule(n)(x[n]).float() for n in layers}
    held = sum(size(model.get_submodule(n).weight) for n in layers)
    assert 8 * held / numbers == pytest.approx(BITS[kind], rel=0.03)
    for name in layers:
        error = float((after[name] - before[name]).norm() / before[name].norm())
        assert 0 < error < {"int8": 0.01, "fp8": 0.04, "nf4": 0.12}[kind], name
    assert type(model.proj_out.weight) is nn.Parameter
    assert model.proj_out.weight.dtype == torch.bfloat16


def trainer(out: Path, kind: Quantize) -> tuple[Trainer, SftObjective]:
    over = {"model": {"quantize": kind, "precision": "bf16", "rank": 8}, "optimizer": {"clip": 9.0}}
    config = build(SftConfig, merged(SETTINGS, over))
    run = tiny_trainer(config, tiny_session(config, out))
    assert isinstance(run.objective, SftObjective)
    return run, run.objective


def test_gradients_reach_every_lora_matrix_and_nothing_else(tmp_path: Path, kind: Quantize) -> None:
    run, objective = trainer(tmp_path, kind)
    items = [objective.learner.dataset[i] for i in objective.indices()]
    for name, p in run.trainable.parameters.items():
        if name.endswith("lora_B"):
            p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    objective.term(items, [0, 1, 2, 3], 1.0).value.backward()
    learning = {id(p) for p in run.trainable.parameters.values()}
    assert len(learning) == 2 * 17
    for name, p in objective.learner.policy.net.named_parameters():
        assert p.requires_grad == (id(p) in learning), name
        assert (p.grad is not None and float(p.grad.abs().max()) > 0) == p.requires_grad, name


def test_the_loss_falls(tmp_path: Path, kind: Quantize) -> None:
    run, objective = trainer(tmp_path, kind)
    items = [objective.learner.dataset[i] for i in objective.indices()]
    losses = []
    for _ in range(25):  # the same noise and levels each time
        run.optimizer.zero_grad()
        loss = objective.term(items, [0, 1, 2, 3], 1.0).value
        loss.backward()
        run.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_command_trains_resumes_and_its_lora_fits_the_plain_base(
    tmp_path_factory: pytest.TempPathFactory, kontext: tuple[Path, Path], kind: Quantize
) -> None:
    folder, data = kontext
    outs = [tmp_path_factory.mktemp(name) for name in ("whole", "halves")]
    arguments = [
        "train",
        "sft",
        "--preset",
        "kontext-24gb",
        "--data",
        str(data),
        "--device",
        "cpu",
        "--set",
        f"model.base={folder}",
        "--set",
        f"model.quantize={kind}",
        "--set",
        "model.rank=64",  # matrices of 4096 numbers and more get 8-bit moments
        "--set",
        "data.megapixels=0.004",
        "--set",
        "data.held_out=1",
        "--set",
        "optimizer.rate=0.01",
        "--set",
        "run.sample_every=0",
        "--set",
        "run.board=none",
        "--set",
        "optimizer.warmup=0",
        "--set",
        f"optimizer.eight_bit={'true' if has('bitsandbytes') else 'false'}",
    ]
    for out, steps in ((outs[0], "4"), (outs[1], "2"), (outs[1], "4")):
        assert main([*arguments, "--out", str(out), "--max-steps", steps]) == 0
    a, b = (final(out) for out in outs)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    if has("bitsandbytes"):
        assert {v.dtype for k, v in a.items() if k.startswith("optimizer:state1")} == {torch.uint8}
    lora = read_lora(outs[0] / "refiner.safetensors")
    assert json.loads(lora.metadata["settings"])["model"]["quantize"] == kind
    base = load_engine(str(folder), device="cpu").model
    plain = {k: v.clone() for k, v in base.state_dict().items()}
    assert apply_lora(base, lora) == 17
    changed = {k for k, v in base.state_dict().items() if not torch.equal(v, plain[k])}
    assert len(changed) == 17
