"""Brings the reference into the draft's pose, where that can be found out reliably.

Masks give the first guess (the detail's box in both pictures), a masked registration refines it,
and the result is only used if it is sane. A small model is strong at copying from the same place
and weak at finding the place; this step does the finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.masks import dilate
from .homography import from_points
from .outline import is_upright, mask_box_corners, quadrilateral
from .patch_ncc import PatchNcc, hill_climb
from .registration import pyramid, register
from .warping import warp

_ACCEPT = 0.15  # weighted correlation of the compared features below which a fit is not believed
# The same of an aligned reference below which it probably shows something else than the region. Of
# strongly degraded but right pairs it is mostly higher, of unrelated ones mostly lower.
POOR_AGREEMENT = 0.1
_GREY = 0.5  # shown where the reference shows nothing
_MOST_TURN = 60  # degrees between draft and reference
_STEP_TURNS = (-30, -24, -18, -12, -6, 6, 12, 18, 24, 30)  # degrees, about as far as a fit reaches
_STEP_ZOOMS = (1.0, 0.9, 1.1)  # of the masks' sizes: people outline more or less generously
_LEAST_DEPTH = 0.2  # of the plane at a corner: less and the map nearly folds there
_AREAS = (0.35, 2.8)  # of the region under the fit against the first guess, to be believed
_ALIASING = 1.25  # reference pixels per draft pixel above which the reference is averaged down
_ZOOMS = np.geomspace(0.84, 1.19, 36)  # of one outline against the other
_FINEST = 192  # px of the shorter side at which the last fit is made
_RING = 0.3  # of the region's shorter side: how far around it the surface is expected to go on


@dataclass(frozen=True)
class Alignment:
    """How the reference's crop lies over the draft's."""

    matrix: Tensor
    """3 3 float64, from the draft's crop to the reference's, both in normalised coordinates."""
    score: float
    """Correlation over the region, -1 to 1."""
    method: str
    """"registered", "outlines" (the masks' corners only) or "boxes" (their place and size only)."""
    turn: float
    """Degrees by which the reference is turned against the draft."""
    zoom: float
    """Reference pixels per draft pixel, each of its crop."""

    def report(self) -> dict[str, float | str]:
        return {
            "method": self.method,
            "score": round(self.score, 3),
            "turn_degrees": round(self.turn, 2),
            "zoom": round(self.zoom, 3),
        }


def _moments(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (2,) and covariance (2 2) of a mask 1 1 H W, in pixels around the crop's centre."""
    h, w = mask.shape[-2:]
    m = mask[0, 0].double()
    y = torch.arange(h, dtype=torch.float64) + 0.5 - h / 2
    x = torch.arange(w, dtype=torch.float64) + 0.5 - w / 2
    total = m.sum()
    mx, my = (m.sum(0) * x).sum() / total, (m.sum(1) * y).sum() / total
    dx, dy = x - mx, y - my
    own = 1 / 12  # the spread of one pixel: a mask of a single one has a shape too
    xx = (m.sum(0) * dx * dx).sum() / total + own
    yy = (m.sum(1) * dy * dy).sum() / total + own
    xy = (m * dy[:, None] * dx[None, :]).sum() / total
    return torch.stack([mx, my]), torch.stack([torch.stack([xx, xy]), torch.stack([xy, yy])])


def _outline_maps(mask: Tensor, reference_mask: Tensor) -> Tensor | None:
    """Maps (N 3 3) that lay one mask's four corners on the other's, each way round and at several
    zooms: people outline the same thing more or less generously. None: not both are quadrilaterals,
    or one is an upright box, which may lie around a thing of any shape.
    """
    a = quadrilateral(mask)
    if a is None or is_upright(a):
        return None
    b = quadrilateral(reference_mask)
    if b is None or is_upright(b):
        return None
    to_pixels, from_pixels = _pixel_frames(mask, reference_mask)
    middle = a.mean(0)
    found = []
    for turn in range(4):
        matrix = from_points(a, np.roll(b, turn, axis=0))
        angle = math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
        if abs(angle) > _MOST_TURN:
            continue
        for zoom in _ZOOMS:
            scaled = np.diag([zoom, zoom, 1.0])
            scaled[:2, 2] = middle * (1 - zoom)
            found.append(from_pixels.numpy() @ matrix @ scaled @ to_pixels.numpy())
    return torch.from_numpy(np.stack([m / m[2, 2] for m in found])) if found else None


def _pixel_frames(mask: Tensor, reference_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised to centred pixels of the draft's crop; centred pixels of the reference's back."""
    (h, w), (rh, rw) = mask.shape[-2:], reference_mask.shape[-2:]
    return (
        torch.diag(torch.tensor([w / 2, h / 2, 1.0], dtype=torch.float64)),
        torch.diag(torch.tensor([2 / rw, 2 / rh, 1.0], dtype=torch.float64)),
    )


def _starts(mask: Tensor, reference_mask: Tensor) -> list[Tensor]:
    """First guesses draft -> reference: mask onto mask, turned and zoomed a little either way."""
    center, spread = _moments(mask)
    ref_center, ref_spread = _moments(reference_mask)
    to_pixels, from_pixels = _pixel_frames(mask, reference_mask)
    size = float(ref_spread.det() / spread.det()) ** 0.25

    def affine(linear: Tensor) -> Tensor:
        m = torch.eye(3, dtype=torch.float64)
        m[:2, :2] = linear
        m[:2, 2] = ref_center - linear @ center
        return from_pixels @ m @ to_pixels

    def angle(cov: Tensor) -> float:
        return 0.5 * math.atan2(2 * float(cov[0, 1]), float(cov[0, 0] - cov[1, 1]))

    def turned(a: float, zoom: float) -> Tensor:
        c, s = math.cos(a) * zoom, math.sin(a) * zoom
        return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)

    by_axes = angle(ref_spread) - angle(spread)
    by_axes = (by_axes + math.pi / 2) % math.pi - math.pi / 2
    angles = {0.0, by_axes} | {math.radians(d) for d in _STEP_TURNS}
    guesses = [turned(a, size * z) for z in _STEP_ZOOMS for a in sorted(angles, key=abs)]
    # The masks' own shapes, matched axis by axis: right when both were outlined alike.
    evals, evecs = torch.linalg.eigh(spread)
    ref_evals, ref_evecs = torch.linalg.eigh(ref_spread)
    root = evecs @ torch.diag(evals.rsqrt()) @ evecs.T
    ref_root = ref_evecs @ torch.diag(ref_evals.sqrt()) @ ref_evecs.T
    guesses.append(ref_root @ root)
    return [affine(g) for g in guesses if bool(torch.isfinite(g).all())]


def _turn_zoom(matrix: Tensor, draft: Tensor, reference: Tensor) -> tuple[float, float]:
    h, w = draft.shape[-2:]
    rh, rw = reference.shape[-2:]
    m = matrix / matrix[2, 2]
    a, b = float(m[0, 0]) * rw / w, float(m[0, 1]) * rw / h
    c, d = float(m[1, 0]) * rh / w, float(m[1, 1]) * rh / h
    return math.degrees(math.atan2(c - b, a + d)), math.sqrt(abs(a * d - b * c))


def _sane(matrix: Tensor, start: Tensor, mask: Tensor) -> bool:
    """The refined map must not mirror, fold or run away from the first guess over the region."""
    ys, xs = (mask[0, 0] > 0.5).nonzero(as_tuple=True)
    if len(ys) == 0:
        return False
    h, w = mask.shape[-2:]
    x0, x1 = float(xs.min()) / w * 2 - 1, float(xs.max() + 1) / w * 2 - 1
    y0, y1 = float(ys.min()) / h * 2 - 1, float(ys.max() + 1) / h * 2 - 1
    corners = torch.tensor(
        [[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1]], dtype=torch.float64
    )

    def area(m: Tensor) -> float:
        p = corners @ m.T
        if bool((p[:, 2] <= _LEAST_DEPTH).any()):
            return 0.0
        q = p[:, :2] / p[:, 2:]
        nxt = q.roll(-1, 0)
        return 0.5 * float((q[:, 0] * nxt[:, 1] - q[:, 1] * nxt[:, 0]).sum())

    before, after = area(start), area(matrix)
    least, most = _AREAS
    return after > 0 and least < after / max(before, 1e-9) < most


def _weights(mask: Tensor) -> Tensor:
    """What each pixel counts: the unbroken surface around the region twice as much as the broken
    detail in it, and everything else nothing.
    """
    ys, xs = (mask[0, 0] > 0.5).nonzero(as_tuple=True)
    reach = max(2, round(_RING * min(float(ys.max() - ys.min()), float(xs.max() - xs.min()))))
    return dilate(mask, reach) - 0.5 * mask


def align(draft: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor) -> Alignment:
    """Find where the draft's region lies in the reference.

    Args:
        draft, reference: crops 1 3 h w in [0, 1]; sizes may differ.
        mask, reference_mask: the detail in each, 1 1 h w, over 0 somewhere.

    Returns:
        the registration if it is believable, else the masks' own correspondence.
    """
    # A thin stroke is faint at the model's size: its strongest pixel counts as whole.
    mask, reference_mask = mask / mask.amax(), reference_mask / reference_mask.amax()
    weight = _weights(mask)
    level = pyramid(draft, reference, weight, None, _FINEST, _FINEST)[-1]
    ncc = PatchNcc(level.fixed, level.moving, level.weights[:, 1:2])
    outlines = _outline_maps(mask, reference_mask)
    if outlines is None:
        prior, starts = None, _starts(mask, reference_mask)
        found = register(
            draft, reference, weight, "homography", starts, guide=(mask, reference_mask)
        )
        start, method = starts[0], "boxes"
        believed = found.score >= _ACCEPT and _sane(found.matrix, start, mask)
    else:
        start, method = outlines[int(ncc(outlines).argmax())], "outlines"
        prior = start.numpy()
        found = register(
            draft, reference, weight, "homography", [start], finest=_FINEST, coarsest=_FINEST
        )
        believed = True
    matrix = start
    if believed:
        guesses = torch.stack([found.matrix, start])
        guess = guesses[int(ncc(guesses).argmax())].numpy()
        size = (mask.shape[-2], mask.shape[-1])
        climbed, _ = hill_climb(ncc, guess, mask_box_corners(mask), size, prior=prior)
        if _sane(torch.from_numpy(climbed), start, mask):
            matrix, method = torch.from_numpy(climbed / climbed[2, 2]), "registered"
    turn, zoom = _turn_zoom(matrix, draft, reference)
    return Alignment(matrix, found.score, method, turn, zoom)


def apply_alignment(reference: Tensor, alignment: Alignment, height: int, width: int) -> Tensor:
    """The reference crop seen from the draft's pose, 1 3 H W; grey where it shows nothing.

    A reference much larger than the draft's crop is averaged down first, so that its detail does
    not alias.
    """
    shrink = alignment.zoom
    if shrink > _ALIASING:
        h, w = reference.shape[-2:]
        size = (max(4, round(h / shrink)), max(4, round(w / shrink)))
        reference = F.interpolate(reference, size, mode="area")
    out, inside = warp(reference, alignment.matrix, height, width)
    return (out * inside + _GREY * (1 - inside)).clamp(0, 1)
