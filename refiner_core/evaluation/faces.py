"""Face similarity by ArcFace, with insightface's model files and onnxruntime.

The detector is SCRFD (arXiv 2105.04714), the embedding is ArcFace's (arXiv 1801.07698).
insightface's models are for non-commercial research only; they are used if the user has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .digests import sha256
from .metric import Column, EvaluationCase, MetricUnavailable, Scores

_DETECTORS = ("scrfd_10g_bnkps.onnx", "det_10g.onnx")
_EMBEDDERS = ("glintr100.onnx", "w600k_r50.onnx")
_SIDE, _ANCHORS = 640, 2
_SCORE, _OVERLAP = 0.5, 0.4
# x and y of eyes, nose and mouth corners in ArcFace's 112x112 picture.
_LANDMARKS = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)


@dataclass(frozen=True)
class Face:
    """A face in a picture."""

    box: np.ndarray  # x0 y0 x1 y1 in pixels
    points: np.ndarray  # 5 2: eyes, nose and mouth corners in pixels
    score: float  # the detector's confidence, 0..1

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return float((x1 - x0) * (y1 - y0))


def find_models(folder: Path) -> tuple[Path, Path] | None:
    """Detector and embedder in a folder or up to two levels below (the published zip is nested)."""
    for pattern in ("*.onnx", "*/*.onnx", "*/*/*.onnx"):
        here = {p.name: p for p in sorted(folder.glob(pattern))}
        detector = next((here[n] for n in _DETECTORS if n in here), None)
        embedder = next((here[n] for n in _EMBEDDERS if n in here), None)
        if detector and embedder:
            return detector, embedder
    return None


def decode_faces(outputs: list[np.ndarray], scale: float) -> list[Face]:
    """SCRFD's nine outputs (scores, boxes and points of three strides) as faces, best first.

    Distances are in strides from the anchors' centres; `scale` is that of the picture before detection.
    """
    flat = [o.reshape(-1, o.shape[-1]) for o in outputs]

    def outputs_of(width: int) -> list[np.ndarray]:
        return sorted((o for o in flat if o.shape[1] == width), key=len, reverse=True)

    faces = []
    for scores, boxes, points in zip(outputs_of(1), outputs_of(4), outputs_of(10), strict=True):
        cells = round((len(scores) / _ANCHORS) ** 0.5)
        stride = _SIDE // cells
        ys, xs = np.divmod(np.arange(cells * cells).repeat(_ANCHORS), cells)
        centers = np.stack([xs, ys], 1) * stride
        for i in np.flatnonzero(scores[:, 0] >= _SCORE):
            left_top, right_bottom = boxes[i, :2] * stride, boxes[i, 2:] * stride
            box = np.concatenate([centers[i] - left_top, centers[i] + right_bottom])
            landmarks = centers[i] + points[i].reshape(5, 2) * stride
            faces.append(Face(box / scale, landmarks / scale, float(scores[i, 0])))
    return _without_overlaps(sorted(faces, key=lambda f: -f.score))


def _without_overlaps(faces: list[Face]) -> list[Face]:
    kept: list[Face] = []
    for face in faces:
        if all(_overlap(face, other) <= _OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Face, b: Face) -> float:
    low, high = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    both = float(np.prod(np.clip(high - low, 0, None)))
    return both / max(a.area + b.area - both, 1e-9)


def upright(image: Image.Image, points: np.ndarray) -> Image.Image:
    """The face rotated and scaled so that its five points lie where ArcFace expects them."""
    # The similarity landmark -> picture by least squares: x' = a x - b y + c, y' = b x + a y + d.
    x, y = _LANDMARKS[:, 0], _LANDMARKS[:, 1]
    one, zero = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, np.concatenate([points[:, 0], points[:, 1]]), rcond=None)[0]
    return image.transform(
        (112, 112), Image.Transform.AFFINE, (a, -b, c, b, a, d), Image.Resampling.BILINEAR
    )


class ArcFace:
    """Cosine of the largest face's embedding to those of the target and the reference.

    A picture without a face has no value; the report says how many cases have one.

    Args:
        folder: holds insightface's `antelopev2` or `buffalo_l`, up to two levels below.

    Raises:
        MetricUnavailable: onnxruntime or the models are missing, or cannot be read.
    """

    columns = (
        Column("arcface", "ArcFace", True, 4, 0.8573),
        Column("arcface_reference", "ArcFace to ref.", True, 4),
    )

    def __init__(self, folder: Path | None) -> None:
        found = find_models(folder) if folder is not None and folder.is_dir() else None
        if found is None:
            raise MetricUnavailable(
                f"ArcFace: neither {_model_pair(0)} (antelopev2) nor {_model_pair(1)} (buffalo_l) "
                f"found{f' in {folder}' if folder else ''}. Download insightface's models "
                "(non-commercial) and name their folder with --insightface."
            )
        try:
            import onnxruntime
        except ImportError as e:
            raise MetricUnavailable("ArcFace: pip install onnxruntime.") from e
        self.files = found
        try:
            self.detector, self.embedder = (
                onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"])
                for p in found
            )
        except Exception as e:  # onnxruntime's errors share no base class of their own
            raise MetricUnavailable(f"ArcFace: {found[0].parent} cannot be loaded: {e}") from e

    def faces(self, image: Image.Image) -> list[Face]:
        """The faces of a picture, by descending confidence."""
        scale = _SIDE / max(image.size)
        small = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
        canvas = np.zeros((_SIDE, _SIDE, 3), np.float32)
        canvas[: small.height, : small.width] = np.asarray(small, np.float32)
        return decode_faces(_run(self.detector, (canvas - 127.5) / 128), scale)

    def embed(self, pixels: Tensor) -> np.ndarray | None:
        """The largest face of a picture 1 3 H W as a unit vector, or None without a face."""
        image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
        faces = self.faces(image)
        if not faces:
            return None
        face = upright(image, max(faces, key=lambda f: f.area).points)
        vector = _run(self.embedder, (np.asarray(face, np.float32) - 127.5) / 127.5)[0][0]
        return vector / max(float(np.linalg.norm(vector)), 1e-9)

    def measure(self, case: EvaluationCase, results: Mapping[str, Tensor]) -> Scores:
        truth = {
            "arcface": None if case.target is None else self.embed(case.target),
            "arcface_reference": self.embed(case.reference),
        }
        scores: Scores = {}
        for name, result in results.items():
            own = self.embed(result)
            scores[name] = {
                key: None if own is None or other is None else float(own @ other)
                for key, other in truth.items()
            }
        return scores

    def describe(self) -> dict[str, str]:
        return {"arcface": ", ".join(f"{p.name} sha256 {sha256(p)}" for p in self.files)}


def _model_pair(i: int) -> str:
    return f"{_DETECTORS[i]} + {_EMBEDDERS[i]}"


def _run(session: Any, pixels: np.ndarray) -> list[np.ndarray]:
    """Run a network on H W 3 RGB floats."""
    batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
    return session.run(None, {session.get_inputs()[0].name: batch})
