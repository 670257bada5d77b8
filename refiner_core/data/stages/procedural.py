"""The four stages without any model or file: details drawn, photographed and gone wrong.

Everything follows from the sample's seed, and each stage from its own random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...matching import homography as hom
from ..corruptions import MISPRINTS
from ..degrade import DEGRADATIONS
from ..render import Projection, Shot, photograph, photographed_mask
from ..shards import mask_box
from ..textures import Texture, draw_texture
from .interface import RejectedError, Sample, split_of_identity
from .pasting import paste_inside
from .scene import Scene, canvas_of, take_shot

KINDS = ("word", "logo", "pattern")
_KIND_SHARES = (0.5, 0.3, 0.2)
_NAMES = {"word": "lettering", "logo": "logo", "pattern": "pattern"}
SOURCE = "procedural"
LICENCE = "drawn; backgrounds from scikit-image and scikit-learn (public domain, CC0, CC BY)"


@dataclass(frozen=True)
class ProceduralPair:
    """Draws a detail and photographs it twice.

    `side` square root of the picture's pixels; `square` or in common aspects; `kind` one of
    `KINDS` or None for a mixture; `held_out` share of identities that go to "validation", with
    photographs behind them that no training sample has; `flat` bends no surface.
    """

    side: int = 512
    square: bool = False
    kind: str | None = None
    held_out: float = 0.05
    flat: bool = False
    name: str = field(default="pair", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        given = {
            "side": self.side, "square": self.square, "kind": self.kind, "held_out": self.held_out,
        }  # fmt: skip
        return given | ({"flat": True} if self.flat else {})

    def compose(self, sample: Sample) -> Scene:
        """The scene of a sample; the same seed is the same scene."""
        rng = sample.rng("pair")
        canvas = canvas_of(rng, self.side, self.square)
        kind = self.kind or str(rng.choice(KINDS, p=_KIND_SHARES))
        fill = float(rng.uniform(0.45, 0.8) if kind == "word" else rng.uniform(0.35, 0.65))
        texture = draw_texture(rng, max(32, round(0.8 * fill * min(canvas))), kind)
        held_out = split_of_identity(identity_of(texture), self.held_out) == "validation"
        target = take_shot(rng, texture, canvas, fill, held_out, clean=False, flat=self.flat)
        other = canvas_of(rng, round(self.side * rng.uniform(0.6, 1.0)), self.square)
        reference = take_shot(
            rng, texture, other, float(rng.uniform(0.6, 0.85)), held_out, clean=True, flat=self.flat
        )
        return Scene(texture, target, reference)

    def __call__(self, sample: Sample) -> Sample:
        scene = self.compose(sample)
        texture = scene.texture
        words = f' "{texture.label}"' if texture.kind == "word" else ""
        return replace(
            sample,
            reference=photograph(texture.image, scene.reference, scene.to_reference),
            target=photograph(texture.image, scene.target, scene.to_target),
            prompt=f"Fix the {_NAMES[texture.kind]}{words} according to the reference image",
            info=sample.noted(
                kind=texture.kind, label=texture.label, identity=identity_of(texture),
                source=SOURCE, licence=LICENCE, bend=scene.target.bend.kind,
            ),
            scene=scene,
        )  # fmt: skip


def identity_of(texture: Texture) -> str:
    """What a detail is, however it is set: a word in two fonts or cases is one identity."""
    return f"{texture.kind}:{texture.label.upper()}"


def _scene(sample: Sample, pair: ProceduralPair) -> Scene:
    return sample.scene if isinstance(sample.scene, Scene) else pair.compose(sample)


@dataclass(frozen=True)
class ProceduralSelect:
    """Keeps pairs whose detail can be read.

    `contrast` least difference of detail and material in the target, in values of 255; `height`
    least height of the detail in the target in pixels (None: 14, less in pictures under 170 px);
    `visible` least share of the detail that is
    inside the picture.
    """

    pair: ProceduralPair
    contrast: float = 24.0
    height: float | None = None
    visible: float = 0.97
    name: str = field(default="select", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"contrast": self.contrast, "height": self.least_height, "visible": self.visible}

    @property
    def least_height(self) -> float:
        return self.height or min(14.0, self.pair.side / 12)

    def __call__(self, sample: Sample) -> Sample:
        scene = _scene(sample, self.pair)
        quad = hom.apply(scene.target.pose, hom.corners(scene.texture.box))
        _, target = sample.pair()
        sides = np.linalg.norm(quad - np.roll(quad, 1, 0), axis=1)
        inside = np.clip(quad, 0, (target.shape[1], target.shape[0]))
        scores = {
            "contrast": round(_ink_contrast(scene), 2),
            "detail_height": round(float(sides.min()), 1),
            "visible": round(_area(inside) / max(_area(quad), 1e-6), 4),
        }
        for score, least in (("contrast", self.contrast), ("detail_height", self.least_height),
                             ("visible", self.visible)):  # fmt: skip
            if scores[score] < least:
                raise RejectedError(f"{score} {scores[score]:g} is under {least:g}")
        return replace(sample, info=sample.noted(scores=scores))


def _ink_contrast(scene: Scene) -> float:
    """Mean difference of the ink and the material under it in the target's light, of 255."""
    texture = scene.texture
    box = texture.box
    ink, plain = (
        np.asarray(i.crop(box), np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        for i in (texture.image, texture.style.material)
    )
    apart = np.abs(ink - plain)
    on = apart > 8
    return float(apart[on].mean() * scene.target.light.gain.mean()) if on.any() else 0.0


def _area(quad: np.ndarray) -> float:
    x, y = quad.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


@dataclass(frozen=True)
class ProceduralMask:
    """What a person or a detector would mark: the outline, a box, an ellipse or the ink itself.

    `rough` False keeps to the outline.
    """

    pair: ProceduralPair
    rough: bool = True
    name: str = field(default="mask", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"rough": self.rough}

    def __call__(self, sample: Sample) -> Sample:
        scene, rng = _scene(sample, self.pair), sample.rng("mask")
        mask = _marked(rng, scene.texture, scene.target, scene.to_target, self.rough)
        reference_mask = _marked(
            rng, scene.texture, scene.reference, scene.to_reference, self.rough
        )
        for mark in (mask, reference_mask):
            if not mark.any():
                raise RejectedError("the detail is outside the picture")
        return replace(
            sample,
            mask=mask,
            reference_mask=reference_mask,
            info=sample.noted(
                boxes={"target": mask_box(mask), "reference": mask_box(reference_mask)}
            ),
        )


def _marked(
    rng: np.random.Generator, texture: Texture, shot: Shot, p: Projection, rough: bool
) -> np.ndarray:
    x0, y0, x1, y1 = texture.box
    pad = rng.uniform(0.02, 0.1) * (y1 - y0)
    flat = np.zeros((texture.image.height, texture.image.width), np.uint8)
    flat[max(0, int(y0 - pad)) : int(y1 + pad) + 1, max(0, int(x0 - pad)) : int(x1 + pad) + 1] = 255
    outline = photographed_mask(flat, shot, p)
    box = mask_box(outline)
    style = rng.random()
    if not rough or style < 0.55 or box is None:
        return outline
    marked = Image.fromarray(np.zeros_like(outline))
    draw = ImageDraw.Draw(marked)
    if style < 0.85:
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    else:
        dx, dy = 0.15 * (box[2] - box[0]), 0.15 * (box[3] - box[1])
        draw.ellipse((box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy), fill=255)
    return np.asarray(marked)


# Mostly wrong prints, as generators make them; the rest is what codecs and upscalers do. "warp",
# "shuffle" and "erase" would tear the surface's own edges where the mask is wider than it.
_ERRORS = {
    "swap": 5, "scramble": 3, "melt": 3, "partial": 2, "recolor": 1.5, "smear": 1.5, "blank": 1,
    "blur": 1, "low_resolution": 1, "noise": 0.5, "jpeg": 0.7, "color_shift": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class ProceduralDegrade:
    """Makes the draft: the detail printed wrong, or the picture of it spoiled.

    `identity` share of samples whose draft is the target; `least` mean change in the mask, of
    255, under which a draft counts as right and is rejected; `only` one name of `MISPRINTS` or
    `DEGRADATIONS`.
    """

    pair: ProceduralPair
    identity: float = 0.05
    least: float = 2.0
    only: str | None = None
    name: str = field(default="degrade", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"identity": self.identity, "least": self.least, "only": self.only}

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        _, target = sample.pair()
        assert sample.mask is not None, "the mask stage comes first"
        exact = rng.random() < self.identity
        names = list(_ERRORS)
        shares = np.array(list(_ERRORS.values()))
        name = self.only or str(rng.choice(names, p=shares / shares.sum()))
        strength = round(float(rng.uniform(0, 1)), 4)
        if exact:
            note = {"name": "identity", "strength": 0.0}
            return replace(sample, draft=target.copy(), info=sample.noted(degradation=note))
        if name in MISPRINTS:
            scene = _scene(sample, self.pair)
            wrong = MISPRINTS[name](rng, scene.texture, strength)
            broken = photograph(wrong, scene.target, scene.to_target)
            # The wrong print is a whole photograph of the scene: it needs no soft edge.
            draft = np.where(sample.mask[..., None] > 0, broken, target)
        else:
            draft = paste_inside(
                target, spoil(target, sample.mask, name, rng, strength), sample.mask
            )
        change = float(np.abs(draft.astype(np.int16) - target)[sample.mask > 0].mean())
        if change < self.least:
            raise RejectedError(f"{name} changed the detail by {change:.2f} of 255 only")
        note = {"name": name, "strength": strength, "change": round(change, 3)}
        return replace(sample, draft=draft, info=sample.noted(degradation=note))


def spoil(
    target: np.ndarray, mask: np.ndarray, name: str, rng: np.random.Generator, strength: float
) -> np.ndarray:
    """The target with one of `DEGRADATIONS` in the box of the mask, uint8 H W 3."""
    box = mask_box(mask)
    assert box is not None, "an empty mask is rejected before"
    x0, y0, x1, y1 = box
    broken = target.copy()
    patch = DEGRADATIONS[name](target[y0:y1, x0:x1].astype(np.float32), rng, strength)
    broken[y0:y1, x0:x1] = np.clip(np.rint(patch), 0, 255).astype(np.uint8)
    return broken
