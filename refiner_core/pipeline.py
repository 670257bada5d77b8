"""The whole repair: plan, encode, sample, decode, register, match colours, stitch.

`refine` is the one entry; it runs every region of every picture through an `Engine` and reports
what it did. Everything outside the regions keeps its exact bits.
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .boxes import BoxPair, box_regions, reference_box_mask
from .color import measure_gain, ring_error
from .crop import Blend, crop, crop_mask, ring, stitch_into, uncrop
from .geometry import CropPlan, Extent
from .images import MAX_SIDE, check_finite
from .interfaces import Engine, Progress, SamplingJob, Stage
from .masks import Region, find_regions, whole_region
from .registration import grid, register, warp
from .scoring.interface import Scorer
from .scoring.structural import StructuralScorer
from .search import Candidate, rounds, search
from .views import (
    lost,
    ordered_pictures,
    plan_crops,
    prefill,
    reference_frame,
    reference_view,
    spread_share,
)

_DRIFT_LEAST = 0.5  # px at the model's size: less is not worth a resampling
_DRIFT_MOST = 0.06  # of the crop's side: more is not drift but another picture
_ZOOM_MOST = 0.05
_RING_LEAST = 0.05  # share of the crop outside the region below which drift is not measured
MAX_CANDIDATES = 64
# Structural distance of draft and reference. On 35 development scenes the search gained the same
# with any limit from 0.4 to 0.5, and less below.
_CONTRADICTION = 0.45
_SMALLEST_REFERENCE = 8  # px: less than one token of any recipe


@dataclass(frozen=True)
class RefineOptions:
    """Everything a user may set; None takes the recipe's value.

    `prompt` full text, else the recipe's template with `subject`; `seed`; `steps`; `guidance`;
    `context` crop size over region size; `megapixels` the model works at; `grow` mask growth in
    px; `feather` blend width inside the mask's edge in px; `fill_holes`; `smallest` piece of mask
    in px; `split` False repairs all pieces in one crop; `model_mask` 0..1, how firmly sampling is
    held to the draft outside the region (0 = free); `blend`; `drift` correct shift and zoom;
    `color_match` strength 0..1; `align` the reference first; `candidates` to choose the best of,
    halved every `prune_at` steps (None = a quarter of the steps, 0 = never) down to `keep`.
    """

    prompt: str | None = None
    subject: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    context: float | None = None
    megapixels: float | None = None
    grow: float = 0
    feather: float = 6
    fill_holes: bool = True
    smallest: int = 1
    split: bool = True
    model_mask: float = 0.0
    blend: Blend = "feather"
    drift: bool | None = None
    color_match: float | None = None
    align: bool | None = None
    candidates: int = 1
    keep: int = 1
    prune_at: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("guidance", 0, 100), ("feather", 0, 1024), ("grow", -1024, 1024),
            ("model_mask", 0, 1), ("color_match", 0, 1), ("smallest", 1, 1 << 30),
            ("candidates", 1, MAX_CANDIDATES), ("prune_at", 0, 1000),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise ValueError(f"steps must be between 1 and 1000, got {self.steps}.")
        if not 1 <= self.keep <= self.candidates:
            raise ValueError(
                f"keep must be from 1 to the number of candidates ({self.candidates}), got {self.keep}."
            )
        if self.blend not in get_args(Blend):
            raise ValueError(
                f"blend must be one of {', '.join(get_args(Blend))}, got {self.blend!r}."
            )


@dataclass(frozen=True)
class RefineRequest:
    """What to repair.

    `draft` N 3 H W in any stored type, N drafts; `references` up to three groups, each M 3 h w (all
    groups of the same M), none where the recipe needs none; `mask` None (everything) or K 1 H W;
    `reference_masks` one per group, None = the whole reference. N, M and K must be equal or 1.
    With `boxes` each pair is a region of its own, repaired from its own box of the first reference;
    the masks then only narrow the boxes down.
    """

    draft: Tensor
    references: tuple[Tensor, ...]
    mask: Tensor | None = None
    reference_masks: tuple[Tensor | None, ...] = ()
    options: RefineOptions = field(default_factory=RefineOptions)
    boxes: tuple[BoxPair, ...] = ()


@dataclass(frozen=True)
class RefineResult:
    """`image` N 3 H W in the draft's type; `crops` the repaired crops at the model's size (region by
    region, picture by picture); `mask` N 1 H W what was allowed to change; `report` for JSON.
    """

    image: Tensor
    crops: list[Tensor]
    mask: Tensor
    report: dict[str, Any]


def _check(request: RefineRequest) -> int:
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
        if m is None:
            continue
        counts[f"reference masks {i + 1}"] = len(m)
        _same_size(m, refs[i], "reference mask", "reference")
        check_finite(m, "reference mask")
    if request.mask is not None:
        counts["masks"] = len(request.mask)
        _same_size(request.mask, draft, "mask", "draft")
    n = max(counts.values())
    if any(c not in (1, n) for c in counts.values()):
        listed = ", ".join(f"{c} {name}" for name, c in counts.items())
        raise ValueError(f"Batches do not match: {listed}. Give one of each or equally many.")
    return n


def _check_draft(draft: Tensor) -> None:
    if draft.ndim != 4 or draft.shape[1] != 3 or min(draft.shape) < 1:
        raise ValueError(f"The draft must be N 3 H W, got {tuple(draft.shape)}.")
    if max(draft.shape[-2:]) > MAX_SIDE:
        raise ValueError(
            f"The draft is {draft.shape[-1]}x{draft.shape[-2]}; at most {MAX_SIDE} px are supported."
        )


def _check_reference(reference: Tensor) -> None:
    if reference.ndim != 4 or reference.shape[1] != 3:
        raise ValueError(f"A reference must be M 3 h w, got {tuple(reference.shape)}.")
    if min(reference.shape[-2:]) < _SMALLEST_REFERENCE:
        raise ValueError(
            f"The reference is {reference.shape[-1]}x{reference.shape[-2]} px; at least "
            f"{_SMALLEST_REFERENCE} px on a side are needed."
        )
    check_finite(reference, "reference")


def _same_size(mask: Tensor, image: Tensor, mask_name: str, image_name: str) -> None:
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"The {mask_name} must be K 1 H W, got {tuple(mask.shape)}.")
    if mask.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"The {mask_name} is {mask.shape[-1]}x{mask.shape[-2]} but the {image_name} is "
            f"{image.shape[-1]}x{image.shape[-2]}. Resize the mask first, or have it resized "
            "explicitly (--resize-mask)."
        )


def _pick(batch: Tensor, i: int) -> Tensor:
    return batch[i : i + 1] if len(batch) > 1 else batch


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, begun: float) -> float:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - begun
        return now


@torch.inference_mode()
def refine(
    engine: Engine,
    request: RefineRequest,
    progress: Progress | None = None,
    scorer: Scorer | None = None,
) -> RefineResult:
    """Repair every region of every draft.

    Args:
        engine: the weights.
        request: what to repair, and how.
        progress: told of every stage and step.
        scorer: tells candidates apart; None = the one without weights.

    Raises:
        ValueError: for every input that cannot be repaired as asked, with the values and the fix.
    """
    n = _check(request)
    engine.recipe.check_references(len(request.references))
    tell = progress or (lambda _: None)
    clock, begun = _Clock(), time.perf_counter()
    size = Extent(request.draft.shape[-1], request.draft.shape[-2])
    images: list[Tensor] = []
    changed: list[Tensor] = []
    crops: list[Tensor] = []
    reports: list[dict[str, Any]] = []
    for i in range(n):
        draft = _pick(request.draft, i)
        refs = tuple(_pick(r, i) for r in request.references)
        ref_masks = [None if m is None else _pick(m, i) for m in request.reference_masks]
        ref_masks += [None] * (len(refs) - len(ref_masks))
        regions = _regions(request, i, size)
        image, allowed = draft.clone(), _empty_mask(size)
        for r, region in enumerate(regions):
            place = Stage(
                "plan", picture=i, pictures=n, region=r, regions=len(regions), image=image
            )
            job = _RegionJob(engine, request.options, clock, tell, place, scorer)
            done, report = job.run(image, region, refs, _masks_of_box(request, r, refs, ref_masks))
            b = region.box
            allowed[..., b.y0 : b.y1, b.x0 : b.x1] = torch.maximum(
                allowed[..., b.y0 : b.y1, b.x0 : b.x1], (region.mask > 0).float()
            )
            crops.append(done)
            reports.append({"picture": i, **report})
        images.append(image)
        changed.append(allowed)
    options = request.options
    guidance, cfg = engine.recipe.guided(options.guidance)
    report = {
        "version": __version__,
        "engine": engine.describe(),
        "recipe": engine.recipe.name,
        "steps": engine.recipe.steps if options.steps is None else options.steps,
        "guidance": guidance,
        "cfg": cfg,
        "draft": f"{n} x {size}",
        "seed": options.seed,
        "regions": reports,
        "seconds": {k: round(v, 4) for k, v in clock.seconds.items()},
        "seconds_total": round(time.perf_counter() - begun, 4),
        "peak_memory_mb": _peak_memory(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if request.boxes and request.mask is not None:
        report["mask_outside_boxes_px"] = _outside_boxes(request, size)
    return RefineResult(_batch(images), crops, _batch(changed), report)


def _empty_mask(size: Extent) -> Tensor:
    """Zeros 1 1 H W. NumPy's are the system's empty pages: what is never written costs nothing."""
    return torch.from_numpy(np.zeros((1, 1, size.height, size.width), np.float32))


def _batch(pictures: list[Tensor]) -> Tensor:
    return pictures[0] if len(pictures) == 1 else torch.cat(pictures)


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated() >> 20)
    if sys.platform == "win32":  # has no `resource`
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20)


def _regions(request: RefineRequest, i: int, size: Extent) -> list[Region]:
    o = request.options
    mask = None if request.mask is None else _pick(request.mask, i)
    if request.boxes:
        return box_regions(request.boxes, size, mask, grow_pixels=o.grow, holes=o.fill_holes)
    if mask is None:
        return [whole_region(size)]
    return find_regions(
        mask,
        grow_pixels=o.grow,
        holes=o.fill_holes,
        smallest=o.smallest,
        split=o.split,
    )


def _outside_boxes(request: RefineRequest, size: Extent) -> int:
    """Pixels of the masks that no box covers: they are not repaired, which the user may not expect."""
    assert request.mask is not None
    uncovered = request.mask > 0
    for pair in request.boxes:
        b = pair.draft.pixels(size)
        uncovered[..., b.y0 : b.y1, b.x0 : b.x1] = False
    return int(uncovered.sum())


def _masks_of_box(
    request: RefineRequest, r: int, references: tuple[Tensor, ...], masks: list[Tensor | None]
) -> list[Tensor | None]:
    """The reference masks of region `r`: the first reference's is cut to the region's box."""
    box = request.boxes[r].reference if request.boxes else None
    if box is None or not references:
        return masks
    size = Extent(references[0].shape[-1], references[0].shape[-2])
    return [reference_box_mask(box, size, masks[0]), *masks[1:]]


@dataclass(frozen=True)
class _Seen:
    """A region as the model gets to see it: the crop's `plan`, the draft's crop `draft`, the
    region's `mask` in it and one view per reference, all float at the model's size; `plans` of the
    references' own crops.
    """

    plan: CropPlan
    draft: Tensor
    mask: Tensor
    views: tuple[Tensor, ...]
    plans: tuple[CropPlan, ...]


class _RegionJob:
    """One region of one draft from plan to stitch."""

    def __init__(
        self,
        engine: Engine,
        options: RefineOptions,
        clock: _Clock,
        progress: Progress,
        place: Stage,
        scorer: Scorer | None,
    ) -> None:
        self.engine, self.options, self.clock = engine, options, clock
        self.progress, self.place = progress, place
        self.scorer = scorer or StructuralScorer()
        self.aligned = engine.recipe.align if options.align is None else options.align

    def tell(self, stage: str, step: int = 0, steps: int = 1, x0: Tensor | None = None) -> None:
        self.progress(self.place._replace(name=stage, step=step, steps=steps, estimate=x0))

    def run(
        self,
        image: Tensor,
        region: Region,
        references: tuple[Tensor, ...],
        masks: list[Tensor | None],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repair the region in `image` itself; the repaired crop and what was done."""
        begun = time.perf_counter()
        self.tell("plan")
        seen, report = self._look(image, region, references, masks)
        begun = self.clock.run("plan", begun)

        self.tell("encode")
        roles, pictures = self._pictures(seen, self._share)
        latents = self._encode(pictures)
        begun = self.clock.run("encode", begun)

        job = self._job(region, seen.plan, latents, roles, pictures)
        if self.options.candidates == 1:
            latent = self.engine.sample(job, self._sampled)
            begun = self.clock.run("sample", begun)
            self.tell("decode")
            result = self.engine.decode(latent).float().clamp(0, 1)
            begun = self.clock.run("decode", begun)
        else:
            result, report["search"] = self._search(job, seen, region, references[0], masks[0])
            begun = self.clock.run("sample", begun)

        result = self._restored(result, seen, latents)
        self.tell("register")
        result, settled = settle(result, seen.draft, region, seen.plan, **self._settling())
        report |= settled
        begun = self.clock.run("register", begun)
        self.tell("stitch")
        patch = uncrop(result, seen.plan, region)
        o = self.options
        stitch_into(image, patch, region, feather_pixels=o.feather, blend=o.blend)
        self.clock.run("stitch", begun)
        return result, report

    def _look(
        self, image: Tensor, region: Region, references: tuple[Tensor, ...],
        masks: list[Tensor | None],
    ) -> tuple[_Seen, dict[str, Any]]:  # fmt: skip
        """Cut the crops out."""
        o, recipe = self.options, self.engine.recipe
        size = Extent(image.shape[-1], image.shape[-2])
        frames = [reference_frame(r, m) for r, m in zip(references, masks, strict=True)]
        contexts = [1.0 if m is None else self._context for m in masks]
        plans = plan_crops(
            (size, region.box), frames, recipe, (self._context, contexts), o.megapixels
        )
        plan = plans[0]
        self.place = self.place._replace(plan=plan)
        i = plan.inside
        check_finite(image[..., i.y0 : i.y1, i.x0 : i.x1], "draft")
        seen, mask = crop(image, plan), crop_mask(region, plan)
        report: dict[str, Any] = _plan_report(plan)
        views = []
        for reference, reference_mask, own in zip(references, masks, plans[1:], strict=True):
            view, found = reference_view(
                reference, reference_mask, seen, mask, own, aligned=self.aligned
            )
            views.append(view)
            report.setdefault("references", []).append(found)
        return _Seen(plan, seen, mask, tuple(views), tuple(plans[1:])), report

    @property
    def _context(self) -> float:
        return self.engine.recipe.context if self.options.context is None else self.options.context

    def _pictures(self, seen: _Seen, share: float) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Roles and pictures in the recipe's order, with `share` of the reference over the draft."""
        draft = prefill(seen.draft, seen.views[0], seen.mask, share) if seen.views else seen.draft
        return ordered_pictures(self.engine.recipe.order, draft, seen.views, seen.mask)

    def _encode(self, pictures: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Clean latents of those pictures."""
        return tuple(self.engine.encode(p) for p in pictures)

    def _job(
        self, region: Region, plan: CropPlan, latents: tuple[Tensor, ...], roles: tuple[str, ...],
        pictures: tuple[Tensor, ...],
    ) -> SamplingJob:  # fmt: skip
        o, recipe = self.options, self.engine.recipe
        guidance, cfg = recipe.guided(o.guidance)
        restriction = self._restriction(region, plan, latents[roles.index("draft")])
        return SamplingJob(
            latents,
            tuple(range(recipe.indices[0], recipe.indices[0] + len(latents))),
            recipe.sigmas(plan.target, o.steps),
            recipe.text(o.prompt, o.subject),
            guidance,
            o.seed,
            restriction,
            roles,
            pictures,
            cfg,
        )

    def _restored(self, result: Tensor, seen: _Seen, latents: tuple[Tensor, ...]) -> Tensor:
        recipe = self.engine.recipe
        if not (self.aligned and recipe.remainder):
            return result
        coded = self.engine.decode(latents[recipe.order.index("reference")])
        return (result + recipe.remainder * lost(seen.views[0], coded)).clamp(0, 1)

    def _sampled(self, step: int, steps: int, x0: Tensor) -> None:
        self.tell("sample", step, steps, x0)

    def _search(
        self, job: SamplingJob, seen: _Seen, region: Region, reference: Tensor,
        reference_mask: Tensor | None,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        """The best of several candidates, decoded, and how it was found."""
        o = self.options
        goal = seen.views[0]
        if not self.aligned:  # scorers compare in place: the reference has to lie as the draft does
            goal, _ = reference_view(
                reference, reference_mask, seen.draft, seen.mask, seen.plans[0], aligned=True
            )

        witnesses = {"reference": goal}
        if self._share > 0 and not _contradict(seen.draft, goal, seen.mask):
            witnesses["draft"] = seen.draft

        def judge(pictures: Tensor) -> Tensor:
            settled = torch.cat([
                settle(p, seen.draft, region, seen.plan, **self._settling())[0]
                for p in pictures.split(1)
            ])  # fmt: skip
            apart = [self.scorer.distance(settled, w, seen.mask) for w in witnesses.values()]
            return torch.stack(apart).square().mean(0).sqrt()

        candidates = [self._candidate(i, job, seen) for i in range(o.candidates)]
        steps = len(job.sigmas) - 1
        plan = rounds(steps, o.candidates, o.keep, o.prune_at)
        found = search(self.engine, job, candidates, plan, judge, self._sampled)
        report = found.report(candidates, steps)
        return found.picture, {"scorer": self.scorer.name, "witnesses": list(witnesses), **report}

    def _candidate(self, i: int, job: SamplingJob, seen: _Seen) -> Candidate:
        """The candidate number `i`, of which 0 is the plain run."""
        seed = (self.options.seed + i) % (1 << 64)
        if self._share == 0:
            return Candidate(seed, job.references)
        share = spread_share(self._share, i)
        latents = job.references if i == 0 else self._encode(self._pictures(seen, share)[1])
        return Candidate(seed, latents, {"prefill": round(share, 3)})

    @property
    def _share(self) -> float:
        return self.engine.recipe.prefill if self.aligned else 0.0

    def _settling(self) -> dict[str, Any]:
        o, usual = self.options, self.engine.recipe.settles
        return {
            "drift": usual if o.drift is None else o.drift,
            "color_match": float(usual) if o.color_match is None else o.color_match,
        }

    def _restriction(self, region: Region, plan: CropPlan, latent: Tensor) -> Tensor | None:
        if self.options.model_mask == 0:
            return None
        mask = crop_mask(region, plan)
        small = torch.nn.functional.adaptive_max_pool2d(mask, latent.shape[-2:])
        return 1 - self.options.model_mask * (1 - small)


def _contradict(draft: Tensor, view: Tensor, mask: Tensor) -> bool:
    """Whether the draft shows another detail than the reference view, not only a damaged one.

    Candidates that differ in how much of the reference was laid over the draft are judged by both:
    the distance to the reference alone always chooses the largest share, and a reference that is
    a pixel or two out of place is a worse witness than a blurred draft. But a draft that
    contradicts the reference altogether is no witness of the truth.
    """
    return float(StructuralScorer().distance(draft, view, mask)) > _CONTRADICTION


def settle(
    result: Tensor,
    seen: Tensor,
    region: Region,
    plan: CropPlan,
    *,
    drift: bool = True,
    color_match: float = 1.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Take the model's drift and colour cast out of a decoded crop, measured outside the region.

    Args:
        result, seen: the decoded and the original crop, float 1 3 H W.
        region, plan: what was cropped.
        drift: correct shift and zoom.
        color_match: how far to follow the colours of the surroundings, 0..1.
    """
    around = ring(region, plan)
    report: dict[str, Any] = {"drift": {"measured": False}, "color": None}
    if drift:
        result, report["drift"] = _undrift(result, seen, around)
    gain = measure_gain(result, seen, around) if color_match > 0 else None
    if gain is not None:
        before = ring_error(result, seen, around)
        result = gain.apply(result, color_match).clamp(0, 1)
        report["color"] = {
            "gain": [round(g, 4) for g in gain.gain],
            "offset": [round(g, 4) for g in gain.offset],
            "ring_error_before": round(before, 4),
            "ring_error_after": round(ring_error(result, seen, around), 4),
        }
    return result, report


def _undrift(result: Tensor, seen: Tensor, around: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Measure shift and zoom of the result against the draft on the ring, and take them out."""
    h, w = seen.shape[-2:]
    if float(around.mean()) < _RING_LEAST:
        return result, {"measured": False}
    found = register(seen, result, around, "shift_zoom", finest=256)
    m = found.matrix / found.matrix[2, 2]
    dx, dy, zoom = float(m[0, 2]) * w / 2, float(m[1, 2]) * h / 2, float(m[0, 0])
    p = grid(2, 2)
    moved = ((p @ m.T)[:, :2] - p[:, :2]) * torch.tensor([w / 2, h / 2], dtype=torch.float64)
    most = float(moved.norm(dim=1).max())
    sane = max(abs(dx) / w, abs(dy) / h) <= _DRIFT_MOST and abs(zoom - 1) <= _ZOOM_MOST
    correct = sane and most > _DRIFT_LEAST
    report = {
        "measured": True, "dx": round(dx, 3), "dy": round(dy, 3), "zoom": round(zoom, 5),
        "score": round(found.score, 3), "corrected": correct,
    }  # fmt: skip
    return (warp(result, m, h, w)[0].clamp(0, 1) if correct else result), report


def _plan_report(plan: CropPlan) -> dict[str, Any]:
    return {
        "region": list(plan.region), "crop": list(plan.box), "bucket": str(plan.target),
        "scale": round(plan.scale, 4), "padding": list(plan.padding),
    }  # fmt: skip
