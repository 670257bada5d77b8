"""Boxes, extents and resolutions, in whole pixels and without tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

MAX_SIDE = 16384  # longest side of a picture that is supported, px
_MAX_MEGAPIXELS = 16  # of the size at which a model works
_NATIVE_CONTEXT = 16  # px around a region in a crop for tiles
_LARGEST_NATIVE = 2048  # px a side of a crop for tiles
_NATIVE_STEP = 8  # px, of the sides of such a crop
_MAX_CONTEXT = 100  # crop size over region size

# How a repaired crop is blended in. "membrane" corrects the crop before it is stitched, which then
# goes as with "feather".
Blend = Literal["feather", "multiband", "membrane"]


class Extent(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def aspect(self) -> float:
        return self.width / self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Box(NamedTuple):
    """A half-open rectangle `[x0, x1) x [y0, y1)` in pixels, which may reach outside the image."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def extent(self) -> Extent:
        return Extent(self.x1 - self.x0, self.y1 - self.y0)

    @property
    def center(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def contains(self, other: Box) -> bool:
        return self.intersection(other) == other

    def intersection(self, other: Box) -> Box:
        starts = max(self.x0, other.x0), max(self.y0, other.y0)
        return Box(*starts, min(self.x1, other.x1), min(self.y1, other.y1))

    def grown(self, x: int, y: int, image: Extent) -> Box:
        """The box with every side moved outwards, as far as the image goes."""
        grown = Box(self.x0 - x, self.y0 - y, self.x1 + x, self.y1 + y)
        return grown.intersection(Box(0, 0, *image))

    def moved(self, dx: int, dy: int) -> Box:
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)


class CropPlan(NamedTuple):
    """Where a crop comes from and at which size the model sees it.

    The box has exactly the aspect of the target (both are multiples of the same small rectangle),
    so the scale `target / box` is the same in x and y.
    """

    image: Extent  # size of the picture
    region: Box  # tight around what is repaired
    box: Box  # what is cut out; outside the image its edge pixels are repeated
    target: Extent  # size at which the model sees the box

    @property
    def scale(self) -> float:
        return self.target.width / self.box.extent.width

    @property
    def inside(self) -> Box:
        """The part of the box that is inside the image."""
        return self.box.intersection(Box(0, 0, *self.image))

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels to add at the left, top, right and bottom."""
        i, b = self.inside, self.box
        return i.x0 - b.x0, i.y0 - b.y0, b.x1 - i.x1, b.y1 - i.y1


class Buckets(NamedTuple):
    """The resolutions a model was trained at."""

    sizes: tuple[Extent, ...]  # all of about the same area
    multiple: int  # of pixels, that its codec and patches need of every side

    def scaled(self, megapixels: float | None) -> tuple[Extent, ...]:
        """The sizes scaled to about `megapixels` (10^6 pixels); None keeps them.

        Raises:
            ValueError: `megapixels` is not above 0 and at most 16.
        """
        if megapixels is None:
            return self.sizes
        if not 0 < megapixels <= _MAX_MEGAPIXELS:
            raise ValueError(
                f"megapixels must be above 0 and at most {_MAX_MEGAPIXELS}, got {megapixels}."
            )
        return tuple(dict.fromkeys(self._resized(s, megapixels * 1e6) for s in self.sizes))

    def _resized(self, size: Extent, area: float) -> Extent:
        factor = math.sqrt(area / size.area)
        w, h = (max(self.multiple, round(v * factor / self.multiple) * self.multiple) for v in size)
        return Extent(w, h)


def _mirror(sizes: Sequence[tuple[int, int]]) -> tuple[Extent, ...]:
    both = [Extent(*s) for s in sizes] + [Extent(h, w) for w, h in sizes]
    return tuple(dict.fromkeys(both))


# FLUX.1-Kontext's training resolutions have about one megapixel. Their sides are multiples of 16,
# so that the VAE's factor of 8 and the 2x2 patches both divide them.
_KONTEXT_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
)
KONTEXT_BUCKETS = Buckets(_mirror(_KONTEXT_SIZES), 16)
# Qwen-Image-Edit's have one megapixel and sides that are multiples of 32.
_QWEN_SIZES = (
    (672, 1568),
    (704, 1504),
    (736, 1440),
    (768, 1376),
    (800, 1312),
    (832, 1248),
    (864, 1216),
    (896, 1184),
    (928, 1120),
    (960, 1088),
    (992, 1056),
    (1024, 1024),
)
QWEN_BUCKETS = Buckets(_mirror(_QWEN_SIZES), 32)
# Nano's have about 16384 pixels; its codec's factor of 4 and the patches make multiples of 8.
NANO_BUCKETS = Buckets(_mirror([(128, 128), (144, 112), (176, 96), (208, 80), (256, 64)]), 8)


def _unit(size: Extent) -> Extent:
    """The smallest rectangle of whole pixels with the aspect of `size`."""
    g = math.gcd(size.width, size.height)
    return Extent(size.width // g, size.height // g)


def _fit(size: Extent, need: Extent) -> Extent:
    """The smallest multiple of `size`'s unit that covers `need`."""
    unit = _unit(size)
    k = max(1, math.ceil(need.width / unit.width), math.ceil(need.height / unit.height))
    return Extent(unit.width * k, unit.height * k)


def _place(center: float, length: int, region: tuple[int, int], limit: int) -> int:
    """Start of an interval of `length` around `center`.

    It is shifted into `[0, limit)` if it fits there, else centered as far as it covers the region.
    """
    start = round(center - length / 2)
    if length <= limit:
        return min(max(start, 0), limit - length)
    start = min(max(start, limit - length), 0)
    return min(max(start, region[1] - length), region[0])


def plan_crop(
    image: Extent,
    region: Box,
    buckets: Buckets,
    context: float = 1.5,
    megapixels: float | None = None,
) -> CropPlan:
    """Plan the crop around a region: with context, in a bucket's exact aspect, inside the image.

    The box is the region enlarged by the factor `context`, then enlarged to the aspect of the
    nearest bucket and shifted to stay inside the image. It is never stretched, and the region is
    never cut. If the box does not fit into the image it is made smaller, down to the region. Only
    if that does not fit either does it reach outside, where the edge pixels are repeated.

    Args:
        image: size of the picture.
        region: tight box around what is repaired, inside the image.
        buckets: the model's resolutions.
        context: crop size over region size, from 1 to 100.
        megapixels: area of the crop at the model's size; None takes the buckets' own.

    Raises:
        ValueError: the region is empty or outside the image, or `context` is out of range.
    """
    return min(_candidates(image, region, buckets, context, megapixels), key=lambda c: c[0])[1]


def plan_pair(
    first: tuple[Extent, Box],
    second: tuple[Extent, Box],
    buckets: Buckets,
    context: tuple[float, float] = (1.5, 1.5),
    megapixels: float | None = None,
) -> tuple[CropPlan, CropPlan]:
    """Plan two crops for a model that needs both at the same size, in the bucket that suits both best.

    Args:
        first, second: size of the picture and tight box of the region.
        buckets, context, megapixels: as for `plan_crop`, with one context per crop.

    Raises:
        ValueError: as `plan_crop`.
    """
    a = _candidates(*first, buckets, context[0], megapixels)
    b = _candidates(*second, buckets, context[1], megapixels)
    joint = [
        (tuple(x + y for x, y in zip(ca, cb, strict=True)), (pa, pb))
        for (ca, pa), (cb, pb) in zip(a, b, strict=True)
    ]
    return min(joint, key=lambda c: c[0])[1]


def plan_native_crop(
    plan: CropPlan, shown: Box, side: int, megapixels: float | None = None
) -> CropPlan:
    """A crop at the draft's own resolution, for a model that works on tiles.

    Args:
        plan: the region's crop for a model of one size.
        shown: what has to be in it, in px of the draft.
        side: of a tile, in px.
        megapixels: largest area of the crop at the model's size. Above it, or above 2048 px a side
            without it, the crop is shrunk by a whole factor.
    """
    image = plan.image
    wanted = [max(side, n + 2 * _NATIVE_CONTEXT) for n in shown.extent]
    factor = max(1, math.ceil(max(wanted) / _LARGEST_NATIVE))
    if megapixels is not None:
        factor = max(1, math.ceil(math.sqrt(wanted[0] * wanted[1] / (megapixels * 1e6))))
    step = _NATIVE_STEP * factor
    w, h = (-(-n // step) * step for n in wanted)
    x0 = _place(shown.center[0], w, (shown.x0, shown.x1), image.width)
    y0 = _place(shown.center[1], h, (shown.y0, shown.y1), image.height)
    box = Box(x0, y0, x0 + w, y0 + h)
    return CropPlan(image, plan.region, box, Extent(w // factor, h // factor))


def _candidates(
    image: Extent, region: Box, buckets: Buckets, context: float, megapixels: float | None
) -> list[tuple[tuple[float, ...], CropPlan]]:
    """The crop at each bucket with its cost; the lowest cost is the best."""
    if min(region.extent) < 1 or not Box(0, 0, *image).contains(region):
        raise ValueError(
            f"The region {tuple(region)} is empty or reaches outside the {image} image."
        )
    if not 1 <= context <= _MAX_CONTEXT:
        raise ValueError(
            f"context must be from 1 (no surroundings) to {_MAX_CONTEXT}, got {context}."
        )
    size = region.extent
    want = Extent(math.ceil(size.width * context), math.ceil(size.height * context))
    candidates: list[tuple[tuple[float, ...], CropPlan]] = []
    for target in buckets.scaled(megapixels):
        extent = _shrunk_to_fit(target, _fit(target, want), size, image)
        x0 = _place(region.center[0], extent.width, (region.x0, region.x1), image.width)
        y0 = _place(region.center[1], extent.height, (region.y0, region.y1), image.height)
        plan = CropPlan(image, region, Box(x0, y0, x0 + extent.width, y0 + extent.height), target)
        candidates.append((_cost(plan, want), plan))
    return candidates


def _shrunk_to_fit(target: Extent, extent: Extent, region: Extent, image: Extent) -> Extent:
    """A crop that is too large becomes as large as the image allows, but not smaller than the region."""
    if extent.width <= image.width and extent.height <= image.height:
        return extent
    unit = _unit(target)
    room = max(1, min(image.width // unit.width, image.height // unit.height))
    return max(Extent(unit.width * room, unit.height * room), _fit(target, region))


def _cost(plan: CropPlan, want: Extent) -> tuple[float, float, float, float]:
    """Least padding first, then least context lost, then the nearest area, then the nearest aspect."""
    extent = plan.box.extent
    outside = 1 - plan.inside.extent.area / extent.area
    lost = 1 - min(1, extent.width / want.width, extent.height / want.height)
    excess = extent.area / want.area
    skew = abs(math.log(plan.target.aspect / want.aspect))
    # Rounded, as the sides of crops come in steps.
    rounded = math.ceil(1000 * outside) / 1000, math.ceil(10 * lost) / 10
    return *rounded, max(excess, 1 / excess), skew
