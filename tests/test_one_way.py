"""One-way attention: recording the clean tokens' keys and values changes nothing but the work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from refiner_core.images.geometry import Extent
from refiner_core.load import load_engine
from refiner_core.models import tokens
from refiner_core.models.clean_storage import Storage, choose_storage, clean_bytes
from refiner_core.models.core_engine import CoreEngine
from refiner_core.models.flux_transformer import FluxTransformer, rotary_angles
from refiner_core.models.kontext import CleanCache, Conditioning, Denoiser, record_clean, velocity
from refiner_core.nano.nano_engine import load_nano
from refiner_core.repair.best_of_n import Candidate, rounds, search
from refiner_core.sampling import sample
from refiner_core.training.config import ModelSettings
from refiner_core.training.export import describe
from refiner_core.training.open_session import load_base
from refiner_core.training.policy import VelocityNet
from refiner_core.weights.inspection import inspect_file
from refiner_core.weights.lora import save_lora
from tests.jobs import job_of

CONFIG = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
SIZES = [((6, 8),), ((6, 8), (4, 10)), ((2, 2), (8, 4), (6, 6))]


def randomised(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.15, generator=g)
    return model.eval().requires_grad_(False)


def ours(guidance: bool = False) -> FluxTransformer:
    model = randomised(FluxTransformer(**CONFIG, guidance_embeds=guidance))
    assert isinstance(model, FluxTransformer)
    return model


def theirs(guidance: bool = False) -> FluxTransformer2DModel:
    model = randomised(FluxTransformer2DModel(**CONFIG, guidance_embeds=guidance))  # type: ignore[arg-type]
    assert isinstance(model, FluxTransformer2DModel)
    return model


def conditioning(
    sizes: tuple[tuple[int, int], ...], batch: int = 1, guidance: float | None = None
) -> Conditioning:
    g = torch.Generator().manual_seed(1)
    references = tuple(torch.randn(batch, 16, h, w, generator=g) for h, w in sizes)
    text, pooled = torch.randn(batch, 3, 8, generator=g), torch.randn(batch, 8, generator=g)
    return Conditioning(references, tuple(range(1, len(sizes) + 1)), text, pooled, guidance)


def noisy(batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, 6, 4, generator=torch.Generator().manual_seed(2))


def single_pass(model: FluxTransformer, x: Tensor, t: float, c: Conditioning) -> Tensor:
    """What one way means, written out: all tokens in one pass, attention masked, two times."""
    c = c.repeat(len(x))
    latents = (x, *c.references)
    image = model.x_embedder(torch.cat([tokens.pack(z) for z in latents], 1))
    text = model.context_embedder(c.text)
    n, length = tokens.pack(x).shape[1], text.shape[1]
    guidance = None if c.guidance is None else torch.full((len(x),), c.guidance * 1000)
    now, never = (
        model.time_text_embed(torch.full((len(x),), 1000 * time), guidance, c.pooled)
        for time in (t, 0.0)
    )

    def modulated(norm: nn.Module, x: Tensor, first: int) -> tuple[Tensor, list[Tensor]]:
        early, late = norm(x[:, :first], now), norm(x[:, first:], never)
        halves = zip(early[1], late[1], strict=True)
        rest = x.shape[1] - first
        parts = [torch.cat([a.expand(-1, first, -1), b.expand(-1, rest, -1)], 1) for a, b in halves]
        return torch.cat([early[0], late[0]], 1), parts

    ids = torch.cat([torch.zeros(length, 3), tokens.layout_ids(latents, (0, *c.indices))])
    seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    seen[..., length + n :, : length + n] = False
    how = {"image_rotary_emb": rotary_angles(ids, (4, 6, 6)), "attention_mask": seen}
    for block in model.transformer_blocks:
        image_in, (gate, shift, scale, feed_gate) = modulated(block.norm1, image, n)
        text_in, text_parts = block.norm1_context(text, now)
        image_out, text_out = block.attn(image_in, text_in, **how)
        image = image + gate * image_out
        image = image + feed_gate * block.ff(block.norm2(image) * (1 + scale) + shift)
        gate, shift, scale, feed_gate = text_parts
        text = text + gate * text_out
        text = text + feed_gate * block.ff_context(block.norm2_context(text) * (1 + scale) + shift)
    both = torch.cat([text, image], 1)
    for block in model.single_transformer_blocks:
        inside, (gate,) = modulated(block.norm, both, length + n)
        fed = nn.functional.gelu(block.proj_mlp(inside), approximate="tanh")
        both = both + gate * block.proj_out(torch.cat([block.attn(inside, **how), fed], 2))
    out = model.proj_out(model.norm_out(both[:, length : length + n], now))
    return tokens.unpack(out, x.shape[-2], x.shape[-1])


def rows_seen(model: nn.Module) -> list[tuple[int, int]]:
    """Filled with samples and image tokens of every pass through the network."""
    seen: list[tuple[int, int]] = []

    def note(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append((inputs[0].shape[0], inputs[0].shape[1]))

    embedder = model.x_embedder
    assert isinstance(embedder, nn.Module)
    embedder.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("sizes", SIZES, ids=["one", "two", "three"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_cached_equals_one_masked_pass_at_every_step(
    sizes: tuple[tuple[int, int], ...], batch: int, guidance: float | None
) -> None:
    model = ours(guidance is not None)
    c, x = conditioning(sizes, batch, guidance), noisy(batch)
    cache = CleanCache()
    for t in SIGMAS[:-1].tolist():
        clean = cache.get(c, lambda c: record_clean(model, c, torch.float32))
        found = velocity(model, x, t, c, "one way", clean)
        wanted = single_pass(model, x, t, c)
        assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
        assert not torch.allclose(found, velocity(model, x, t, c), atol=1e-3)


@pytest.mark.parametrize(("storage", "most"), [("device", 0.0), ("cpu", 0.0), ("fp8", 0.05)])
def test_storages_keep_the_velocity(storage: Storage, most: float) -> None:
    model, c, x = ours(), conditioning(SIZES[1], 2), noisy(2)
    plain, other = (record_clean(model, c, torch.float32, s) for s in ("device", storage))
    wanted = velocity(model, x, 0.6, c, "one way", plain)
    found = velocity(model, x, 0.6, c, "one way", other)
    assert float((found - wanted).abs().max()) <= most * float(wanted.abs().max())
    assert plain.device_bytes == clean_bytes(4, 2 * (12 + 10), 32, 4)
    assert other.device_bytes * (4 if storage == "fp8" else 1) == plain.device_bytes
    for (k, v), (a, b) in zip(other.rows([1]).values(), other.values(), strict=True):
        assert torch.equal(k, a[1:]) and torch.equal(v, b[1:])


@pytest.mark.parametrize(
    ("needed", "free", "exact", "storage"),
    [
        (6, 10, True, "device"),
        (8, 10, True, "cpu"),
        (8, 10, False, "fp8"),
        (15, 10, False, "cpu"),
        (1, -2, False, "cpu"),
        (1 << 60, float("inf"), True, "device"),
    ],
)
def test_storage_follows_the_free_memory(
    needed: int, free: float, exact: bool, storage: Storage
) -> None:
    assert choose_storage(needed, free, exact) == storage


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_diffusers_and_ours_agree(guidance: float | None) -> None:
    c = conditioning(SIZES[1], 1, guidance)
    models = (theirs(guidance is not None), ours(guidance is not None))
    a, b = (velocity(m, noisy(), 0.6, c, "one way") for m in models)
    assert float((a - b).abs().max()) < 1e-6 * float(a.abs().max())


def test_both_ways_is_as_before_after_a_one_way_run() -> None:
    model, c = theirs(), conditioning(SIZES[1])
    before = velocity(model, noisy(), 0.6, c)
    velocity(model, noisy(), 0.6, c, "one way")
    assert torch.equal(velocity(model, noisy(), 0.6, c), before)


@pytest.mark.parametrize("make", [ours, theirs])
def test_a_run_sees_the_clean_tokens_once(make: Callable[[], FluxTransformer]) -> None:
    model = make()
    seen = rows_seen(model)
    c = conditioning(SIZES[1])
    found = sample(Denoiser(model, "one way"), noisy(), SIGMAS, {"conditioning": c})
    assert seen == [(1, 12 + 10), (1, 6), (1, 6), (1, 6), (1, 6)]
    fresh = [Denoiser(model, "one way")(noisy(), SIGMAS[:1], conditioning=c) for _ in range(2)]
    assert torch.equal(fresh[0], fresh[1]) and found.shape == fresh[0].shape


def test_siblings_share_what_is_recorded() -> None:
    """Three samples of the same clean tokens: one is recorded, and it serves all of them."""
    model, one = ours(), conditioning(SIZES[1])
    seen = rows_seen(model)
    c = replace(one.repeat(3), references=tuple(r.repeat(3, 1, 1, 1) for r in one.references))
    x = noisy(3)
    found = Denoiser(model, "one way")(x, torch.tensor([0.6] * 3), conditioning=c)
    assert seen == [(1, 22), (3, 6)]
    wanted = torch.cat([single_pass(model, row, 0.6, one) for row in x.split(1)])
    assert float((found - (x - 0.6 * wanted)).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_other_clean_tokens_are_recorded_anew() -> None:
    model, c = ours(), conditioning(SIZES[1])
    denoiser, level = Denoiser(model, "one way"), torch.tensor([0.6])
    for other in (
        c,
        replace(c, pooled=c.pooled + 1),
        replace(c, references=(c.references[0], c.references[1] + 1)),
        replace(c, indices=(2, 3)),
        replace(c, references=c.references[:1], indices=(1,)),
    ):
        found = denoiser(noisy(), level, conditioning=other)
        assert torch.equal(found, Denoiser(model, "one way")(noisy(), level, conditioning=other))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [ours, theirs])
def test_gradients_are_those_of_one_masked_pass(
    make: Callable[[], FluxTransformer], checkpointing: bool
) -> None:
    model, oracle = make().requires_grad_(True), ours().requires_grad_(True)
    if checkpointing:
        model.enable_gradient_checkpointing()
    c = conditioning(SIZES[1], 2)
    velocity(model, noisy(2), 0.6, c, "one way").square().sum().backward()
    single_pass(oracle, noisy(2), 0.6, c).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None or not p.grad.any(), name
            continue
        assert p.grad is not None, name
        assert float((p.grad - q.grad).abs().max()) <= 1e-4 * float(q.grad.abs().max()), name


def one_way_nano() -> CoreEngine:
    engine = load_nano()
    return replace(engine, recipe=replace(engine.recipe, attention="one way"))


@pytest.mark.parametrize("shared", [True, False])
def test_rounds_of_a_search_share_what_is_recorded(shared: bool) -> None:
    """Four candidates, two of them dropped after each round: clean tokens are seen in the first."""
    engine, g = one_way_nano(), torch.Generator().manual_seed(3)
    draft, reference, other = torch.randn(3, 1, 16, 8, 8, generator=g).split(1)
    references = (draft[0], reference[0])
    drafts = [draft[0] + (0 if shared else i) * other[0] for i in range(4)]
    candidates = [
        Candidate(i, job_of((d, references[1]), SIGMAS).inputs) for i, d in enumerate(drafts)
    ]
    job = job_of(references, engine.recipe.sigmas(Extent(32, 32), 6))
    seen = rows_seen(engine.model)
    plan = rounds(6, 4, 1, 2)
    found = search(engine, job, candidates, plan, lambda p: p.mean((1, 2, 3)), lambda *_: None)
    clean = [rows for rows, count in seen if count == 32]
    assert clean == [1 if shared else 4]
    assert [rows for rows, count in seen if count == 16] == [4, 4, 2, 2, 1, 1]
    chosen = candidates[found.chosen]
    alone = replace(job, inputs=chosen.inputs, seed=chosen.seed)
    wanted = one_way_nano().sample(alone, lambda *_: None)
    assert float((found.latent - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_nothing_is_kept_after_a_run() -> None:
    engine = one_way_nano()
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    job = job_of((latent, latent), SIGMAS)
    seen = rows_seen(engine.model)
    for _ in range(2):
        engine.sample(job, lambda *_: None)
    assert [count for _, count in seen] == 2 * [32, 16, 16, 16, 16]


def write_lora(path: Path, metadata: dict[str, str]) -> Path:
    model = load_nano().model
    name = "transformer_blocks.0.attn.to_q"
    width = model.inner_dim
    save_lora(path, {name: (torch.ones(2, width), torch.ones(width, 2))}, 2.0, metadata)
    return path


@pytest.mark.parametrize(
    ("metadata", "attention"),
    [
        ({"recipe": "nano", "attention": "one way"}, "one way"),
        ({"recipe": "nano", "attention": "both ways"}, "both ways"),
        ({"recipe": "nano"}, "both ways"),  # from before there was a choice
        ({}, None),  # from elsewhere
    ],
)
def test_a_lora_runs_only_with_the_attention_of_its_training(
    tmp_path: Path, metadata: dict[str, str], attention: str | None
) -> None:
    lora = write_lora(tmp_path / "lora.safetensors", metadata)
    assert inspect_file(lora).attention == attention
    usual = load_engine("nano", loras=[(lora, 1.0)], device="cpu")
    assert usual.recipe.attention == (attention or "both ways")
    for way in ("one way", "both ways"):
        recipe = tmp_path / "mine.json"
        recipe.write_text(json.dumps({"name": "mine", "based_on": "nano", "attention": way}))
        if attention in (None, way):
            engine = load_engine("nano", loras=[(lora, 1.0)], device="cpu", recipe=str(recipe))
            assert engine.recipe.attention == way
            continue
        with pytest.raises(ValueError, match=f'"{attention}".*mine.*"{way}"'):
            load_engine("nano", loras=[(lora, 1.0)], device="cpu", recipe=str(recipe))


def test_training_takes_the_setting_and_the_file_says_it() -> None:
    settings = ModelSettings(attention="one way")
    engine = load_base(settings)
    assert describe(engine.recipe, {})["attention"] == "one way"
    assert describe(load_base(ModelSettings()).recipe, {})["attention"] == "both ways"
    c = conditioning(SIZES[0])
    model = ours()
    found = VelocityNet(model, "one way")(noisy(), torch.tensor([0.6]), c)
    assert torch.equal(found, velocity(model, noisy(), 0.6, c, "one way"))
