"""The dual-input model on a real, tiny FluxTransformer2DModel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from refiner_core.models import tokens
from refiner_core.models.kontext import Conditioning, Denoiser, velocity
from tests.synthetic import zero_text


def tiny(guidance: bool = False) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def conditioning(batch: int = 1, guidance: float | None = None) -> Conditioning:
    g = torch.Generator().manual_seed(1)
    shapes = ((16, 6, 8), (16, 4, 10))
    references = tuple(torch.randn(batch, *s, generator=g) for s in shapes)
    text = torch.randn(batch, 3, 8, generator=g)
    return Conditioning(references, (1, 2), text, torch.randn(batch, 8, generator=g), guidance)


@pytest.fixture(scope="module")
def model() -> FluxTransformer2DModel:
    return tiny()


def noisy(batch: int, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("height", "width"), [(6, 8), (2, 2), (4, 12)])
def test_the_prediction_has_the_noisy_latents_shape(
    model: FluxTransformer2DModel, height: int, width: int
) -> None:
    x = noisy(2, height, width)
    v = velocity(model, x, 0.7, conditioning(2))
    assert v.shape == x.shape
    assert bool(torch.isfinite(v).all())


def test_it_is_flux_over_the_documented_sequence(model: FluxTransformer2DModel) -> None:
    """`[noisy | draft | reference]`, ids `[0|1|2, row, column]`, the noisy tokens' output."""
    x, c = noisy(1), conditioning()
    draft, reference = c.references
    ids = torch.cat(
        [tokens.position_ids(3, 4, 0), tokens.position_ids(3, 4, 1), tokens.position_ids(2, 5, 2)]
    )
    out = model(
        hidden_states=torch.cat([tokens.pack(x), tokens.pack(draft), tokens.pack(reference)], 1),
        encoder_hidden_states=c.text, pooled_projections=c.pooled, timestep=torch.tensor([0.7]),
        img_ids=ids, txt_ids=torch.zeros(3, 3), return_dict=False,
    )[0]  # fmt: skip
    expected = tokens.unpack(out[:, :12], 6, 8)
    torch.testing.assert_close(velocity(model, x, 0.7, c), expected, rtol=0, atol=0)


def test_rows_of_a_batch_do_not_mix(model: FluxTransformer2DModel) -> None:
    x, c, t = noisy(3), conditioning(3), torch.tensor([0.2, 0.6, 1.0])
    v = velocity(model, x, t, c)
    order = [2, 0, 1]
    mixed = replace(
        c, references=tuple(r[order] for r in c.references),
        text=c.text[order], pooled=c.pooled[order],
    )  # fmt: skip
    torch.testing.assert_close(velocity(model, x[order], t[order], mixed), v[order])
    alone = replace(
        c, references=tuple(r[:1] for r in c.references), text=c.text[:1], pooled=c.pooled[:1]
    )
    torch.testing.assert_close(velocity(model, x[:1], t[:1], alone), v[:1], rtol=1e-4, atol=1e-5)


def test_one_conditioning_serves_a_batch(model: FluxTransformer2DModel) -> None:
    x, c = noisy(3), conditioning(1)
    v = velocity(model, x, 0.5, c)
    for i in range(3):
        torch.testing.assert_close(
            velocity(model, x[i : i + 1], 0.5, c), v[i : i + 1], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("index", [0, 1])
def test_every_reference_matters_and_so_does_its_index(
    model: FluxTransformer2DModel, index: int
) -> None:
    x, c = noisy(1), conditioning()
    v = velocity(model, x, 0.5, c)
    changed = list(c.references)
    changed[index] = changed[index] + 1
    assert not torch.allclose(velocity(model, x, 0.5, replace(c, references=tuple(changed))), v)
    assert not torch.allclose(velocity(model, x, 0.5, replace(c, indices=(2, 1))), v)


def test_guidance_reaches_a_model_that_has_it() -> None:
    guided = tiny(guidance=True)
    x = noisy(2)
    low, high = (velocity(guided, x, 0.5, conditioning(2, g)) for g in (1.0, 4.0))
    assert not torch.allclose(low, high)
    assert torch.equal(velocity(guided, x, 0.5, conditioning(2, None)), low)


def test_the_denoiser_is_x_minus_t_v(model: FluxTransformer2DModel) -> None:
    x, c, t = noisy(2), conditioning(2), torch.tensor([0.3, 0.9])
    v = velocity(model, x, t, c)
    x0 = Denoiser(model)(x, t, conditioning=c)
    torch.testing.assert_close(x0, x - t.reshape(2, 1, 1, 1) * v, rtol=0, atol=1e-6)


def test_the_denoiser_returns_float32_from_a_bf16_model() -> None:
    half = tiny().bfloat16()
    x0 = Denoiser(half)(noisy(1), torch.tensor([0.5]), conditioning=conditioning())
    assert x0.dtype == torch.float32
    full = Denoiser(tiny())(noisy(1), torch.tensor([0.5]), conditioning=conditioning())
    torch.testing.assert_close(x0, full, rtol=0, atol=0.1)


def test_zero_text_fits_the_model(model: FluxTransformer2DModel) -> None:
    text, pooled = zero_text(model, 2, 5)
    assert (text.shape, pooled.shape) == ((2, 5, 8), (2, 8))
    assert float(text.abs().sum() + pooled.abs().sum()) == 0


def test_as_many_indices_as_references() -> None:
    c = conditioning()
    with pytest.raises(ValueError, match="2 reference latents"):
        replace(c, indices=(1,))
