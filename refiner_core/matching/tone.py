"""Light and tone of an aligned reference by the draft's own low frequencies, and the rim's membrane.

A broken detail has kept its light: blurred, draft and reference differ by their light alone, unless
something else stands there. So light is a field that changes slowly, read where the two differ
little. What is left on the rim of the region, where the draft is whole, is continued inside as a
membrane would be, so that no edge remains to be seen. At last the low frequencies become the
draft's, the lower the less its shapes are the reference's. Fields are smooth and made at a small
size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.filters import wide_blur
from ..images.masks import mask_sides
from .softness import LEAST_SOFTNESS, softness

_FIELD_SIDE = 256  # px of the longer side at which fields are made
_TONE_SIGMA = 0.04  # of the region's longer side: narrower differences are detail, not light
# From coarse to fine: blur in units of the above, and the difference that is still taken for light.
# A wider tolerance is nearer to the truth on average, but lets ghosts of a wrong detail through.
_SCALES = ((6.0, 0.5), (2.5, 0.15), (1.2, 0.06))
_EXACT = 0.5  # of the blur: how finely trust is told
# The draft's own low frequencies. Pairs: where it shows other shapes, and where it shows the same.
_SHAPES = ((0.02, 0.06), (0.06, 0.16))  # of the region's longer side: bands that are compared
_SAME_SHAPES = (0.35, 0.9)  # correlation of two details, and of one that is damaged only
_LOW_SIGMAS = (0.16, 0.025)  # of the region's longer side: what is wider is the draft's
_LEAST_LOW_SIGMA = 4.0  # px: narrower ones are detail, whatever the size of the region
_TOLERANCES = (0.06, 0.5)  # difference of the low frequencies that is still taken for light
# A soft draft's own frequencies.
_SOFT = (LEAST_SOFTNESS, 0.014)  # softness at which none of them are taken, and all
_SOFT_SHAPES = (0.4, 0.6)  # correlation of a plain draft or another detail, and of a soft one
_BANDS = 4
_FINEST_BAND = 0.008  # of the region's longer side: sigma of the finest band's lower end
_BAND_REACH = 1.5  # times a band's sigma: where the two are compared
_CORRELATED = (-0.2, 0.2)  # of a band with the reference's: none of it is taken, and all
_FLAT = 1e-4  # variance of a band that counts as none
_BLACK = 0.06  # added to both sides of a ratio, which black would make meaningless
_LEAST_TRUST = 1e-3
_NEIGHBOURHOOD = 0.1  # of the region's shorter side, around the region, where light is read too
_RIM = 0.015  # of the region's longer side
_LEAST_RIM = 2  # px of the field
_SAME_SURFACE = 0.12  # difference on the rim that still counts as the same surface
SAME_LIT_SURFACE = 0.06  # likewise, once the light of both is the same
_NEAREST = 1.5  # px of the field: the narrowest of the membrane's kernels


def _mean_near(x: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Weighted mean of the surroundings of each pixel."""
    return wide_blur(x * weight, sigma) / wide_blur(weight, sigma).clamp_min(1e-6)


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """The mask's maximum within `pixels` to all sides."""
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


def field_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which the fields of a picture are made."""
    scale = min(1.0, _FIELD_SIDE / max(height, width))
    return max(4, round(height * scale)), max(4, round(width * scale))


def shrink_to_field(x: Tensor) -> Tensor:
    """`x` averaged down to the size of its fields."""
    size = field_size(*x.shape[-2:])
    return x if size == tuple(x.shape[-2:]) else F.interpolate(x, size, mode="area")


def relight(picture: Tensor, gain: Tensor) -> Tensor:
    """A picture under another light, `gain` in log units."""
    return (picture + _BLACK).mul_(gain.exp()).sub_(_BLACK)


def tone_gain(reference: Tensor, draft: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """The gain, in log units, 1 3 h w, that gives the aligned reference the draft's light.

    Args:
        reference, draft: float 1 3 h w at the size of a field.
        mask: the region, 1 1 h w.
        inside: where the reference shows anything, 1 1 h w.
    """
    longer, shorter = mask_sides(mask)
    sigma = max(1.0, _TONE_SIGMA * longer)
    near = _grown(mask, max(1, round(_NEIGHBOURHOOD * shorter))) * inside
    gain = torch.zeros_like(reference)
    fine_draft = wide_blur(draft, _EXACT * sigma)
    for width, tolerance in _SCALES:
        lit = relight(reference, gain)
        apart = (fine_draft - wide_blur(lit, _EXACT * sigma)).abs().amax(1, keepdim=True)
        trust = (-((apart / tolerance) ** 2)).exp() * near + _LEAST_TRUST * near + 1e-5
        wanted = _mean_near(draft, trust, width * sigma) + _BLACK
        given = _mean_near(lit, trust, width * sigma).clamp_min(0) + _BLACK
        gain = gain + (wanted / given).log()
    return gain


def low_frequency_step(toned: Tensor, draft: Tensor, shown: Tensor) -> Tensor:
    """What the draft's low frequencies have beyond the repair's: its light, shadows and colour.

    How low depends on the draft. Where the shapes of both correlate, only fine detail is damaged,
    and nearly all frequencies are the draft's. The less they do, the more of the draft's own shapes
    would shine through as a ghost.

    Args:
        toned, draft: the repair and the draft, float 1 3 h w at the size of a field.
        shown: how much of a pixel is the repair's, 1 1 h w in [0, 1]; 0 outside of the region.

    Returns:
        what to add to the repair, 1 3 h w.
    """
    longer = mask_sides(shown)[0]
    damaged = float(_ramp(_shape_correlation(toned, draft, shown), _SAME_SHAPES))
    sigma, tolerance = (
        other * (same / other) ** damaged for other, same in (_LOW_SIGMAS, _TOLERANCES)
    )
    low = wide_blur((draft - toned) * shown, max(_LEAST_LOW_SIGMA, sigma * longer))
    return shown * low * (-((low.abs().amax(1, keepdim=True) / tolerance) ** 2)).exp()


def _shape_correlation(a: Tensor, b: Tensor, shown: Tensor) -> Tensor:
    """Correlation of the coarse shapes of two pictures, which light and fine detail change little.

    The smaller one of two bands: an edge in the same place is not yet the same shape.
    """
    longer = mask_sides(shown)[0]
    flat = _FLAT * shown.sum()
    found: list[Tensor] = []
    for narrow, wide in _SHAPES:
        x, y = (
            shown * (_mean_near(p, shown, narrow * longer) - _mean_near(p, shown, wide * longer))
            for p in (a, b)
        )
        found.append((x * y).sum() / ((x.square().sum() + flat) * (y.square().sum() + flat)).sqrt())
    return torch.stack(found).min()


def soft_draft_step(lit: Tensor, draft: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """What the low frequencies of a soft draft have beyond the reference's.

    What is soft is not wrong: below its resolution such a draft has its light, its shadows and the
    place of everything. The difference is taken band by band from the coarsest, as long as the bands
    of both correlate: beside a badly aligned edge the draft's would leave a halo. Where the draft's
    band is weaker than the reference's, it is filled up with the latter.

    Args:
        lit, draft: the aligned reference under the draft's light and the draft, float 1 3 h w.
        mask: the region, 1 1 h w.
        inside: where the reference shows anything, 1 1 h w.

    Returns:
        what to add to the lit reference, 1 3 h w; 0 for a draft that is not soft, or shows other
        shapes or none.
    """
    step = torch.zeros_like(lit)
    counted = mask * inside
    side = math.sqrt(max(1.0, float(counted.sum())))
    soft = softness(draft, lit, counted) / side
    if soft == 0:
        return step
    finest = max(1.0, _FINEST_BAND * mask_sides(mask)[0])
    sigmas = [finest * 2**band for band in range(_BANDS + 1)]
    drafts, references = ([wide_blur(x, sigma) for sigma in sigmas] for x in (draft, lit))
    share = torch.ones_like(mask)
    for band in reversed(range(_BANDS)):
        own = drafts[band] - drafts[band + 1]
        other = references[band] - references[band + 1]
        correlation, strength = _compared(own, other, inside, _BAND_REACH * sigmas[band + 1])
        share = torch.minimum(share, _ramp(correlation, _CORRELATED))
        if band == _BANDS - 1:
            step = share * (drafts[_BANDS] - references[_BANDS])
        step = step + share * (own - strength * other)
    soft_only = _ramp(_shape_correlation(lit, draft, counted), _SOFT_SHAPES)
    return inside * step * _ramp(torch.tensor(soft), _SOFT) * soft_only


def _compared(own: Tensor, other: Tensor, inside: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Local correlation of two bands, and the strength of the first against the second, at most 1."""

    def mean(x: Tensor) -> Tensor:
        return _mean_near(x.sum(1, keepdim=True), inside, sigma)

    shared = mean(own * other) + _FLAT
    power, other_power = (mean(x * x).clamp_min(0) + _FLAT for x in (own, other))
    return shared / (power * other_power).sqrt(), (power / other_power).sqrt().clamp(0, 1)


def _ramp(x: Tensor, ends: tuple[float, float]) -> Tensor:
    """0 up to the first end, 1 from the second, linear between."""
    return ((x - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)


def rim_of(mask: Tensor) -> Tensor:
    """A band just outside of a region, 1 1 h w, at the size of a field."""
    width = max(_LEAST_RIM, round(_RIM * mask_sides(mask)[0]))
    return (_grown(mask, width) - mask).clamp(0, 1)


def membrane(difference: Tensor, rim: Tensor, same: float = _SAME_SURFACE) -> Tensor:
    """A difference known on a rim, continued smoothly everywhere, 1 C h w.

    Where the difference is large another surface begins, which has little say.

    Args:
        difference: 1 C h w.
        rim: 1 1 h w, above 0 where the difference is known. With an empty rim the result is 0.
        same: difference that still counts as the same surface, in units of full scale.
    """
    large = difference.abs().amax(1, keepdim=True) / same
    return continued(difference, rim * ((-(large**2)).exp() + _LEAST_TRUST))


def continued(known: Tensor, weight: Tensor) -> Tensor:
    """Values 1 C h w, known where `weight` (1 1 h w) is above 0, continued everywhere.

    Each pixel takes the mean of those known, weighted by the inverse square of their distance (a
    sum of Gaussians).
    """
    total, norm = torch.zeros_like(known), torch.zeros_like(weight)
    sigma = _NEAREST
    for _ in range(math.ceil(math.log2(max(weight.shape[-2:])))):
        share = 1 / sigma**2
        total += share * wide_blur(known * weight, sigma)
        norm += share * wide_blur(weight, sigma)
        sigma *= 2
    return total / norm.clamp_min(1e-9)


def close_rim(result: Tensor, draft: Tensor, mask: Tensor) -> Tensor:
    """A repaired crop without its step against the draft around the region.

    Args:
        result, draft: float 1 3 h w in [0, 1].
        mask: the region, 1 1 h w.
    """
    region = (shrink_to_field(mask) > 0).float()
    step = membrane(shrink_to_field(draft - result), rim_of(region))
    size = result.shape[-2:]
    return (result + F.interpolate(step, size, mode="bilinear", align_corners=False)).clamp(0, 1)


def keep_low_frequencies(result: Tensor, draft: Tensor, mask: Tensor) -> Tensor:
    """A repaired crop with the draft's low frequencies, as `low_frequency_step` finds them.

    Args:
        result, draft: float 1 3 h w in [0, 1].
        mask: the region, 1 1 h w in [0, 1].
    """
    toned, own, shown = (shrink_to_field(x) for x in (result, draft, mask))
    step = low_frequency_step(toned, own, shown)
    step = F.interpolate(step, result.shape[-2:], mode="bilinear", align_corners=False)
    return (result + step).clamp(0, 1)


def keep_light(result: Tensor, transferred: Tensor, mask: Tensor) -> Tensor:
    """A repaired crop with the low frequencies of the transferred reference. Those are in the draft's
    light already, so that a small model can only make them worse.

    Args:
        result, transferred: float 1 3 h w in [0, 1].
        mask: the region, 1 1 h w in [0, 1].
    """
    difference, shown = (shrink_to_field(x) for x in (transferred - result, mask))
    step = shown * _mean_near(difference, shown, max(1.0, _TONE_SIGMA * mask_sides(shown)[0]))
    step = F.interpolate(step, result.shape[-2:], mode="bilinear", align_corners=False)
    return (result + step).clamp(0, 1)
