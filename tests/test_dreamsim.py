"""DreamSim: the dreamsim package's numbers, conversion, regions, heatmaps, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_core.__main__ import main
from refiner_core.images.filters import blur
from refiner_core.scoring.comparison import PairDistances, compare, match_size
from refiner_core.scoring.dreamsim import cosine_distance
from refiner_core.scoring.dreamsim_files import load_dreamsim, read_variant, save_dreamsim
from refiner_core.scoring.dreamsim_release import convert_release
from refiner_core.scoring.dreamsim_scorer import DreamSimScorer
from refiner_core.scoring.heatmap import draw_heat
from refiner_core.scoring.preparation import prepare_exact, prepare_image, prepare_smooth
from refiner_core.scoring.structural import StructuralScorer
from refiner_core.weights.safetensors_io import read_header
from tests.dreamsim_release import FULL, LAYOUTS, TINY, sample_pictures, write_release

HERE = Path(__file__).parent
# Made by dreamsim_package.py with dreamsim 0.2.1, torch 2.13.0 and facebookresearch/dinov2.
PACKAGE = json.loads((HERE / "dreamsim_package.json").read_text())


def tiny_side(variant: str) -> int:
    return 2 * LAYOUTS[variant][0][0][1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """`tiny(variant) -> file`: a small converted release of any variant, made once."""
    base = tmp_path_factory.mktemp("dreamsim")

    @cache
    def make(variant: str) -> Path:
        release = write_release(base / variant, variant, TINY)
        convert_release(release, base / f"{variant}.safetensors", side=tiny_side(variant))
        return base / f"{variant}.safetensors"

    return make


def inputs(side: int) -> Tensor:
    return torch.cat([prepare_image(Image.fromarray(p), side) for p in sample_pictures()])


def picture(seed: int, side: int = 96) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = blur(torch.rand(1, 3, side, side, generator=g), 3.0)
    return ((x - 0.5) * 6 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("variant", LAYOUTS)
def test_same_numbers_as_the_package(tiny, variant: str) -> None:
    model, expected = load_dreamsim(tiny(variant)), PACKAGE[variant]
    images = inputs(model.side)
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
    assert digest == expected["inputs_sha256"]  # torchvision's, to the bit
    with torch.no_grad():
        embeddings = model.embed(images)
    apart = (embeddings - torch.tensor(expected["embeddings"])).abs().max()
    assert float(apart) < 1e-5
    distances = cosine_distance(embeddings[:1], embeddings)
    assert torch.allclose(distances, torch.tensor(expected["distances"]), atol=1e-6, rtol=0)
    assert float(distances[1:].min()) > 0.01


@pytest.mark.parametrize("variant", LAYOUTS)
def test_same_numbers_as_the_package_at_full_size(variant: str, tmp_path: Path) -> None:
    """Weights of the real sizes, through the package in its own environment."""
    python, dinov2 = os.environ.get("DREAMSIM_PYTHON"), os.environ.get("DINOV2_CODE")
    if not python or (variant.startswith("dinov2") and not dinov2):
        pytest.skip(
            "DREAMSIM_PYTHON names no Python with dreamsim 0.2.1, or DINOV2_CODE no checkout"
        )
    extra = ["--dinov2", dinov2] if dinov2 else []
    subprocess.run(
        [python, HERE / "dreamsim_package.py", tmp_path / "x.json", variant, "--size", "full", *extra],
        check=True, capture_output=True, timeout=500,
    )  # fmt: skip
    theirs = load_file(tmp_path / "x.safetensors")
    release = write_release(tmp_path / "release", variant, FULL)
    convert_release(release, tmp_path / "ours.safetensors")
    model = load_dreamsim(tmp_path / "ours.safetensors")
    images = inputs(model.side)
    assert torch.equal(images, theirs[f"{variant}.inputs"])
    with torch.no_grad():
        embeddings = model.embed(images)
    assert float((embeddings - theirs[f"{variant}.embeddings"]).abs().max()) < 1e-5
    expected = torch.tensor(json.loads((tmp_path / "x.json").read_text())[variant]["distances"])
    distances = cosine_distance(embeddings[:1], embeddings)
    assert torch.allclose(distances, expected, atol=1e-6, rtol=0)


def test_class_token_alone_equals_the_whole(tiny) -> None:
    """The last block is computed for the class token only where nothing else is asked for."""
    model = load_dreamsim(tiny("ensemble"))
    x = inputs(model.side)
    with torch.no_grad():
        for tower in model.towers:
            assert torch.allclose(tower(x, class_only=True), tower(x)[:, :1], atol=1e-5)


def test_half_precision_file(tiny, tmp_path: Path) -> None:
    full = load_dreamsim(tiny("ensemble"))
    half = tmp_path / "half.safetensors"
    save_dreamsim(full.state_dict(), full.variant, half, dtype=torch.float16)
    assert half.stat().st_size < 0.56 * tiny("ensemble").stat().st_size
    x = inputs(full.side)
    with torch.no_grad():
        a, b = full.embed(x), load_dreamsim(half).embed(x)
    assert 0 < float((cosine_distance(a, a[:1]) - cosine_distance(b, b[:1])).abs().max()) < 1e-3


def test_tensor_path_differs_by_rounding() -> None:
    """The stated difference between the exact and the differentiable preparation."""
    x = picture(0, 300)
    x = (x * 255).round() / 255
    exact, smooth = prepare_exact(x, 224), prepare_smooth(x, 224)
    apart = (exact - smooth).abs()
    assert 0 < float(apart.max()) < 0.008 and float(apart.mean()) < 0.0014
    assert torch.equal(prepare_exact(exact, 224), exact)


def test_invariances(tiny) -> None:
    scorer = DreamSimScorer(load_dreamsim(tiny("ensemble")), chunk=2)
    a, b = torch.cat([picture(i) for i in range(5)]), torch.cat([picture(i) for i in range(5, 10)])
    assert float(scorer.distance(a, a).max()) < 1e-6
    together = scorer.distance(a, b)
    assert torch.allclose(together, scorer.distance(b, a), atol=1e-6)
    order = [3, 1, 4, 0, 2]
    assert torch.allclose(together[order], scorer.distance(a[order], b[order]), atol=1e-6)
    assert torch.allclose(scorer.distance(a[:1], b)[3:4], scorer.distance(a[:1], b[3:4]), atol=1e-6)
    flat = torch.full((1, 3, 40, 40), 0.5)
    assert bool(torch.isfinite(scorer.distance(flat, torch.zeros(1, 3, 40, 40))).all())


def test_only_the_mask_counts(tiny) -> None:
    scorer = DreamSimScorer(load_dreamsim(tiny("dino_vitb16")))
    x, mask = picture(1), torch.zeros(1, 1, 96, 96)
    mask[..., 20:50, 30:70] = 1
    outside, inside = torch.where(mask > 0, x, picture(2)), torch.where(mask > 0, picture(2), x)
    assert float(scorer.distance(x, outside, mask)) < 1e-6
    assert float(scorer.distance(x, inside, mask)) > 1.5 * float(scorer.distance(x, inside))


@pytest.mark.parametrize(
    "variant", ["dino_vitb16", "ensemble", "clip_vitb32", "dinov2_vitb14_patch"]
)
def test_heatmap_finds_the_change(tmp_path: Path, variant: str) -> None:
    grid = 6
    side = grid * LAYOUTS[variant][0][0][1]
    release = write_release(tmp_path / "release", variant, TINY)
    convert_release(release, tmp_path / "m.safetensors", side=side)
    scorer = DreamSimScorer(load_dreamsim(tmp_path / "m.safetensors"))
    a = picture(3, 6 * 40)
    b = a.clone()
    b[..., 120:160, 40:80] = picture(4, 40)  # the patch in row 3, column 1
    heat = scorer.heatmap(a, b)
    assert heat.shape == (1, 1, grid, grid)
    assert divmod(int(heat.argmax()), grid) == (3, 1)
    others = heat.flatten().sort().values[:-1]
    assert float(heat.max()) > 3 * float(others.median())
    assert float(scorer.heatmap(a, a).abs().max()) < 1e-5


def test_gradient_reaches_the_picture(tiny) -> None:
    scorer = DreamSimScorer(load_dreamsim(tiny("ensemble")), exact=False)
    a, b = picture(5), picture(6).requires_grad_()
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., 10:60, 10:60] = 1
    before = scorer.distance(a, b, mask)
    before.sum().backward()
    assert b.grad is not None and float(b.grad.abs().max()) > 0
    step = (b - 0.2 * b.grad / b.grad.abs().max()).detach().clamp(0, 1)
    assert float(scorer.distance(a, step, mask)) < float(before.detach())


def test_pictures_of_two_sizes(tiny) -> None:
    """Squeezed to the square each on its own, as the package does."""
    model = load_dreamsim(tiny("ensemble"))
    scorer = DreamSimScorer(model)
    a, b = (torch.from_numpy(p).permute(2, 0, 1)[None] / 255 for p in sample_pictures()[::2])
    result = compare(scorer, a, b, sizes="stretch")
    assert result.distance == pytest.approx(PACKAGE["ensemble"]["distances"][2], abs=1e-6)
    with pytest.raises(ValueError, match=r"300x200 and 47x61.*stretch"):
        compare(scorer, a, b)
    with pytest.raises(ValueError, match="different sizes"):
        scorer.distance(a, b, torch.ones(1, 1, 200, 300))
    assert compare(StructuralScorer(), a, b, sizes="crop").distances.shape == (1,)
    wide = torch.zeros(1, 3, 10, 40)
    wide[..., 15:25] = 1  # the middle square of it
    assert float(match_size(wide, torch.zeros(1, 3, 10, 10), "crop").min()) == 1


def test_batches_in_chunks_report_progress() -> None:
    seen: list[tuple[int, int]] = []
    a, b = torch.rand(1, 3, 12, 12), torch.rand(35, 3, 12, 12)
    result = compare(StructuralScorer(), a, b, heatmap=True, progress=lambda *p: seen.append(p))
    assert result.distances.shape == (35,) and seen == [(16, 35), (32, 35), (35, 35)]
    assert result.heat is not None and result.heat.shape == (35, 1, 12, 12)
    assert "35 pairs" in result.summary()


def test_drawn_heat() -> None:
    image, heat = torch.full((1, 3, 8, 8), 0.5), torch.zeros(2, 1, 4, 4)
    heat[1, 0, 0, 0] = 1
    drawn = draw_heat(image, heat)
    assert torch.equal(drawn[0], image[0])
    assert float((drawn[1, :, 0, 0] - 0.5).abs().max()) > 0.3
    faint = draw_heat(image, torch.full((1, 1, 4, 4), 1e-7))
    assert float((faint - image).abs().max()) < 0.01


def zipped(folder: Path, out: Path, extra: str | None = None) -> Path:
    with zipfile.ZipFile(out, "w") as z:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                z.write(file, file.relative_to(folder))
        if extra:
            z.writestr(extra, "out")
    return out


def test_zip_and_folder_give_the_same_file(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "clip_vitb32", TINY)
    archive = zipped(release, tmp_path / "release.zip")
    convert_release(release, tmp_path / "a.safetensors", side=64)
    convert_release(archive, tmp_path / "b.safetensors", side=64)
    a, b = (load_file(tmp_path / f"{n}.safetensors") for n in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert read_variant(tmp_path / "b.safetensors").name == "clip_vitb32"
    sources = json.loads(read_header(tmp_path / "b.safetensors")[1]["sources"])
    assert set(sources) == {
        "release.zip", "clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora/adapter_model.safetensors",
    }  # fmt: skip
    assert all(len(v) == 64 for v in sources.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.safetensors", "b.safetensors", "release", "release.zip",
    ]  # fmt: skip


def test_backbone_by_name_and_teacher(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "dino_vitb16", TINY)
    backbone = tmp_path / "elsewhere.pth"
    (release / "checkpoints" / "dino_vitbase16_pretrain.pth").rename(backbone)
    with pytest.raises(
        ValueError, match=r"dino_vitbase16_pretrain.*dl\.fbaipublicfiles.*--backbone"
    ):
        convert_release(release, tmp_path / "x.safetensors", side=32)
    convert_release(release, tmp_path / "a.safetensors", side=32, backbone=str(backbone))
    convert_release(release, tmp_path / "b.safetensors", side=32, backbone="teacher")
    a, b = (load_file(tmp_path / f"{n}.safetensors") for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/e"]
)
def test_a_zip_that_climbs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "release" / "clip_vitb32_single_lora").mkdir(parents=True)
    archive = zipped(tmp_path / "in" / "release", tmp_path / "in" / "evil.zip", name)
    with pytest.raises(ValueError, match="leads out of its folder"):
        convert_release(archive, tmp_path / "in" / "x.safetensors", side=64)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["evil.zip", "release"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


class Exploit:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    release = write_release(tmp_path / "release", "clip_vitb32", TINY)
    torch.save({"state_dict": Exploit()}, release / "clip_vitb32_pretrain.pth.tar")
    with pytest.raises(ValueError, match="holds code, which is never run"):
        convert_release(release, tmp_path / "x.safetensors", side=64)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "x.safetensors").exists()


def test_releases_that_cannot_be_used(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    release = write_release(tmp_path / "release", "clip_vitb32", TINY)
    with pytest.raises(ValueError, match="does not exist"):
        convert_release(tmp_path / "none.zip", out)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.zip \(6 bytes\)"):
        convert_release(tmp_path / "text.zip", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a DreamSim release.*ensemble_lora.*v0.1"):
        convert_release(tmp_path / "empty", out)
    with pytest.raises(ValueError, match="holds clip_vitb32, not ensemble"):
        convert_release(release, out, variant="ensemble")
    with pytest.raises(ValueError, match="'best'"):
        convert_release(release, out, variant="best")
    weights = release / "clip_vitb32_pretrain.pth.tar"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or truncated"):
        convert_release(release, out)
    weights.unlink()
    with pytest.raises(ValueError, match="clip_vitb32_pretrain"):
        convert_release(release, out)
    write_release(release, "open_clip_vitb32", TINY)
    with pytest.raises(ValueError, match="--variant"):
        convert_release(release, out)
    config = release / "open_clip_vitb32_single_lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    with pytest.raises(ValueError, match="unknown kind.*use_rslora"):
        convert_release(release, out, variant="open_clip_vitb32")
    assert not out.exists()


def test_files_that_cannot_be_used(tiny, tmp_path: Path) -> None:
    good = tiny("dino_vitb16")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:100000])
    with pytest.raises(ValueError, match="damaged, cut off"):
        load_dreamsim(cut)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="not a DreamSim file.*convert dreamsim"):
        load_dreamsim(other)
    state = load_file(good)
    save_file(state, other, {"format": "omnirefiner-dreamsim-1", "variant": "clip_vitb32"})
    with pytest.raises(ValueError, match="clip with patches of 32 px.*patches of 16 px"):
        load_dreamsim(other)
    del state["towers.0.blocks.3.mlp.fc1.bias"]
    save_file(state, other, {"format": "omnirefiner-dreamsim-1", "variant": "dino_vitb16"})
    with pytest.raises(ValueError, match="1 weights are missing: towers.0.blocks.3.mlp.fc1.bias"):
        load_dreamsim(other)


def test_command_line(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, p in zip("abc", sample_pictures(), strict=False):
        Image.fromarray(p).save(tmp_path / f"{name}.png")
    a, b, c = (str(tmp_path / f"{n}.png") for n in "abc")
    weights = str(tiny("ensemble"))
    assert main(["score", "--metric", "dreamsim", "--weights", weights, a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distance"] == pytest.approx(PACKAGE["ensemble"]["distances"][1], abs=1e-6)
    assert found["similarity"] == pytest.approx(1 - found["distance"])
    assert main(["score", a, b]) == 0
    assert "MS-SSIM + edges (no weights): distance 0." in capsys.readouterr().out
    heat = str(tmp_path / "heat.png")
    assert main(["score", a, b, "--heatmap", heat]) == 0
    assert Image.open(heat).size == (300, 200)
    capsys.readouterr()
    assert main(["score", a, b, "--heatmap", heat]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["score", a, c]) == 2
    assert "300x200 and 47x61" in capsys.readouterr().err
    assert main(["score", "--metric", "dreamsim", a, b]) == 2
    assert "dreamsim_ensemble_checkpoint.zip" in capsys.readouterr().err
    release = write_release(tmp_path / "release", "synclr_vitb16", TINY)
    out = str(tmp_path / "synclr.safetensors")
    assert main(["convert", "dreamsim", str(release), out, "--dtype", "fp16"]) == 0
    assert "DreamSim synclr_vitb16, 5 MB" in capsys.readouterr().out
    assert load_dreamsim(out).side == 224
    assert main(["convert", "dreamsim", str(release), out]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("distance", "similarity"), [(0.0, 1.0), (0.25, 0.75), (1.4, 0.0)])
def test_similarity_is_never_below_zero(distance: float, similarity: float) -> None:
    pairs = PairDistances("any", torch.tensor([distance]), None)
    assert pairs.similarity == similarity and f"{similarity:.4f}" in pairs.summary()
