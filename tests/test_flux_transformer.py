"""Our FLUX transformer and diffusers' on the same weights: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from refiner_core.models.flux_transformer import FluxTransformer
from refiner_core.nano.initialisation import initialise, nano_config
from refiner_core.training.trainable import add_lora

NANO = nano_config()
GUIDED: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
Pair = tuple[FluxTransformer2DModel, FluxTransformer]


def twins(config: dict[str, Any]) -> Pair:
    """Both classes with the same random weights."""
    theirs, ours = FluxTransformer2DModel(**config), FluxTransformer(**config)
    generator = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.data.normal_(0, 0.08, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, 30, 64, generator=g), torch.randn(2, 5, 64, generator=g)
    return {
        "hidden_states": image.to(dtype),
        "encoder_hidden_states": text[..., : config["joint_attention_dim"]].to(dtype),
        "pooled_projections": torch.randn(2, config["pooled_projection_dim"], generator=g).to(
            dtype
        ),
        "timestep": torch.tensor([0.3, 0.7]).to(dtype),
        "img_ids": torch.randint(0, 50, (30, 3), generator=g).float(),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.tensor([2.5, 3.5]).to(dtype) if config["guidance_embeds"] else None,
        "return_dict": False,
    }


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("config", [NANO, GUIDED], ids=["nano", "guided"])
def test_the_same_weights(config: dict[str, Any]) -> None:
    """Names in the same order, so that a seed draws the same numbers for both."""
    theirs, ours = twins(config)
    shapes = [(k, v.shape) for k, v in theirs.state_dict().items()]
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == shapes
    assert all(ours.config[k] == v for k, v in config.items())


@pytest.mark.parametrize("config", [NANO, GUIDED], ids=["nano", "guided"])
def test_the_same_velocity_and_gradients(config: dict[str, Any]) -> None:
    theirs, ours = twins(config)
    wanted, found = theirs(**inputs(config))[0], ours(**inputs(config))[0]
    assert apart(found, wanted) < 1e-6
    for out in (wanted, found):
        out.square().sum().backward()
    gradients = zip(theirs.named_parameters(), ours.parameters(), strict=True)
    for (name, p), q in gradients:
        assert p.grad is not None and q.grad is not None, name
        assert apart(q.grad, p.grad) < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_in_half_precision(dtype: torch.dtype) -> None:
    theirs, ours = (m.to(dtype).eval() for m in twins(GUIDED))
    values = inputs(GUIDED, dtype)
    with torch.no_grad():
        assert ours.dtype == dtype
        assert apart(ours(**values)[0], theirs(**values)[0]) < 1e-6


def test_an_attention_mask_is_obeyed_alike() -> None:
    theirs, ours = twins(GUIDED)
    seen = torch.ones(1, 1, 35, 35, dtype=torch.bool)
    seen[..., 20:, :20] = False
    values = inputs(GUIDED) | {"joint_attention_kwargs": {"attention_mask": seen}}
    with torch.no_grad():
        wanted = theirs(**values)[0]
        assert apart(ours(**values)[0], wanted) < 1e-6
        assert apart(wanted, theirs(**inputs(GUIDED))[0]) > 1e-3


def test_checkpointing_changes_no_gradient() -> None:
    _, ours = twins(GUIDED)
    gradients = []
    for _ in range(2):
        ours.zero_grad()
        ours(**inputs(GUIDED))[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
        ours.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_lora_learns_alike() -> None:
    """peft finds the same modules, starts them the same and gets the same gradients."""
    pair = twins(GUIDED)
    trainables = [add_lora(model, 4, 8, seed=3) for model in pair]
    assert list(trainables[0].parameters) == list(trainables[1].parameters)
    for model, trainable in zip(pair, trainables, strict=True):
        g = torch.Generator().manual_seed(2)
        for name, p in trainable.parameters.items():
            if name.endswith("lora_B"):
                p.data.normal_(0, 0.05, generator=g)
        model(**inputs(GUIDED))[0].square().sum().backward()
    for name, p in trainables[0].parameters.items():
        q = trainables[1].parameters[name]
        assert torch.equal(p, q), name
        assert p.grad is not None and q.grad is not None, name
        assert float(p.grad.abs().max()) > 0 and apart(q.grad, p.grad) < 1e-6, name


def test_an_untrained_nano_is_the_same_in_both() -> None:
    theirs, ours = twins(NANO)
    initialise(theirs)  # type: ignore[arg-type]
    initialise(ours)
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q), name
