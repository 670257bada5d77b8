"""RefineAnything in ComfyUI beside the pipeline that its authors run, on the same small random weights.

Theirs is diffusers' QwenImageEditPlusPipeline, called as `scripts/fast_inference.py` calls it (which
tests/test_published_code.py checks); ours is Reference Refine's pipeline on ComfyUI's Qwen-Image.
The pictures are of sizes that neither side has to resize. Figures go to standard output (pytest -s).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from refiner_core.sampling import draw_noise

SCRIPT = Path(__file__).with_name("refineanything_native.py")
SMALL = 16  # how many times smaller than a megapixel both sides work
SEEN = ((320, 192), (160, 384), (320, 192))  # draft, reference, mask


def transformer() -> QwenImageTransformer2DModel:
    """Two blocks in the layout of Qwen-Image-Edit-2511, which keeps clean tokens at time 0."""
    model = QwenImageTransformer2DModel(
        num_layers=2, num_attention_heads=1, joint_attention_dim=24, zero_cond_t=True
    )
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name and p.ndim == 1:
            p.data.fill_(1)
        else:
            p.data.normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.05, generator=generator)
    return model.eval().requires_grad_(False)


def picture(width: int, height: int, seed: int) -> Tensor:
    """1 3 H W of whole 8-bit values, so that both sides see the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    return (F.interpolate(coarse, (height, width), mode="bilinear") * 255).round() / 255


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())


def latent_of(pixels: Tensor) -> Tensor:
    """The autoencoder of both sides: B C 1 H W of pixels in [0, 1]."""
    return F.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16, None]


class StandIn:
    """That autoencoder, with what the pipeline reads of the real one."""

    dtype, temperal_downsample = torch.float32, (False, True, True)
    config = AutoencoderKLQwenImage(base_dim=4).config

    def encode(self, x: Tensor) -> Any:
        latent = latent_of((x[:, :, 0] + 1) / 2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latent))


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    """What both sides get. The reference's longer side is longer than the draft's."""
    mask = torch.zeros(1, 1, 192, 320)
    mask[..., 24:168, 40:280] = 1
    generator = torch.Generator().manual_seed(1)
    text, negative = (torch.randn(1, n, 24, generator=generator) for n in (17, 9))
    return {
        "draft": picture(320, 192, 2), "reference": picture(160, 384, 3), "mask": mask,
        "text": text, "negative": negative,
        **{f"model.{k}": v.clone() for k, v in transformer().state_dict().items()},
    }  # fmt: skip


@pytest.fixture(scope="module")
def ours(
    run_in_comfyui: Any, given: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("refineanything")
    save_file(given, folder / "in.safetensors")
    run_in_comfyui(SCRIPT, folder / "in.safetensors", folder / "out.safetensors")
    with safe_open(folder / "out.safetensors", "pt") as f:
        told = json.loads(f.metadata()["told"])
    return load_file(folder / "out.safetensors"), told


def published(
    given: dict[str, Tensor], reference: bool, cfg: float, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Their run of two steps: by the network's call what it got and gave, and the last latent."""
    shift = math.log(3)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=shift, max_shift=shift, base_image_seq_len=256, max_image_seq_len=8192,
        use_dynamic_shifting=True, time_shift_type="exponential",
    )  # fmt: skip
    model = transformer()
    found: dict[str, Any] = {"tokens": [], "time": [], "velocity": [], "rope": [], "shown": []}
    model.img_in.register_forward_pre_hook(lambda _, a: found["tokens"].append(a[0].clone()))
    model.pos_embed.register_forward_hook(
        lambda _m, _a, out: found["rope"].append(torch.cat([out[1], out[0]]))
    )

    def seen(_: Any, _a: Any, kwargs: dict[str, Any], out: Any) -> None:
        found["time"].append(kwargs["timestep"].clone())
        found["velocity"].append(out[0].clone())

    model.register_forward_hook(seen, with_kwargs=True)
    pipe: Any = QwenImageEditPlusPipeline(scheduler, StandIn(), None, None, None, model)  # type: ignore[arg-type]
    whole = edit_plus.calculate_dimensions
    monkeypatch.setattr(edit_plus, "calculate_dimensions", lambda a, r: whole(a / SMALL, r))

    def encode_prompt(prompt: str, image: list[Image.Image], **_: Any) -> tuple[Tensor, None]:
        found["shown"].append([i.size for i in image])
        return given["negative" if prompt == " " else "text"], None

    pipe.encode_prompt = encode_prompt
    pipe.set_progress_bar_config(disable=True)
    mask = given["mask"].expand(-1, 3, -1, -1)
    images = [given["draft"], *([given["reference"]] if reference else []), mask]
    noise = draw_noise((1, 16, 1, 24, 40), 0)
    found["latent"] = pipe(
        image=[pil(i) for i in images], prompt="Refine the LOGO.", true_cfg_scale=cfg,
        negative_prompt=" ", num_inference_steps=2, guidance_scale=1.0, num_images_per_prompt=1,
        latents=pipe._pack_latents(noise, 1, 16, 24, 40), output_type="latent",
    ).images  # fmt: skip
    return found


def packed(latent: Tensor) -> Tensor:
    """B 16 1 h w to B (h/2 w/2) 64, as the pipeline packs it."""
    _, c, _, h, w = latent.shape
    return QwenImageEditPlusPipeline._pack_latents(latent, 1, c, h, w)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_tokens_positions_times_and_velocity(
    given: dict[str, Tensor], ours: tuple[dict[str, Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CFG, as with Lightning: [noise | crop | reference | mask], two steps."""
    theirs, own = published(given, True, 1.0, monkeypatch), ours[0]
    sizes = (20 * 12, 20 * 12, 10 * 24, 20 * 12)
    assert own["quick.tokens.0"].shape == theirs["tokens"][0].shape == (1, sum(sizes), 64)
    for i in range(2):
        assert apart(own[f"quick.tokens.{i}"], theirs["tokens"][i]) < 1e-4
        assert apart(own[f"quick.time.{i}"], theirs["time"][i]) < 1e-6
        rope = torch.view_as_complex(own[f"quick.rope.{i}"])
        assert rope.shape == theirs["rope"][i].shape and apart(rope, theirs["rope"][i]) < 1e-5
        far = apart(packed(own[f"quick.velocity.{i}"]), theirs["velocity"][i][:, : sizes[0]])
        size = float(theirs["velocity"][i].abs().max())
        print(f"RefineAnything: step {i}: velocity apart by {far:.1e}, largest value {size:.2f}")
        assert far < 1e-3 < size
    for way, pictures in (("quick", sizes), ("without", (sizes[0],) * 3)):
        kinds = own[f"{way}.ids.0"][0, -sum(pictures) :, 0].split(pictures)
        assert [k.unique().tolist() for k in kinds] == [[i] for i in range(len(pictures))]


@pytest.mark.parametrize(("way", "reference", "cfg"), [
    ("quick", True, 1.0), ("both", True, 4.0), ("without", False, 4.0),
])  # fmt: skip
def test_the_sampled_latent(
    given: dict[str, Tensor], ours: tuple[dict[str, Tensor], Any], way: str, reference: bool,
    cfg: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After two steps, also under CFG with the negative prompt, and without a reference."""
    theirs = published(given, reference, cfg, monkeypatch)["latent"]
    # What our autoencoder was handed is scaled back from the network's latents.
    own = packed(_scaled(ours[0][f"{way}.latent.0"]))
    far, size = apart(own, theirs), float(theirs.abs().max())
    print(
        f"RefineAnything: {way}, CFG {cfg:g}: latent apart by {far:.1e}, largest value {size:.2f}"
    )
    assert far < 1e-3 < size


def _scaled(latent: Tensor) -> Tensor:
    shape = (1, 16, 1, 1, 1)
    mean, std = (
        torch.tensor(StandIn.config[f"latents_{k}"]).reshape(shape) for k in ("mean", "std")
    )
    return (latent - mean) / std


def test_what_the_text_encoder_is_given(ours: tuple[dict[str, Tensor], Any]) -> None:
    """The same words. Its pictures keep their proportions; the pipeline rounds sides to 32 px."""
    template = QwenImageEditPlusPipeline(
        None, StandIn(), None, None, None, None  # type: ignore[arg-type]
    ).prompt_template_encode  # fmt: skip
    one = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
    told = ours[1]
    for way, count, words in (
        ("both", 3, ["Refine the LOGO.", " "]), ("without", 2, ["Refine the LOGO.", " "]),
        ("quick", 3, ["Refine the LOGO."]),
    ):  # fmt: skip
        pictures = "".join(one.format(i + 1) for i in range(count))
        assert told[way]["texts"] == [template.format(pictures + w) for w in words]
        assert told[way]["outside"] == 0 < told[way]["inside"]
    for (height, width), asked in zip(told["quick"]["shown"][0], SEEN, strict=True):
        width_32, height_32 = edit_plus.calculate_dimensions(384 * 384, asked[0] / asked[1])
        assert abs(width - width_32) <= 32 and abs(height - height_32) <= 32
