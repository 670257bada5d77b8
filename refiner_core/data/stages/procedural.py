"""The four stages without any model or file: details are drawn, rendered and degraded.

Everything follows from the sample's seed, and each stage has its own random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...matching import homography as hom
from ..corruptions import CORRUPTIONS
from ..credits import credits_of
from ..degrade import degrade_box
from ..own_files import NO_FILES, OwnFiles
from ..render import Projection, SurfaceView, render, render_mask
from ..sample import RejectedError, Sample, split_of_identity
from ..scene import Scene, draw_canvas, draw_view
from ..textures import KINDS, Texture, draw_texture
from ..triplets import mask_box
from .drafts import paste_inside, with_draft, with_right_draft

SOURCE = "procedural"
LICENCE = "drawn; backgrounds from scikit-image and scikit-learn (public domain, CC0, CC BY)"
OWN_LICENCE = "drawn with the builder's own files: see credits"
_KIND_SHARES = (0.5, 0.3, 0.2)
_KIND_NAMES = {"word": "lettering", "logo": "logo", "pattern": "pattern"}


@dataclass(frozen=True)
class ProceduralPair:
    """Draws a detail and renders it twice."""

    side: int = 512  # square root of the picture's area, in pixels
    square: bool = False  # no other aspect ratios
    kind: str | None = None  # one of `KINDS`; None = a mixture
    # Share of identities that go to "validation", with backgrounds that training never sees.
    held_out: float = 0.05
    flat: bool = False  # never bend the surface
    own: OwnFiles = NO_FILES  # photographs, fonts and artwork instead of what comes built in
    name: str = field(default="pair", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        names = ("side", "square", "kind", "held_out", *(("flat",) if self.flat else ()))
        own = {"own": self.own.settings()} if self.own.files() else {}
        return {name: getattr(self, name) for name in names} | own

    def draw_scene(self, sample: Sample) -> Scene:
        """The scene of a sample; the same seed gives the same scene."""
        rng = sample.rng("pair")
        canvas = draw_canvas(rng, self.side, self.square)
        kind = self.kind or str(rng.choice(KINDS, p=_KIND_SHARES))
        fill = float(rng.uniform(0.45, 0.8) if kind == "word" else rng.uniform(0.35, 0.65))
        texture = draw_texture(rng, max(32, round(0.8 * fill * min(canvas))), kind, self.own)
        held_out = split_of_identity(identity_of(texture), self.held_out) == "validation"
        target = draw_view(rng, texture, canvas, fill, held_out, clean=False, flat=self.flat)
        other = draw_canvas(rng, round(self.side * rng.uniform(0.6, 1.0)), self.square)
        fill = float(rng.uniform(0.6, 0.85))
        reference = draw_view(rng, texture, other, fill, held_out, clean=True, flat=self.flat)
        return Scene(texture, target, reference)

    def scene_of(self, sample: Sample) -> Scene:
        """The scene that an earlier stage left in the sample, or the same one drawn again."""
        return sample.scene if isinstance(sample.scene, Scene) else self.draw_scene(sample)

    def __call__(self, sample: Sample) -> Sample:
        scene = self.draw_scene(sample)
        texture = scene.texture
        word = f' "{texture.label}"' if texture.kind == "word" else ""
        info = sample.noted(
            kind=texture.kind,
            label=texture.label,
            identity=identity_of(texture),
            source=SOURCE,
            licence=OWN_LICENCE if self.own.files() else LICENCE,
            bend=scene.target.bend.kind,
            **_credits(scene),
        )
        return replace(
            sample,
            reference=render(texture.image, scene.reference, scene.to_reference),
            target=render(texture.image, scene.target, scene.to_target),
            prompt=f"Fix the {_KIND_NAMES[texture.kind]}{word} according to the reference image",
            info=info,
            scene=scene,
        )


def _credits(scene: Scene) -> dict[str, Any]:
    """The user's own files in reference and target, as an entry of the sample's info."""
    texture = scene.texture
    lettered = texture.style.font if texture.kind == "word" else None
    files = (
        scene.target.photo,
        scene.reference.photo,
        lettered.file if lettered else None,
        texture.artwork,
    )
    named = credits_of(files)
    return {"credits": named} if named else {}


def identity_of(texture: Texture) -> str:
    """What a detail is, however it is set: a word in two fonts or cases is one identity."""
    return f"{texture.kind}:{texture.label.upper()}"


@dataclass(frozen=True)
class ProceduralSelect:
    """Keeps pairs whose detail can be read."""

    pair: ProceduralPair
    min_contrast: float = 24.0  # of detail and material in the target, in values of 255
    height: float | None = None  # of the detail in the target, in px; None = by the picture's side
    min_visible: float = 0.97  # share of the detail inside the picture
    name: str = field(default="select", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {
            "contrast": self.min_contrast,
            "height": self.min_height,
            "visible": self.min_visible,
        }

    @property
    def min_height(self) -> float:
        """The least height of the detail: 14 px, less in pictures under 170 px."""
        return self.height or min(14.0, self.pair.side / 12)

    def __call__(self, sample: Sample) -> Sample:
        scene = self.pair.scene_of(sample)
        quad = hom.apply(scene.target.pose, hom.corners(scene.texture.box))
        _, target = sample.pair()
        sides = np.linalg.norm(quad - np.roll(quad, 1, 0), axis=1)
        inside = np.clip(quad, 0, (target.shape[1], target.shape[0]))
        scores = {
            "contrast": round(_ink_contrast(scene), 2),
            "detail_height": round(float(sides.min()), 1),
            "visible": round(_area(inside) / max(_area(quad), 1e-6), 4),
        }
        needed = (self.min_contrast, self.min_height, self.min_visible)
        for (score, value), least in zip(scores.items(), needed, strict=True):
            if value < least:
                raise RejectedError(f"{score} {value:g} is less than {least:g}")
        return replace(sample, info=sample.noted(scores=scores))


def _ink_contrast(scene: Scene) -> float:
    """Mean difference of the ink and the material under it in the target's light, of 255."""
    texture = scene.texture
    ink, material = (
        np.asarray(i.crop(texture.box), np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        for i in (texture.image, texture.style.material)
    )
    difference = np.abs(ink - material)
    on = difference > 8
    return float(difference[on].mean() * scene.target.light.gain.mean()) if on.any() else 0.0


def _area(quad: np.ndarray) -> float:
    x, y = quad.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


@dataclass(frozen=True)
class ProceduralMask:
    """Masks as a person or a detector would make them: the outline, a box or an ellipse."""

    pair: ProceduralPair
    rough: bool = True  # False = outlines only
    name: str = field(default="mask", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"rough": self.rough}

    def __call__(self, sample: Sample) -> Sample:
        scene, rng = self.pair.scene_of(sample), sample.rng("mask")
        mask, reference_mask = (
            _draw_mask(rng, scene.texture, view, projection, self.rough)
            for view, projection in (
                (scene.target, scene.to_target),
                (scene.reference, scene.to_reference),
            )
        )
        if not mask.any() or not reference_mask.any():
            raise RejectedError("the detail is outside the picture")
        boxes = {"target": mask_box(mask), "reference": mask_box(reference_mask)}
        info = sample.noted(boxes=boxes)
        return replace(sample, mask=mask, reference_mask=reference_mask, info=info)


def _draw_mask(
    rng: np.random.Generator, texture: Texture, view: SurfaceView, p: Projection, rough: bool
) -> np.ndarray:
    x0, y0, x1, y1 = texture.box
    pad = rng.uniform(0.02, 0.1) * (y1 - y0)
    flat = np.zeros((texture.image.height, texture.image.width), np.uint8)
    flat[max(0, int(y0 - pad)) : int(y1 + pad) + 1, max(0, int(x0 - pad)) : int(x1 + pad) + 1] = 255
    outline = render_mask(flat, view, p)
    box = mask_box(outline)
    style = rng.random()
    if not rough or style < 0.55 or box is None:
        return outline
    mask = Image.fromarray(np.zeros_like(outline))
    draw = ImageDraw.Draw(mask)
    if style < 0.85:
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    else:
        dx, dy = 0.15 * (box[2] - box[0]), 0.15 * (box[3] - box[1])
        draw.ellipse((box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy), fill=255)
    return np.asarray(mask)


# Mostly wrong details, as generators draw them; the rest is what codecs and upscalers do. "warp",
# "shuffle" and "erase" would tear the surface's own edges where the mask is wider than it.
_WEIGHTS = {
    "swap": 5,
    "scramble": 3,
    "melt": 3,
    "partial": 2,
    "recolor": 1.5,
    "smear": 1.5,
    "blank": 1,
    "blur": 1,
    "low_resolution": 1,
    "noise": 0.5,
    "jpeg": 0.7,
    "color_shift": 0.8,
}


@dataclass(frozen=True)
class ProceduralDegrade:
    """Makes the draft: a wrong detail rendered into the scene, or the region degraded."""

    pair: ProceduralPair
    identity: float = 0.05  # share of samples whose draft is the target
    min_change: float = 2.0  # mean change in the mask, of 255; under it a draft is rejected
    only: str | None = None  # one of `CORRUPTIONS` or `DEGRADATIONS`
    name: str = field(default="degrade", init=False)
    version: str = field(default="procedural/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {"identity": self.identity, "least": self.min_change, "only": self.only}

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        target, mask = sample.target_and_mask()
        right = rng.random() < self.identity
        shares = np.array(list(_WEIGHTS.values()))
        name = self.only or str(rng.choice(list(_WEIGHTS), p=shares / shares.sum()))
        strength = round(float(rng.uniform(0, 1)), 4)
        if right:
            return with_right_draft(sample)
        if name in CORRUPTIONS:
            scene = self.pair.scene_of(sample)
            wrong = CORRUPTIONS[name](rng, scene.texture, strength)
            # The wrong detail is rendered with the whole scene: it needs no soft edge.
            degraded = render(wrong, scene.target, scene.to_target)
            draft = np.where(mask[..., None] > 0, degraded, target)
        else:
            draft = paste_inside(target, degrade_box(target, mask, name, rng, strength), mask)
        return with_draft(sample, draft, self.min_change, {"name": name, "strength": strength})
