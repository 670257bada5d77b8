"""The degrade stage for real pictures: given drafts, or a degradation of the region."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..degrade import DEGRADATIONS, degrade_box
from ..pair_files import PairFiles, fit_to, read_pixels
from ..sample import RejectedError, Sample
from .drafts import paste_inside, with_draft, with_right_draft


@dataclass(frozen=True)
class RegionDegrade:
    """Degrades the region, with a soft edge inside the mask."""

    names: tuple[str, ...] = tuple(DEGRADATIONS)  # to choose from
    identity: float = 0.05  # share of samples whose draft is right
    min_change: float = 2.0  # mean change in the mask, of 255
    name: str = field(default="degrade", init=False)
    version: str = field(default="region/1", init=False)

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in DEGRADATIONS:
                raise ValueError(
                    f"Unknown degradation {name!r}; choose from {', '.join(DEGRADATIONS)}."
                )

    def settings(self) -> dict[str, Any]:
        return {"names": list(self.names), "identity": self.identity, "least": self.min_change}

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        target, mask = sample.target_and_mask()
        right = rng.random() < self.identity
        name, strength = str(rng.choice(self.names)), round(float(rng.uniform(0, 1)), 4)
        if right:
            return with_right_draft(sample)
        draft = paste_inside(target, degrade_box(target, mask, name, rng, strength), mask)
        return with_draft(sample, draft, self.min_change, {"name": name, "strength": strength})


@dataclass(frozen=True)
class GivenDraft:
    """The drafts that came with the pairs.

    Outside the mask the draft is replaced by the target, exactly. How much they differed there is
    noted, and drafts that differed too much are rejected: their mask is not where they differ.
    """

    pairs: tuple[PairFiles, ...]
    max_outside: float = 8.0  # mean difference outside the mask, of 255
    min_change: float = 1.0  # mean difference in the mask, of 255
    name: str = field(default="degrade", init=False)
    version: str = field(default="given/2", init=False)

    def settings(self) -> dict[str, Any]:
        return {"outside": self.max_outside, "least": self.min_change}

    def __call__(self, sample: Sample) -> Sample:
        files = self.pairs[sample.number % len(self.pairs)].files
        if "draft" not in files:
            raise ValueError("the pair has no draft picture")
        target, mask = sample.target_and_mask()
        given = fit_to(read_pixels(files["draft"], "draft")[0], target, "draft")
        difference = np.abs(given.astype(np.int16) - target).mean(-1)
        inside = mask > 0
        change, outside = float(difference[inside].mean()), float(difference[~inside].mean())
        if change < self.min_change:
            raise RejectedError(
                f"the draft differs by only {change:.2f} of 255 in its mask, less than "
                f"{self.min_change:g}"
            )
        if outside > self.max_outside:
            raise RejectedError(
                f"the draft differs by {outside:.1f} of 255 outside its mask, more than "
                f"{self.max_outside:g}"
            )
        note = {
            "name": "given",
            "strength": 1.0,
            "change": round(change, 3),
            "outside": round(outside, 3),
        }
        draft = np.where(inside[..., None], given, target)
        return replace(sample, draft=draft, info=sample.noted(degradation=note))
