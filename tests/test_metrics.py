"""The metrics that need models, on tiny ones made here; and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refiner_core.evaluation.dinov2_metric import DinoV2Metric, preprocess_whole
from refiner_core.evaluation.faces import ArcFace, decode_faces, find_models, upright
from refiner_core.evaluation.metric import EvaluationCase, MetricUnavailable, region_box
from refiner_core.evaluation.metrics import (
    DREAMSIM,
    LpipsMetric,
    PixelMetric,
    ScorerMetric,
    dreamsim,
    structural,
)
from refiner_core.images.geometry import Box
from refiner_core.scoring.structural import StructuralScorer


def noise(seed: int, h: int = 60, w: int = 80) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, h // 4, w // 4, generator=g)
    return (torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 255).byte()


def case_of(target: Tensor | None, mask: Tensor | None = None) -> EvaluationCase:
    if mask is None:
        mask = torch.zeros(1, 1, 60, 80)
        mask[..., 20:40, 30:60] = 1
    return EvaluationCase("a", noise(0), noise(1), target, mask, None)


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_of_the_window_are_those_of_the_picture() -> None:
    from refiner_core.scoring.pixels import edge_error, masked_psnr, masked_ssim

    case = case_of(noise(2))
    assert case.target is not None
    found = PixelMetric().measure(case, {"x": noise(3)})["x"]
    whole = (noise(3), case.target, case.mask)
    assert found["psnr"] == pytest.approx(float(masked_psnr(*whole)), rel=1e-9)
    assert found["ssim"] == pytest.approx(float(masked_ssim(*whole)), rel=1e-9)
    assert found["edges"] == pytest.approx(float(edge_error(*whole)), rel=1e-9)
    assert found["outside"] == float((noise(3).int() - noise(0).int()).abs().max())


def test_without_a_target_only_the_outside_is_known() -> None:
    case = case_of(None)
    assert PixelMetric().measure(case, {"draft": case.draft})["draft"] == {
        "psnr": None, "ssim": None, "edges": None, "outside": 0,
    }  # fmt: skip
    assert structural().measure(case, {"draft": case.draft})["draft"] == {
        "structure": None, "structure_crop": None,
    }  # fmt: skip
    scored = ScorerMetric(StructuralScorer(), DREAMSIM, "").measure(case, {"draft": case.draft})
    assert scored["draft"]["dreamsim"] is None
    assert scored["draft"]["dreamsim_reference"] is not None


def test_an_exact_result_is_capped() -> None:
    case = case_of(noise(2))
    assert case.target is not None
    found = PixelMetric().measure(case, {"x": case.target})["x"]
    assert found["psnr"] == 60 and found["ssim"] == 1 and found["edges"] == 0


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ((30, 20, 60, 40), (25, 17, 65, 43)),
        ((0, 0, 80, 60), (0, 0, 80, 60)),
        ((79, 59, 80, 60), (78, 58, 80, 60)),
    ],
)
def test_region_box(box: tuple[int, ...], found: tuple[int, ...]) -> None:
    mask = torch.zeros(1, 1, 60, 80)
    mask[..., box[1] : box[3], box[0] : box[2]] = 1
    assert region_box(mask) == Box(*found)


def test_an_empty_mask_has_no_region() -> None:
    with pytest.raises(ValueError, match="empty"):
        region_box(torch.zeros(1, 1, 8, 8))


# --- DINOv2 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=224
    )
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_of_the_same_and_of_others(dino_folder: Path) -> None:
    case = case_of(noise(2))
    assert case.target is not None
    metric = DinoV2Metric(dino_folder)
    found = metric.measure(case, {"same": case.target, "other": noise(3)})
    assert found["same"]["dinov2"] == pytest.approx(1, abs=1e-5)
    assert found["same"]["dinov2_crop"] == pytest.approx(1, abs=1e-5)
    other = found["other"]["dinov2_crop"]
    assert other is not None and -1 <= other < 1 - 1e-4
    alone = metric.measure(case, {"other": noise(3)})["other"]
    assert alone["dinov2_crop"] == pytest.approx(other, abs=1e-5)
    assert "sha256" in metric.describe()["dinov2"]


@pytest.mark.parametrize("size", [(224, 224), (100, 40), (600, 901)])
def test_dinov2_takes_the_middle_square(size: tuple[int, int]) -> None:
    pixels = torch.zeros(1, 3, size[1], size[0], dtype=torch.uint8)
    pixels[..., size[1] // 2, size[0] // 2] = 255
    image = np.asarray(preprocess_whole(pixels)).astype(int).sum(2)
    assert image.shape == (224, 224)
    y, x = np.unravel_index(image.argmax(), image.shape)
    assert abs(y - 112) <= 4 and abs(x - 112) <= 4


# --- ArcFace -------------------------------------------------------------------------------------


def outputs_of(faces: list[tuple[int, int, float, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """SCRFD's outputs with faces (stride, anchor, score, box, points) given in pixels."""
    found: dict[str, list[np.ndarray]] = {"scores": [], "boxes": [], "points": []}
    for stride in (8, 16, 32):
        cells = 640 // stride
        scores = np.zeros((cells * cells * 2, 1), np.float32)
        boxes = np.zeros((len(scores), 4), np.float32)
        points = np.zeros((len(scores), 10), np.float32)
        for own, anchor, score, box, marks in faces:
            if own == stride:
                center = np.array([anchor // 2 % cells, anchor // 2 // cells]) * stride
                scores[anchor] = score
                boxes[anchor] = np.concatenate([center - box[:2], box[2:] - center]) / stride
                points[anchor] = ((marks - center) / stride).ravel()
        for key, value in (("scores", scores), ("boxes", boxes), ("points", points)):
            found[key].append(value)
    return [*found["scores"], *found["boxes"], *found["points"]]


BOX = np.array([100.0, 80.0, 220.0, 240.0])
MARKS = np.array([[130.0, 130], [190, 130], [160, 160], [140, 200], [180, 200]])


def test_scrfd_is_decoded_and_doubles_are_dropped() -> None:
    faces = [
        (16, 2 * (9 * 40 + 10) + 1, 0.9, BOX, MARKS),
        (32, 2 * (5 * 20 + 5), 0.7, BOX + 4, MARKS),
        (8, 2 * (3 * 80 + 70), 0.6, BOX + [400, 0, 400, 0], MARKS),
        (8, 0, 0.4, BOX, MARKS),
    ]
    found = decode_faces(outputs_of(faces), 2.0)
    assert [f.score for f in found] == pytest.approx([0.9, 0.6])
    assert np.abs(found[0].box - BOX / 2).max() < 1e-3
    assert np.abs(found[0].points - MARKS / 2).max() < 1e-3


def test_a_turned_face_is_made_upright() -> None:
    from refiner_core.evaluation.faces import _LANDMARKS

    image = Image.new("RGB", (400, 400))
    turned = _LANDMARKS @ np.array([[0, 2.0], [-2.0, 0]]) + [330, 20]
    for x, y in turned:
        image.paste((255, 255, 255), (int(x) - 6, int(y) - 6, int(x) + 7, int(y) + 7))
    found = np.asarray(upright(image, turned)).astype(int).sum(2)
    for x, y in _LANDMARKS:
        assert found[int(y), int(x)] > 600
    assert found[10, 10] == 0


def write_models(folder: Path, faces: list[Any]) -> None:
    """A detector that always sees the same, and an embedder that averages 14 px blocks."""
    onnx = pytest.importorskip("onnx", reason="the package onnx makes the tiny face models")
    from onnx import TensorProto, helper, numpy_helper

    def save(nodes: list[Any], outputs: list[str], side: int, path: Path) -> None:
        shape = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])
        made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(nodes, "tiny", [shape], made)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, path)

    constants = [
        helper.make_node("Constant", [], [f"o{i}"], value=numpy_helper.from_array(o))
        for i, o in enumerate(outputs_of(faces))
    ]
    folder.mkdir(parents=True)
    save(constants, [f"o{i}" for i in range(9)], 640, folder / "scrfd_10g_bnkps.onnx")
    pool = helper.make_node(
        "AveragePool", ["input"], ["p"], kernel_shape=[14, 14], strides=[14, 14]
    )
    flat = helper.make_node("Flatten", ["p"], ["e"])
    save([pool, flat], ["e"], 112, folder / "glintr100.onnx")


@pytest.mark.parametrize("depth", ["", "antelopev2", "models/antelopev2"])
def test_arcface_runs_on_models_at_every_depth(tmp_path: Path, depth: str) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime runs the face models")
    write_models(tmp_path / "insight" / depth, [(16, 2 * (9 * 40 + 10), 0.9, BOX, MARKS)])
    metric = ArcFace(tmp_path / "insight")
    case = case_of(noise(2))
    assert case.target is not None
    found = metric.measure(case, {"same": case.target, "other": noise(3)})
    assert found["same"]["arcface"] == pytest.approx(1, abs=1e-5)
    assert found["other"]["arcface"] is not None and found["other"]["arcface"] < 0.999
    assert found["other"]["arcface_reference"] is not None
    assert "glintr100.onnx sha256" in metric.describe()["arcface"]


def test_a_picture_without_a_face_has_no_value(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime runs the face models")
    write_models(tmp_path / "m", [])
    found = ArcFace(tmp_path / "m").measure(case_of(noise(2)), {"x": noise(3)})
    assert found == {"x": {"arcface": None, "arcface_reference": None}}


# --- what is missing ------------------------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (tmp_path / "x.safetensors").write_bytes(b"short")
    for make, words in (
        (lambda: dreamsim(None), "--dreamsim"),
        (lambda: dreamsim(tmp_path / "none.safetensors"), "none.safetensors"),
        (lambda: dreamsim(tmp_path / "x.safetensors"), "x.safetensors"),
        (lambda: DinoV2Metric(None), "--dinov2"),
        (lambda: DinoV2Metric(tmp_path), "facebook/dinov2-base"),
        (lambda: DinoV2Metric(broken), "broken"),
        (lambda: ArcFace(None), "--insightface"),
        (lambda: ArcFace(tmp_path), "antelopev2"),
    ):
        with pytest.raises(MetricUnavailable, match=words):
            make()
    assert find_models(tmp_path) is None


def test_lpips_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(MetricUnavailable, match="LPIPS"):
        LpipsMetric()
    assert list(tmp_path.iterdir()) == []
