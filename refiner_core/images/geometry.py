"""Boxes, extents and resolutions: whole numbers only, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MAX_SIDE = 16384  # longest side of a picture that is supported, px


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
    """A half-open rectangle `[x0, x1) x [y0, y1)` in pixels; may reach outside the image."""

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
        return (
            self.x0 <= other.x0 and self.y0 <= other.y0
            and other.x1 <= self.x1 and other.y1 <= self.y1
        )  # fmt: skip

    def intersection(self, other: Box) -> Box:
        return Box(
            max(self.x0, other.x0), max(self.y0, other.y0),
            min(self.x1, other.x1), min(self.y1, other.y1),
        )  # fmt: skip

    def moved(self, dx: int, dy: int) -> Box:
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)


class CropPlan(NamedTuple):
    """Where a crop comes from and how large the model sees it.

    `box` has exactly the aspect of `target` (both are multiples of the same small rectangle) and
    may reach outside `image`, there the picture is continued by its edge pixels. The scale
    `target / box` is one number for x and y.
    """

    image: Extent
    region: Box
    box: Box
    target: Extent

    @property
    def scale(self) -> float:
        return self.target.width / self.box.extent.width

    @property
    def inside(self) -> Box:
        """The part of the box that lies in the image."""
        return self.box.intersection(Box(0, 0, *self.image))

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels to add left, top, right, bottom."""
        i = self.inside
        return (
            i.x0 - self.box.x0, i.y0 - self.box.y0,
            self.box.x1 - i.x1, self.box.y1 - i.y1,
        )  # fmt: skip


class Buckets(NamedTuple):
    """The resolutions a model works at, for its own area, and the multiple its codec needs."""

    sizes: tuple[Extent, ...]
    multiple: int

    def scaled(self, megapixels: float | None) -> tuple[Extent, ...]:
        """The sizes at about `megapixels` (10^6 pixels); None keeps them.

        Raises:
            ValueError: megapixels not in (0, 16].
        """
        if megapixels is None:
            return self.sizes
        if not 0 < megapixels <= 16:
            raise ValueError(f"megapixels must be over 0 and at most 16, got {megapixels}.")
        return tuple(dict.fromkeys(self._resized(s, megapixels * 1e6) for s in self.sizes))

    def _resized(self, size: Extent, area: float) -> Extent:
        factor = math.sqrt(area / size.area)
        w, h = (max(self.multiple, round(v * factor / self.multiple) * self.multiple) for v in size)
        return Extent(w, h)


def _mirror(sizes: Sequence[tuple[int, int]]) -> tuple[Extent, ...]:
    both = [Extent(*s) for s in sizes] + [Extent(h, w) for w, h in sizes]
    return tuple(dict.fromkeys(both))


# FLUX.1-Kontext's training resolutions, about one megapixel; sides are multiples of 16, so that
# the VAE's factor of 8 and the 2x2 patches both come out even.
KONTEXT_BUCKETS = Buckets(
    _mirror(
        [(672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328),
         (832, 1248), (880, 1184), (944, 1104), (1024, 1024)]
    ),
    16,
)  # fmt: skip
# Qwen-Image-Edit's: one megapixel with sides that are multiples of 32.
QWEN_BUCKETS = Buckets(
    _mirror(
        [(672, 1568), (704, 1504), (736, 1440), (768, 1376), (800, 1312), (832, 1248),
         (864, 1216), (896, 1184), (928, 1120), (960, 1088), (992, 1056), (1024, 1024)]
    ),
    32,
)  # fmt: skip
# The nano's, 16384 pixels; its codec's factor of 4 and the patches make it 8.
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
    """Start of an interval of `length` around `center`: shifted into `[0, limit)` if it fits there,
    else centred over it as far as the region stays covered.
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
    """Plan the crop around `region`: context, then a bucket's exact aspect, inside the image.

    The box grows around the region by the factor `context`, is then grown (never stretched,
    never cut) to the aspect of the nearest bucket and shifted to stay inside the image. If it
    does not fit it is made smaller, down to the region itself; only when even that does not fit
    does it reach outside, where the edge pixels are repeated.

    Args:
        image: size of the picture.
        region: tight box of what is repaired, inside the image.
        buckets: the model's resolutions.
        context: how much larger than the region the crop is, at least 1.
        megapixels: area the model works at; None = the buckets' own.

    Raises:
        ValueError: region empty or outside the image, or context below 1 or above 100.
    """
    return min(_candidates(image, region, buckets, context, megapixels), key=lambda c: c[0])[1]


def plan_pair(
    first: tuple[Extent, Box],
    second: tuple[Extent, Box],
    buckets: Buckets,
    context: tuple[float, float] = (1.5, 1.5),
    megapixels: float | None = None,
) -> tuple[CropPlan, CropPlan]:
    """Plan two crops that a model wants at one common size: the bucket that suits both best.

    Args:
        first, second: size of the picture and tight box of what matters in it.
        buckets, context, megapixels: as for `plan_crop`; one context each.

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


def _candidates(
    image: Extent, region: Box, buckets: Buckets, context: float, megapixels: float | None
) -> list[tuple[tuple[float, ...], CropPlan]]:
    """The crop at each bucket with its cost, least is best."""
    if min(region.extent) < 1 or not Box(0, 0, *image).contains(region):
        raise ValueError(
            f"The region {tuple(region)} is empty or reaches outside the {image} image."
        )
    if not 1 <= context <= 100:
        raise ValueError(f"context must be between 1 and 100 (1 = no surroundings), got {context}.")
    size = region.extent
    want = Extent(math.ceil(size.width * context), math.ceil(size.height * context))
    found: list[tuple[tuple[float, ...], CropPlan]] = []
    for target in buckets.scaled(megapixels):
        extent = _fit(target, want)
        if extent.width > image.width or extent.height > image.height:
            # Too large: as large as the image allows, but never smaller than the region.
            unit = _unit(target)
            room = max(1, min(image.width // unit.width, image.height // unit.height))
            smallest = _fit(target, size)
            extent = max(Extent(unit.width * room, unit.height * room), smallest)
        x0 = _place(region.center[0], extent.width, (region.x0, region.x1), image.width)
        y0 = _place(region.center[1], extent.height, (region.y0, region.y1), image.height)
        plan = CropPlan(image, region, Box(x0, y0, x0 + extent.width, y0 + extent.height), target)
        outside = 1 - plan.inside.extent.area / extent.area
        # Least padding first, then the least context lost (in tenths, as sides come in steps), then
        # the area nearest to what was asked for, then aspect.
        lost = 1 - min(1, extent.width / want.width, extent.height / want.height)
        excess = extent.area / want.area
        skew = abs(math.log(target.aspect / want.aspect))
        steps = (math.ceil(1000 * outside) / 1000, math.ceil(10 * lost) / 10)
        cost = (*steps, max(excess, 1 / excess), skew)
        found.append((cost, plan))
    return found
