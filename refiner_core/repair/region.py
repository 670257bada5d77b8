"""One region of one draft: look, encode, sample, decode, register, match colours, stitch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..images.crop import crop, crop_mask, stitch_into, uncrop
from ..images.geometry import CropPlan, Extent
from ..images.masks import Region
from ..images.tensors import check_finite
from ..interfaces import Engine, Progress, SamplingJob, Stage
from ..scoring.scorer import Scorer
from ..scoring.structural import StructuralScorer
from .best_of_n import Candidate, rounds, search
from .drift_and_color import settle
from .model_inputs import (
    lost,
    ordered_pictures,
    plan_crops,
    prefill,
    reference_frame,
    reference_view,
    spread_share,
)
from .request import RefineOptions

# Structural distance of draft and reference. On 35 development scenes the search gained the same
# with any limit from 0.4 to 0.5, and less below.
_CONTRADICTION = 0.45


class Clock:
    """Seconds by stage, over all regions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, begun: float) -> float:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - begun
        return now


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


class RegionJob:
    """One region of one draft from plan to stitch."""

    def __init__(
        self,
        engine: Engine,
        options: RefineOptions,
        clock: Clock,
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
        guidance, cfg = recipe.resolve_guidance(o.guidance)
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
        if not (self.aligned and recipe.codec_residual):
            return result
        coded = self.engine.decode(latents[recipe.order.index("reference")])
        return (result + recipe.codec_residual * lost(seen.views[0], coded)).clamp(0, 1)

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
        return self.engine.recipe.reference_blend if self.aligned else 0.0

    def _settling(self) -> dict[str, Any]:
        o, usual = self.options, self.engine.recipe.correct_drift_and_color
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


def _plan_report(plan: CropPlan) -> dict[str, Any]:
    return {
        "region": list(plan.region), "crop": list(plan.box), "bucket": str(plan.target),
        "scale": round(plan.scale, 4), "padding": list(plan.padding),
    }  # fmt: skip
