"""The published code of ImageCritic and RefineAnything beside ours, on the same small random weights.

Optional: IMAGECRITIC_CODE and REFINEANYTHING_CODE name checkouts of HVision-NKU/ImageCritic and
limuloo/RefineAnything. Figures go to standard output (pytest -s).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from refiner_core.images.geometry import Box, Extent
from refiner_core.models import tokens
from refiner_core.models.detail_encoder import fill_triggers, load_detail_encoder
from refiner_core.models.kontext import Conditioning, velocity
from refiner_core.recipes.recipe import IMAGECRITIC, REFINEANYTHING, Recipe
from refiner_core.repair.pipeline import refine
from refiner_core.repair.request import RefineOptions, RefineRequest
from refiner_core.sampling import draw_noise
from refiner_core.weights.imagecritic_lora import merge_imagecritic, read_imagecritic_lora

from . import synthetic
from .faults import ModelThat, checkerboard, displacement, seam

# Pictures and regions whose crops have other proportions than any of the models' sizes.
PLACES = [
    (Extent(640, 427), Box(210, 130, 430, 300)),
    (Extent(1000, 300), Box(100, 60, 900, 240)),
    (Extent(300, 900), Box(60, 80, 240, 820)),
    (Extent(901, 700), Box(700, 200, 901, 520)),
]


def checkout(variable: str, mark: str) -> Path:
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"no published code: {variable} names no checkout")
    assert (Path(folder) / mark).is_file(), f"{variable}={folder} holds no {mark}"
    return Path(folder)


@pytest.fixture(scope="module")
def imagecritic() -> Iterator[Any]:
    """`imagecritic(module)` of its `src`; imports that these parts do not use are stood in for."""
    folder = checkout("IMAGECRITIC_CODE", "src/detail_encoder.py")
    unused = {
        "turtle": {"update": None}, "einops": {"rearrange": None}, "torchvision": {},
        "torchvision.transforms": {}, "torchvision.transforms.functional": {"pad": None},
    }  # fmt: skip
    patch = pytest.MonkeyPatch()
    for name, members in unused.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        patch.setitem(sys.modules, name, module)
    patch.syspath_prepend(str(folder))
    yield lambda module: importlib.import_module(f"src.{module}")
    patch.undo()
    for name in [n for n in sys.modules if n == "src" or n.startswith("src.")]:
        del sys.modules[name]


def tell(*words: object) -> None:
    print("published code:", *words)


def small_encoder(imagecritic: Any) -> Any:
    """Their detail encoder at its own width with two of its 24 layers."""
    module = imagecritic("detail_encoder")
    module.VISION_CONFIG_DICT["num_hidden_layers"] = 2
    return module.DetailEncoder().eval().requires_grad_(False)


def test_detail_encoder_gives_the_same_conditioning(imagecritic: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = small_encoder(imagecritic)
    save_file(theirs.state_dict(), tmp_path / "e.safetensors")
    ours, loading = load_detail_encoder(tmp_path / "e.safetensors")
    assert loading == "assign"
    text = torch.randn(1, 24, 4096, generator=torch.Generator().manual_seed(1))
    pictures = [
        torch.rand(1, 3, 112, 80, generator=torch.Generator().manual_seed(i)) for i in (2, 3)
    ]
    expected = text
    for at, picture in zip((4, 18), pictures, strict=True):
        mask = torch.zeros(1, 24, dtype=torch.bool)
        mask[:, at] = True
        # Their pipeline hands over what its VAE preprocessing made: [-1, 1], B 1 3 H W.
        expected = theirs((2 * picture - 1)[:, None], expected, mask)
    nowhere = torch.zeros(1, 24, dtype=torch.bool)
    silent = theirs((2 * pictures[0] - 1)[:, None], text, nowhere)
    assert torch.equal(silent, text), (
        "without its word a picture is left out, silently; ours refuses"
    )
    found = fill_triggers(ours, text, (4, 18), pictures)
    apart = float((found - expected).abs().max())
    tell("detail encoder, largest difference of the text", f"{apart:.1e}")
    assert apart < 1e-4 < float((expected - text).abs().max())


def test_their_initialisation_is_random_and_ours_is_not(imagecritic: Any, tmp_path: Path) -> None:
    """As published: random weights, no seed, the file added to them."""
    torch.manual_seed(0)
    file = small_encoder(imagecritic).state_dict()
    save_file(file, tmp_path / "e.safetensors")
    picture = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 4, 4096, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[False, True, False, False]])

    def published() -> Tensor:
        model = small_encoder(imagecritic)
        for name, p in model.named_parameters():
            p.add_(file[name])
        return model((2 * picture - 1)[:, None], text, mask)[0, 1]

    def ours() -> Tensor:
        encoder = load_detail_encoder(tmp_path / "e.safetensors", "add")[0]
        return fill_triggers(encoder, text, (1,), (picture,))[0, 1]

    torch.seed()
    first, second = published(), published()
    apart = float((first - second).norm() / first.norm())
    tell(f"two starts of the published loading differ by {apart:.0%} of the token; ours by 0 %")
    assert apart > 0.01 and torch.equal(ours(), ours())


def test_lora_and_token_order_give_the_same_velocity(
    imagecritic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full width, which their processors hold as a constant, with one block of each kind."""
    config: dict[str, Any] = {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24,
        "joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": True,
    }  # fmt: skip
    torch.manual_seed(0)
    # Their pipeline takes diffusers' transformer and gives it processors of its own.
    theirs = FluxTransformer2DModel(**config).eval().requires_grad_(False)
    with torch.device("meta"):
        ours = FluxTransformer2DModel(**config)
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, assign=True)
    weights = synthetic.imagecritic_lora(3072, rank=4, double=1, single=1)
    file = synthetic.write(tmp_path / "lora.safetensors", weights, None)
    loader = imagecritic("lora_helper")
    monkeypatch.setattr(loader, "device", "cpu")
    noise, a, b = (draw_noise((1, 16, 8, 12), i) for i in range(3))
    text, pooled = draw_noise((1, 9, 64), 4), draw_noise((1, 32), 5)
    seen = Conditioning((a, b), IMAGECRITIC.indices, text, pooled, 3.5)
    plain = velocity(ours.eval(), noise, 0.7, seen)
    loader.set_single_lora(theirs, str(file), lora_weights=[1.0])
    merge_imagecritic(ours, read_imagecritic_lora(file))

    pipeline = imagecritic("kontext_custom_pipeline").FluxKontextPipelineWithPhotoEncoderAddTokens
    own = SimpleNamespace(
        vae_scale_factor=8, latent_channels=16, _pack_latents=pipeline._pack_latents,
        _prepare_latent_image_ids=pipeline._prepare_latent_image_ids,
    )  # fmt: skip
    _, pictures, ids, picture_ids = pipeline.prepare_latents(
        own, a, b, 1, 16, 64, 96, torch.float32, torch.device("cpu"), None, tokens.pack(noise)
    )
    all_ids = torch.cat([ids, picture_ids])
    assert torch.equal(all_ids, tokens.layout_ids((noise, a, b), (0, 1, 2), "index").to(all_ids))
    out = theirs(
        hidden_states=torch.cat([tokens.pack(noise), pictures], 1), encoder_hidden_states=text,
        pooled_projections=pooled, timestep=torch.tensor([0.7]), img_ids=all_ids,
        txt_ids=torch.zeros(9, 3), guidance=torch.tensor([3.5]), return_dict=False,
    )[0]  # fmt: skip
    expected = tokens.unpack(out[:, : 4 * 6], 8, 12)
    found = velocity(ours, noise, 0.7, seen)
    apart, size = float((found - expected).abs().max()), float(expected.abs().max())
    tell(f"velocity: largest difference {apart:.1e}, largest value {size:.2f}")
    assert apart < 1e-3 < float((found - plain).abs().max())


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def skew(seen: tuple[int, int], crop: tuple[int, int]) -> float:
    """How much more a picture is stretched in x than in y (or the other way), 0 = not at all."""
    return abs(math.expm1(math.log(seen[0] / crop[0]) - math.log(seen[1] / crop[1])))


def ours_with(
    recipe: Recipe, draft: Tensor, box: Box, lighter: float = 0.0
) -> tuple[Tensor, float]:
    """Our repair by a model that only lightens, and the stretch of what it saw."""
    mask = torch.zeros_like(draft[:, :1])
    mask[..., box.y0 : box.y1, box.x0 : box.x1] = 1
    options = RefineOptions(drift=not lighter, color_match=0.0 if lighter else 1.0)
    request = RefineRequest(draft, (draft,), mask, (mask,), options)
    done = refine(ModelThat(recipe, lambda x: x + lighter), request)
    region = done.report["regions"][0]
    x0, y0, x1, y1 = region["crop"]
    width, height = map(int, region["bucket"].split("x"))
    return done.image, skew((width, height), (x1 - x0, y1 - y0))


def app_functions(folder: Path) -> dict[str, Any]:
    """The functions of ImageCritic's app.py, without its page, its models and its downloads."""
    tree = ast.parse((folder / "app.py").read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    space: dict[str, Any] = {
        "torch": torch, "Image": Image, "device": "cpu", "gr": SimpleNamespace(Error=RuntimeError),
    }  # fmt: skip
    exec(compile(tree, str(folder / "app.py"), "exec"), space)
    space["load_models"] = lambda: None
    return space


@pytest.mark.parametrize(("size", "box"), PLACES, ids=lambda v: str(tuple(v)))
def test_imagecritics_app_stretches_and_pastes_hard(size: Extent, box: Box) -> None:
    app = app_functions(checkout("IMAGECRITIC_CODE", "app.py"))
    seen: list[tuple[int, int]] = []
    board = checkerboard(size)
    drawn = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))]

    def run(lighter: float) -> Tensor:
        def model(**given: Any) -> Any:
            seen.append(given["image_B"].size)
            return SimpleNamespace(images=[pil((tensor(given["image_B"]) + lighter).clamp(0, 1))])

        app["pipeline"] = model
        annotated = {"image": np.asarray(pil(0.7 * board)), "boxes": drawn}
        return tensor(app["run_with_two_bboxes"](annotated, annotated, "logo")[1])

    start = tensor(pil(0.7 * board))
    stretch = skew(seen_size := (run(0.0), seen[0])[1], tuple(box.extent))
    hard = seam(start, start + (run(0.2) - run(0.0)))
    own, own_stretch = ours_with(IMAGECRITIC, 0.7 * board, box)
    light, _ = ours_with(IMAGECRITIC, 0.7 * board, box, 0.2)
    plain, _ = ours_with(IMAGECRITIC, 0.7 * board, box, 1e-6)
    soft = seam(start, start + (light - plain))
    inner = (box.x0 + 8, box.y0 + 8, box.x1 - 8, box.y1 - 8)
    moved = [displacement(start, p, inner) for p in (run(0.0), own)]
    tell(
        f"ImageCritic's app, {size} {tuple(box)}, model sees {seen_size}: stretch {stretch:.1%}, "
        f"moved {moved[0]:.2f} px, seam {hard:.3f}; ours {own_stretch:.1%}, {moved[1]:.2f} px, {soft:.3f}"
    )
    assert stretch > 0.001 and own_stretch < 1e-9
    assert hard > 0.15 and soft < 0.06
    assert moved[1] < 0.25


def refineanythings_script() -> Any:
    folder = checkout("REFINEANYTHING_CODE", "scripts/fast_inference.py")
    spec = importlib.util.spec_from_file_location("fast", folder / "scripts/fast_inference.py")
    assert spec is not None and spec.loader is not None
    fast = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fast)
    return fast


def test_refineanythings_script_runs_the_pipeline_as_assumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What tests/comfyui/test_refineanything.py calls diffusers' pipeline with; and its schedule."""
    fast = refineanythings_script()
    asked: dict[str, Any] = {}

    class Pipe:
        def __call__(self, **given: Any) -> Any:
            asked.update(given)
            return SimpleNamespace(images=[None])

        @staticmethod
        def from_pretrained(_: str, scheduler: Any, **_kwargs: Any) -> Any:
            asked["scheduler"] = scheduler
            return Pipe()

        def __getattr__(self, name: str) -> Any:
            return lambda *_a, **_k: asked.setdefault("adapters", []).append(name)

    monkeypatch.setattr("diffusers.QwenImageEditPlusPipeline", Pipe)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str(tmp_path / "x"))
    crop, reference = (Image.new("RGB", (64, 32), c) for c in ("red", "blue"))
    mask = Image.new("L", (64, 32), 90)
    pipe = fast.build_pipeline("nowhere", "cpu", load_lightning_lora=False)
    fast.run_inference(pipe, crop, mask, "Refine the LOGO.", reference, device="cpu")
    assert asked["image"][:2] == [crop, reference] and len(asked["image"]) == 3
    assert asked["image"][2].getpixel((0, 0)) == (255, 255, 255)
    assert (asked["negative_prompt"], asked["true_cfg_scale"]) == (REFINEANYTHING.negative, 1.0)
    scheduler = asked["scheduler"]
    even = np.linspace(1.0, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=even, mu=scheduler.config.base_shift)
    ours = REFINEANYTHING.sigmas(Extent(1024, 1024), 8)
    torch.testing.assert_close(ours, scheduler.sigmas.to(ours), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "box"), PLACES, ids=lambda v: str(tuple(v)))
def test_refineanythings_script_stretches_a_little(size: Extent, box: Box) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    fast = refineanythings_script()
    start, shape = pil(checkerboard(size)), np.zeros((size.height, size.width), np.uint8)
    shape[box.y0 : box.y1, box.x0 : box.x1] = 255
    mask = Image.fromarray(shape)
    crop, part, where = fast.focus_crop(start, mask, fast.bbox_from_mask(mask))
    target = calculate_dimensions(1024 * 1024, crop.width / crop.height)[:2]
    target = (int(target[0]), int(target[1]))
    generated = crop.resize(target, Image.Resampling.LANCZOS)
    out = tensor(fast.paste_back(start, generated, part, where))
    stretch = skew(target, crop.size)
    changed = (out != tensor(start)).any(1)[0]
    changed[box.y0 : box.y1, box.x0 : box.x1] = False
    own, own_stretch = ours_with(REFINEANYTHING, checkerboard(size), box)
    inner = (box.x0 + 8, box.y0 + 8, box.x1 - 8, box.y1 - 8)
    moved = [displacement(checkerboard(size), p, inner) for p in (out, own)]
    tell(
        f"RefineAnything's script, {size} {tuple(box)}: stretch {stretch:.1%}, moved {moved[0]:.2f} "
        f"px, {int(changed.sum())} pixels changed outside the mask; ours {own_stretch:.1%}, "
        f"{moved[1]:.2f} px, 0"
    )
    kept = own[..., : box.y0, :], checkerboard(size)[..., : box.y0, :]
    assert torch.equal(*kept) and own_stretch < 1e-9 and moved[1] < 0.25
    assert int(changed.sum()) > 0
