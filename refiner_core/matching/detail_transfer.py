"""The reference's detail at the draft's own resolution, in the draft's pose and light.

Where the reference ends, and where the surface around the region goes on inside it while the
reference shows something else, the draft stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import wide_blur
from ..images.geometry import Box, Extent
from ..images.masks import Region, box_mask
from ..images.tensors import to_float
from .surface_map import SurfaceMap, warp_surface
from .tone import (
    SAME_LIT_SURFACE,
    continued,
    low_frequency_step,
    membrane,
    relight,
    rim_of,
    shrink_to_field,
    soft_draft_step,
    tone_gain,
)

_MARGIN = 0.2  # of the region's shorter side: how far around it is looked
_LEAST_MARGIN = 12  # px
# Reference pixels per draft pixel to which a larger reference is reduced: at one per pixel the warp
# would soften fine print once more, at two it would alias.
_READ_AT = 1.25
_REFERENCE_MARGIN = 8  # px of the reference around what is read
_REFERENCE_EDGE = 3  # px next to the reference's edge that are not shown
_EDGE_SIGMA = 1.5  # px
_STRIP = 256  # rows that fade at once
_FADING_REACH = 24  # px, more than the pooling and the blur reach
_MARK_SIDE = 1024  # px of the longer side at which a mark is compared
_MARKED = 0.02  # of the region's shorter side: how far beyond a mark the detail may reach
# The draft's own surface.
_OTHER = 0.15  # difference of draft and reference that makes them two things
_GOES_ON = 0.12  # difference from the surroundings' colour below which a surface goes on
_GOES_ON_UNMARKED = 0.3  # likewise beyond the mark: a wrong detail of the draft must not stay
_FIELD_SIGMA = 0.024  # of the field's longer side, for comparing colours


@dataclass(frozen=True)
class DetailTransfer:
    """The draft around a region with the reference's detail in its place."""

    window: Box
    """Of the draft, in px."""
    picture: Tensor
    """Float 1 3 h w, the window's size."""
    shown: Tensor
    """How much of the picture is the reference's, 1 1 h w in [0, 1]."""

    def part(self, box: Box) -> tuple[Tensor, Tensor]:
        """Picture and `shown` of a box inside the window."""
        w = self.window
        rows, columns = slice(box.y0 - w.y0, box.y1 - w.y0), slice(box.x0 - w.x0, box.x1 - w.x0)
        return self.picture[..., rows, columns], self.shown[..., rows, columns]


def transfer_detail(
    image: Tensor,
    region: Region,
    reference: Tensor,
    surface: SurfaceMap,
    detail: Box | None = None,
) -> DetailTransfer:
    """Lay the reference's detail over a region.

    Args:
        image: the draft, 1 3 H W in any stored type.
        region: what is repaired in it.
        reference: 1 3 h w in any stored type.
        surface: from the draft's pixels to the reference.
        detail: where the detail is marked in the reference, in px; beyond it the draft's own surface
            stays, where it goes on from around the region.
    """
    window = _window(region.box, Extent(image.shape[-1], image.shape[-2]))
    draft = to_float(image[..., window.y0 : window.y1, window.x0 : window.x1])
    view, inside = _aligned(reference, surface, window)
    marked = inside
    if detail is not None:
        grown = round(_MARKED * min(region.box.extent))
        marked = _marked(detail, Extent(*reference.shape[:1:-1]), surface, window, grown)
    mask = torch.zeros_like(inside)
    b = region.box
    rows, columns = (
        slice(b.y0 - window.y0, b.y1 - window.y0),
        slice(b.x0 - window.x0, b.x1 - window.x0),
    )
    mask[..., rows, columns] = (region.mask > 0).float()
    picture, shown = _lay_over(draft, mask, view, inside, marked)
    laid = picture.sub_(draft).mul_(shown).add_(draft)  # in place: a window may be large
    return DetailTransfer(window, laid, shown)


def _lay_over(
    draft: Tensor, mask: Tensor, view: Tensor, inside: Tensor, marked: Tensor
) -> tuple[Tensor, Tensor]:
    """The aligned reference in the draft's light, and how much of it is shown."""
    small_draft, small_mask = shrink_to_field(draft), (shrink_to_field(mask) > 0).float()
    small_view, small_inside = shrink_to_field(view), (shrink_to_field(inside) > 0.99).float()
    gain = tone_gain(small_view, small_draft, small_mask, small_inside)
    lit = relight(small_view, gain).clamp(0, 1)
    own = _own_surface(lit, small_draft, small_mask, small_inside, shrink_to_field(marked))
    rim = rim_of(small_mask) * small_inside * (1 - own)
    step = (1 - own) * soft_draft_step(lit, small_draft, small_mask, small_inside)
    step = step + membrane(small_draft - lit - step, rim, SAME_LIT_SURFACE)
    toned, replaced = (lit + step).clamp(0, 1), small_mask * small_inside * (1 - own)
    step = step + low_frequency_step(toned, small_draft, replaced)
    size = draft.shape[-2:]
    gain, step, own = (
        F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (gain, step, own)
    )
    picture = relight(view, gain).clamp_(0, 1).add_(step).clamp_(0, 1)
    return picture, _faded(inside) * (1 - own)


def _window(box: Box, size: Extent) -> Box:
    around = round(_MARGIN * min(box.extent)) + _LEAST_MARGIN
    grown = Box(box.x0 - around, box.y0 - around, box.x1 + around, box.y1 + around)
    return grown.intersection(Box(0, 0, *size))


def _aligned(reference: Tensor, surface: SurfaceMap, window: Box) -> tuple[Tensor, Tensor]:
    """The reference as the window shows it, and where it shows anything."""
    size = Extent(reference.shape[-1], reference.shape[-2])
    used = surface.reach(window, size)
    m = _REFERENCE_MARGIN
    used = Box(used.x0 - m, used.y0 - m, used.x1 + m, used.y1 + m)
    used = used.intersection(Box(0, 0, *size))
    if min(used.extent) < 2:
        return torch.zeros(1, 3, *window.extent[::-1]), torch.zeros(1, 1, *window.extent[::-1])
    picture = to_float(reference[..., used.y0 : used.y1, used.x0 : used.x1])
    shrink = abs(surface.zoom(size)) / _READ_AT
    if shrink > 1:
        smaller = [max(2, round(n / shrink)) for n in picture.shape[-2:]]
        picture = F.interpolate(
            picture, smaller, mode="bicubic", align_corners=False, antialias=True
        ).clamp_(0, 1)
    view, inside = warp_surface(
        picture, surface.within(used, size), window, window.extent, "bicubic"
    )
    return view.clamp(0, 1), inside


def _marked(detail: Box, reference: Extent, surface: SurfaceMap, window: Box, grown: int) -> Tensor:
    """Where the window shows the marked detail or is within `grown` px of it, 1 1 h w, 0 or 1."""
    scale = min(1.0, _MARK_SIDE / max(reference))
    box = Box(*(round(scale * edge) for edge in detail))
    size = Extent(*(round(scale * side) for side in reference))
    seen, _ = warp_surface(box_mask(box, size), surface, window, window.extent)
    return F.max_pool2d((seen > 0.5).float(), 2 * grown + 1, 1, grown)


def _faded(inside: Tensor) -> Tensor:
    """1 where the reference is shown, fading to 0 before it ends."""
    if bool((inside > 0).all()):
        return inside
    rows: list[Tensor] = []
    height = inside.shape[-2]
    for top in range(0, height, _STRIP):  # pooling and blurring take a multiple of their input
        above = min(top, _FADING_REACH)
        strip = inside[..., top - above : top + _STRIP + _FADING_REACH, :]
        rows.append(_faded_strip(strip)[..., above : above + min(_STRIP, height - top), :])
    return torch.cat(rows, 2)


def _faded_strip(inside: Tensor) -> Tensor:
    k = _REFERENCE_EDGE
    ends = F.max_pool2d(1 - inside, 4 * k + 1, 1, 2 * k)
    return wide_blur(1 - ends, _EDGE_SIGMA) * (1 - F.max_pool2d(1 - inside, 2 * k + 1, 1, k))


def _own_surface(
    lit: Tensor, draft: Tensor, mask: Tensor, inside: Tensor, marked: Tensor
) -> Tensor:
    """Where the draft's surroundings go on inside the region and the reference shows something
    else, or what is not marked there, 1 1 h w in [0, 1]: what lies beside the detail is the draft's.

    All at the size of a field.
    """
    sigma = _FIELD_SIGMA * max(mask.shape[-2:])
    smooth = wide_blur(draft, sigma)
    apart = (smooth - wide_blur(lit, sigma)).abs().amax(1, keepdim=True) > _OTHER
    onward = continued(wide_blur(draft, 1.5), rim_of(mask))
    change = (smooth - onward).abs().amax(1, keepdim=True)
    unmarked = (marked < 0.5) & (change < _GOES_ON_UNMARKED)
    other = ((apart & (change < _GOES_ON)) | unmarked | (inside < 0.5))[0, 0].numpy()
    near = (F.max_pool2d(mask, 13, 1, 6) > 0.5)[0, 0].numpy()
    beside = other & near & (mask < 0.5)[0, 0].numpy()
    reached = ndimage.binary_propagation(beside, mask=other & near)
    own = torch.from_numpy(reached).float()[None, None]
    reach = max(1, round(0.5 * sigma))
    own = F.max_pool2d(own, 2 * reach + 1, 1, reach)
    return (wide_blur(own, max(1.0, 0.5 * sigma)) * 1.6 - 0.3).clamp(0, 1)
