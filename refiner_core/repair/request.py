"""The request of a repair: pictures, masks, boxes and settings, checked and split into regions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import Tensor

from ..images.boxes import BoxPair, box_regions, reference_box_mask
from ..images.geometry import MAX_SIDE, Blend, Box, Buckets, Extent, plan_crop
from ..images.masks import Region, find_regions, whole_region
from ..recipes.recipe import Recipe

MAX_CANDIDATES = 64
_SMALLEST_REFERENCE = 8  # px: less than one token of any recipe
_LEAST_SCALE_UNMARKED = 0.5

# What of a repaired crop is pasted: the region, or all of the crop that lies in the picture.
Paste = Literal["region", "crop"]


@dataclass(frozen=True)
class RefineOptions:
    """Everything a user may set."""

    prompt: str | None = None
    """Full prompt; None: the recipe's template with `subject`."""
    subject: str | None = None
    """What the template calls the detail; None: "detail"."""
    seed: int = 0
    """Of the noise, 0 to 2^64 - 1; candidates take the numbers that follow."""
    steps: int | None = None
    """Sampling steps, 1 to 1000; None: the recipe's."""
    guidance: float | None = None
    """Guidance embedding, or CFG where the recipe has that instead, 0 to 100; None: the recipe's."""
    context: float | None = None
    """Side of the crop over side of the region, 1 or more; None: the recipe's."""
    megapixels: float | None = None
    """Area that the model works at, in 10^6 px; None: the recipe's."""
    grow: float = 0
    """How far the mask is grown, in px, -1024 to 1024; below 0 it shrinks."""
    feather: float = 6
    """Width of the blend inside the mask's edge, in px, 0 to 1024."""
    model_mask: float = 0.0
    """How firmly sampling is held to the draft outside the region, 0 (free) to 1."""
    blend: Blend | None = None
    """How the repaired crop is blended in; None: the recipe's."""
    paste: Paste = "region"
    """What of the repaired crop is blended in, unless the request has a paste mask."""
    drift: bool | None = None
    """Whether shift and zoom are taken out; None: the recipe's."""
    color_match: float | None = None
    """How much of the colour cast is taken out, 0 to 1; None: the recipe's."""
    align: bool | None = None
    """Whether the reference is first brought into the draft's pose and light. None: the recipe's,
    and a recipe with native detail leaves the draft as it is where the detail is not found; True
    repairs it even then."""
    candidates: int = 1
    """Number of candidates of which the best is returned, 1 to 64."""
    keep: int = 1
    """Number of candidates that run to the end, 1 to `candidates`."""
    prune_at: int | None = None
    """Steps after which the worse half of the candidates is dropped, 0 to 1000; 0: never; None: a
    quarter of the steps."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("guidance", 0, 100),
            ("feather", 0, 1024),
            ("grow", -1024, 1024),
            ("model_mask", 0, 1),
            ("color_match", 0, 1),
            ("candidates", 1, MAX_CANDIDATES),
            ("prune_at", 0, 1000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise ValueError(f"steps must be between 1 and 1000, got {self.steps}.")
        if not 1 <= self.keep <= self.candidates:
            raise ValueError(
                f"keep must be from 1 to the number of candidates ({self.candidates}), got {self.keep}."
            )
        for name, choices in (("blend", get_args(Blend)), ("paste", get_args(Paste))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")

    def aligns(self, recipe: Recipe) -> bool:
        """Whether references are brought into the draft's pose and light."""
        return recipe.align if self.align is None else self.align


@dataclass(frozen=True)
class RefineRequest:
    """What to repair.

    `draft` N 3 H W in any stored type, N drafts; `references` up to three groups, each M 3 h w (all
    groups of the same M), none where the recipe needs none; `mask` None (everything; see
    `unmarked_size`) or K 1 H W; `reference_masks` one per group, None = the whole reference. N, M and
    K must be equal or 1.
    With `boxes` each pair is a region of its own, repaired from its own box of the first reference;
    the masks then only narrow the boxes down. `paste_mask` None or K 1 H W says what of the repaired
    crops is pasted, in place of the regions.
    """

    draft: Tensor
    references: tuple[Tensor, ...]
    mask: Tensor | None = None
    reference_masks: tuple[Tensor | None, ...] = ()
    options: RefineOptions = field(default_factory=RefineOptions)
    boxes: tuple[BoxPair, ...] = ()
    notes: tuple[str, ...] = ()
    """What was changed while the pictures and masks were read, for the report."""
    paste_mask: Tensor | None = None
    marked: Box | None = None
    """Around all that the masks mark, where that is known: the rest of them need not be read."""


def check(request: RefineRequest) -> int:
    """How many pictures the request makes.

    Raises:
        ValueError: shapes, sizes or numbers that do not go together, with the values and the fix.
    """
    counts = _check_shapes(request)
    n = max(counts.values())
    if any(c not in (1, n) for c in counts.values()):
        listed = ", ".join(f"{c} {name}" for name, c in counts.items())
        raise ValueError(f"Batches do not match: {listed}. Give one of each or equally many.")
    return n


def _check_shapes(request: RefineRequest) -> dict[str, int]:
    """How many there are of everything that comes in batches."""
    draft, refs = request.draft, request.references
    _check_draft(draft)
    if len(refs) > 3:
        raise ValueError(f"At most three references are supported, got {len(refs)}.")
    candidates = request.options.candidates
    if not refs and candidates > 1:
        raise ValueError(
            f"{candidates} candidates are compared with the reference: give one, or set candidates "
            "to 1."
        )
    counts = {"drafts": len(draft)}
    for i, reference in enumerate(refs):
        _check_reference(reference)
        counts["references" if i == 0 else f"references {i + 1}"] = len(reference)
    if len(request.reference_masks) > len(refs):
        raise ValueError(
            f"{len(request.reference_masks)} reference masks for {len(refs)} references: give one "
            "mask (or None) per reference."
        )
    for i, m in enumerate(request.reference_masks):
        if m is not None:
            counts[f"reference masks {i + 1}"] = len(m)
            _same_size(m, refs[i], "reference mask", "reference")
    if request.mask is not None:
        counts["masks"] = len(request.mask)
        _same_size(request.mask, draft, "mask", "draft")
    if request.paste_mask is not None:
        counts["paste masks"] = len(request.paste_mask)
        _check_paste_mask(request, request.paste_mask)
    return counts


def _check_paste_mask(request: RefineRequest, mask: Tensor) -> None:
    _same_size(mask, request.draft, "paste mask", "draft")
    if request.options.paste != "region":
        raise ValueError(
            f"paste is {request.options.paste!r}, but there is a paste mask, too. Set paste to "
            "'region', or leave the paste mask out."
        )


def _check_draft(draft: Tensor) -> None:
    if draft.ndim != 4 or draft.shape[1] != 3 or min(draft.shape) < 1:
        raise ValueError(
            f"The draft needs 3 channels and at least one pixel, got the shape {tuple(draft.shape)}."
        )
    if max(draft.shape[-2:]) > MAX_SIDE:
        raise ValueError(
            f"The draft is {draft.shape[-1]}x{draft.shape[-2]}; at most {MAX_SIDE} px are supported."
        )


def _check_reference(reference: Tensor) -> None:
    if reference.ndim != 4 or reference.shape[1] != 3:
        raise ValueError(f"A reference needs 3 channels, got the shape {tuple(reference.shape)}.")
    if min(reference.shape[-2:]) < _SMALLEST_REFERENCE:
        raise ValueError(
            f"The reference is {reference.shape[-1]}x{reference.shape[-2]} px; at least "
            f"{_SMALLEST_REFERENCE} px on a side are needed."
        )


def _same_size(mask: Tensor, image: Tensor, mask_name: str, image_name: str) -> None:
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(
            f"The {mask_name} needs one channel and the size of the {image_name}, got the shape "
            f"{tuple(mask.shape)}."
        )
    if mask.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"The {mask_name} is {mask.shape[-1]}x{mask.shape[-2]} but the {image_name} is "
            f"{image.shape[-1]}x{image.shape[-2]}. Resize the {mask_name} to the size of the "
            f"{image_name}."
        )


def pick(batch: Tensor, i: int) -> Tensor:
    """Picture `i` of a batch, or its only one."""
    return batch[i : i + 1] if len(batch) > 1 else batch


@dataclass(frozen=True)
class RegionTask:
    """One region of one draft, and what it is repaired from."""

    region: Region
    """Where, in the draft."""
    references: tuple[Tensor, ...]
    """At most three, each 1 3 h w in any stored type."""
    reference_masks: tuple[Tensor | None, ...]
    """The detail in each reference, 1 1 h w; None = the whole reference."""
    paste: Paste | Tensor = "region"
    """What of the repaired crop is pasted; a tensor is a mask of the draft, 1 1 H W."""
    found: tuple[dict[str, Any] | None, ...] = ()
    """Where the detail of an unmarked reference was found, for JSON; its mask is then the box there."""


def region_tasks(
    request: RefineRequest, i: int, size: Extent, buckets: Buckets
) -> list[RegionTask]:
    """What is to be repaired in picture `i`, in order.

    Args:
        size: of the picture.
        buckets: the sizes that the model works at.

    Raises:
        ValueError: nothing is marked and the picture is too large to be repaired as a whole
            (`unmarked_size`), or a mask or box marks nothing.
    """
    references = tuple(pick(r, i) for r in request.references)
    masks = [None if m is None else pick(m, i) for m in request.reference_masks]
    masks += [None] * (len(references) - len(masks))
    mask = None if request.mask is None else pick(request.mask, i)
    grow = request.options.grow
    paste = request.options.paste if request.paste_mask is None else pick(request.paste_mask, i)
    if not request.boxes:
        if mask is None:
            regions = [_unmarked_region(request, size, buckets)]
        else:
            regions = find_regions(mask, grow_pixels=grow, within=request.marked)
        return [RegionTask(region, references, tuple(masks), paste) for region in regions]
    tasks: list[RegionTask] = []
    regions = box_regions(request.boxes, size, mask, grow_pixels=grow)
    for region, pair in zip(regions, request.boxes, strict=True):
        own = masks
        if pair.reference is not None and references:
            extent = Extent(references[0].shape[-1], references[0].shape[-2])
            own = [reference_box_mask(pair.reference, extent, masks[0]), *masks[1:]]
        tasks.append(RegionTask(region, references, tuple(own), paste))
    return tasks


def single_region(mask: Tensor | None, size: Extent, grow: float = 0) -> Region:
    """Everything that a mask 1 1 H W marks as one region; without a mask, the whole picture."""
    if mask is None:
        return whole_region(size)
    return find_regions(mask, grow_pixels=grow, split=False)[0]


def unite_masks(request: RefineRequest) -> RefineRequest:
    """Several masks of one draft, as detectors make one for each object, become one mask.

    Where drafts or references come in a batch, too, each mask belongs to one of them and stays.
    """
    given = [request.draft, *request.references, *request.reference_masks]
    if any(batch is not None and len(batch) > 1 for batch in given):
        return request
    mask, paste_mask = (
        batch.amax(0, keepdim=True) if batch is not None and len(batch) > 1 else batch
        for batch in (request.mask, request.paste_mask)
    )
    return replace(request, mask=mask, paste_mask=paste_mask)


def unmarked_size(request: RefineRequest, size: Extent, buckets: Buckets) -> Extent | None:
    """The size at which the model would see a picture of `size` in which nothing is marked, if that
    is less than half of it, so that all of its detail would come back blurred; else None.
    """
    if request.mask is not None or request.boxes:
        return None
    plan = plan_crop(size, Box(0, 0, *size), buckets, 1.0, request.options.megapixels)
    return plan.target if plan.scale < _LEAST_SCALE_UNMARKED else None


def _unmarked_region(request: RefineRequest, size: Extent, buckets: Buckets) -> Region:
    target = unmarked_size(request, size, buckets)
    if target is not None:
        raise ValueError(
            f"Nothing is marked in the draft of {size}, so all of it would be repaired, at only "
            f"{target}, and come back blurred. Mark the detail with a mask or a box. To repair the whole "
            "picture, scale it down first, or raise megapixels."
        )
    return whole_region(size)


def outside_boxes(request: RefineRequest, size: Extent) -> int:
    """Pixels of the masks that no box covers: they are not repaired, which the user may not expect."""
    assert request.mask is not None
    uncovered = request.mask > 0
    for pair in request.boxes:
        box = pair.draft.pixels(size)
        inside = pair.draft.cover(size, box) > 0
        uncovered[..., box.y0 : box.y1, box.x0 : box.x1] &= ~inside
    return int(uncovered.sum())
