"""Our single-reference path against diffusers' own FLUX.1-Kontext pipeline, same weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

from refiner_core import flow
from refiner_core.models.kontext import Conditioning, Denoiser
from refiner_core.models.tokens import pack, unpack
from refiner_core.models.vae import FluxCodec
from refiner_core.sampling import sample

STEPS, GUIDANCE = 4, 2.5


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.06, generator=generator)
    model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline() -> FluxKontextPipeline:
    transformer = FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=20, guidance_embeds=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=16,
        norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    randomise(transformer, 0)
    randomise(vae, 1)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=256, max_image_seq_len=4096,
    )  # fmt: skip
    pipe = FluxKontextPipeline(scheduler, vae, None, None, None, None, transformer)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Text 1 L D, pooled 1 P and noise 1 16 h w."""
    g = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 16, height // 8, width // 8, generator=g)
    return torch.randn(1, 7, 24, generator=g), torch.randn(1, 20, generator=g), noise


def theirs(pipe: FluxKontextPipeline, image: Tensor, height: int, width: int, out: str) -> Tensor:
    text, pooled, noise = inputs(height, width)
    return pipe(
        image=image, prompt_embeds=text, pooled_prompt_embeds=pooled, latents=pack(noise),
        height=height, width=width, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        output_type=out, return_dict=False, max_area=height * width, _auto_resize=False,
    )[0]  # fmt: skip


@torch.no_grad()
def ours(pipe: FluxKontextPipeline, reference: Tensor, height: int, width: int) -> Tensor:
    text, pooled, noise = inputs(height, width)
    mu = flow.resolution_shift((height // 16) * (width // 16))
    conditioning = Conditioning((reference,), (1,), text, pooled, GUIDANCE)
    model = Denoiser(pipe.transformer)
    return sample(model, noise, flow.sigmas(STEPS, mu), {"conditioning": conditioning})


@pytest.mark.parametrize(
    ("size", "reference"), [((64, 64), (64, 64)), ((96, 64), (64, 96)), ((64, 128), (32, 48))]
)
def test_latents_match(
    pipeline: FluxKontextPipeline, size: tuple[int, int], reference: tuple[int, int]
) -> None:
    h, w = size
    g = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 16, reference[0] // 8, reference[1] // 8, generator=g)
    wanted = unpack(theirs(pipeline, latent, h, w, "latent"), h // 8, w // 8)
    found = ours(pipeline, latent, h, w)
    noise = inputs(h, w)[2]
    assert float((wanted - noise).abs().mean()) > 0.05, "the sampler did something"
    assert float((found - wanted).abs().max()) < 1e-4


def test_pictures_match_through_the_autoencoder(pipeline: FluxKontextPipeline) -> None:
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(4))
    wanted = theirs(pipeline, image, 64, 48, "pt")
    codec = FluxCodec(pipeline.vae)
    found = codec.decode(ours(pipeline, codec.encode(image), 64, 48)).clamp(0, 1)
    assert float(wanted.std()) > 0.005, "the decoder draws something"
    assert float((found - wanted).abs().max()) < 1e-4
